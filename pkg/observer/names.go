package observer

import (
	"context"
	"path"
	"time"

	"sca-probe/pkg/loader"
	"sca-probe/pkg/pyframes"
)

// names says which functions the kernel's code objects are, in one process.
type names struct {
	process *pyframes.Process
	origins *origins
	origin  *origin
	main    string // the program's file
	known   map[loader.Code]FunctionID
	read    time.Time             // when origin, and main, were read
	placed  map[string]FunctionID // what place said of a file since then
}

// A FunctionID names a function for people.
type FunctionID struct {
	Module    string `json:"module"` // "" when it is not known
	QualName  string `json:"qualname"`
	File      string `json:"file"`
	FirstLine int    `json:"first_line"`
	Package   string `json:"package,omitempty"` // the distribution that it is of: "requests 2.31.0"

	other bool // it is the code of a module or class
}

// newNames knows no function yet: each is read when it is asked for.
func newNames(process *pyframes.Process, origins *origins) (*names, error) {
	n := &names{process: process, origins: origins, known: map[loader.Code]FunctionID{}}
	if err := n.readOrigin(); err != nil {
		return nil, err
	}
	return n, nil
}

// waitForNames is newNames of a process that may have just begun, and in which a distribution must be
// installed, if one is named.
func waitForNames(ctx context.Context, process *pyframes.Process, origins *origins, distribution string) (n *names, err error) {
	err = patiently(ctx, process.PID(), func() error {
		if n, err = newNames(process, origins); err == nil && distribution != "" && !n.origin.isInstalled(distribution) {
			err = notInstalled(distribution, process.PID())
		}
		return err
	})
	return n, err
}

// readOrigin reads what is installed on sys.path, as that is now, and which file the program is.
func (n *names) readOrigin() error {
	now := time.Now()
	search, err := n.process.SearchPath()
	if err != nil {
		return err
	}
	bundle, err := n.process.Bundle()
	if err != nil {
		return err
	}
	main, err := n.process.MainFile()
	if err != nil {
		return err
	}
	n.origin, n.main = n.origins.of(n.process.PID(), search, bundle), main
	n.read, n.placed = now, map[string]FunctionID{}
	return nil
}

// scan gets to know all functions that the process holds now.
func (n *names) scan(ctx context.Context, progress func(float64)) error {
	for f, err := range n.process.Functions(ctx, &pyframes.FunctionScan{Progress: progress}) {
		if err != nil {
			return err
		}
		id := n.id(f.Code)
		if f.Module != "" {
			id.Module = f.Module
		}
		n.known[watchable(f.Code)] = id
		if f.Hook != nil { // what runs is the patched code, under the same name
			patched := watchable(f.Code)
			patched.Addr = f.Hook.Patched
			n.known[patched] = id
		}
	}
	return nil
}

func (n *names) id(code pyframes.Code) FunctionID {
	id := n.place(code.Filename, time.Now())
	id.QualName, id.FirstLine, id.other = code.QualName, code.FirstLine, !code.IsFunction()
	return id
}

// place names the module and distribution of a file, of which something ran at a time.
func (n *names) place(file string, ran time.Time) FunctionID {
	if id, known := n.placed[file]; known {
		return id
	}
	d, standard := n.origin.of(file)
	stray := path.IsAbs(file) && n.origin.entryOf(file) == "" && n.origin.files[file] == nil
	if ran.After(n.read) && (stray || d == nil && !standard && n.main == "") && n.readOrigin() == nil {
		// sys.path has grown, or the program's own file was not known yet. If it cannot be read, it stays as it was.
		d, _ = n.origin.of(file)
		stray = stray && n.origin.entryOf(file) == ""
	}
	id := FunctionID{Module: n.origin.module(file), File: file}
	if file == n.main {
		id.Module = "__main__"
	}
	if d != nil {
		id.Package = d.String()
	}
	if !stray {
		n.placed[file] = id
	}
	return id
}

// of names a code object, and reads it if it was not known. It returns false when it is gone.
func (n *names) of(code loader.Code) (FunctionID, bool) {
	if id, known := n.known[code]; known {
		return id, true
	}
	read, err := n.process.ReadCode(code.Addr)
	if err != nil || watchable(read) != code {
		return FunctionID{}, false
	}
	id := n.id(read)
	n.known[code] = id
	return id, true
}
