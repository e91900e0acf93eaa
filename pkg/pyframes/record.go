package pyframes

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"sca-probe/pkg/rc"
)

// A Known is what is known of a process that is recorded, by itself and not by reading its memory.
type Known struct {
	Targets []KnownTarget
	Ran     map[string]bool // targets, and whether they have run
	Modules []string        // whose functions are recorded besides
	// Private is text that must not be in a recording, as paths of the machine.
	Private []string
}

// A KnownTarget is a target and the one right answer to it.
type KnownTarget struct {
	Target  string
	Code    uint64 // address of the code object that it resolves to, 0 when it does not
	Refused string // the kind of its refusal, as [UnresolvedKind] has it
}

// Record writes the memory that it takes to answer what is known of a process, with the right answers. So
// a layout stays tested where its build is not: testenv/record makes the recordings that tests replay.
// Answers that are wrong, and memory with something private in it, are errors.
func Record(w io.Writer, pid int, known Known) error {
	p, err := OpenProcess(pid)
	if err != nil {
		return err
	}
	defer p.Close()
	rec := &recording{
		Version: p.in.Version, Addr: p.image.addr, ListHead: p.image.listHead,
		Lines: map[uint64][]byte{}, Cases: known.Targets, Ran: known.Ran, Functions: map[uint64]uint64{},
	}
	scan := &FunctionScan{Match: func(module string, _ Code) bool { return slices.Contains(known.Modules, module) }}
	for f, err := range p.Functions(context.Background(), scan) {
		if err != nil {
			return err
		}
		if f.Function != 0 {
			rec.Functions[f.Addr] = f.Function
		}
	}
	if err := rec.check(p.image.mem); err != nil {
		return err
	}
	if err := rec.check(nil); err != nil {
		return fmt.Errorf("the memory that was kept does not answer what the process did: %w", err)
	}
	for _, at := range slices.Sorted(maps.Keys(rec.Lines)) {
		for _, private := range known.Private {
			if bytes.Contains(rec.Lines[at], []byte(private)) {
				return fmt.Errorf("%q is in the memory at %#x", private, at)
			}
		}
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	return errors.Join(gob.NewEncoder(z).Encode(rec), z.Close())
}

// A recording is what was read of one process.
type recording struct {
	Version  Version
	Addr     map[string]uint64
	ListHead uint64
	Lines    map[uint64][]byte // by address, each of lineSize
	Cases    []KnownTarget
	Ran      map[string]bool
	// Functions are function objects, by the address of their code.
	Functions map[uint64]uint64
}

// lineSize is the unit of recording: pages would be ten times as large.
const lineSize = 256

// recorder is memory that keeps what was read of it.
type recorder struct {
	under memory // nil when there is only what was kept
	lines map[uint64][]byte
}

func (r *recorder) readAt(b []byte, addr uint64) error {
	for len(b) > 0 {
		at := addr &^ (lineSize - 1)
		line := r.lines[at]
		if line == nil {
			if r.under == nil {
				return fmt.Errorf("%w: nothing was recorded at %#x", ErrCorrupt, addr)
			}
			line = make([]byte, lineSize)
			if err := r.under.readAt(line, at); err != nil {
				return err
			}
			r.lines[at] = line
		}
		n := copy(b, line[addr-at:])
		b, addr = b[n:], addr+uint64(n)
	}
	return nil
}

func (rec *recording) image(under memory) (*image, error) {
	im := &image{mem: &recorder{under, rec.Lines}, addr: rec.Addr, listHead: rec.ListHead}
	var err error
	if im.layout, err = layoutOf(im.mem, rec.Version, im.listHead); err != nil {
		return nil, err
	}
	return im, im.check(rec.Version)
}

// check answers all that the recording knows the answers of, and says which answers are wrong.
func (rec *recording) check(under memory) error {
	im, err := rec.image(under)
	if err != nil {
		return err
	}
	var wrong []error
	for _, c := range rec.Cases {
		target, err := rc.ParseTarget(c.Target)
		if err != nil {
			return err
		}
		f, err := im.resolve(target)
		var unresolved *UnresolvedError
		switch {
		case errors.As(err, &unresolved) && unresolved.Kind.String() == c.Refused:
		case err != nil:
			wrong = append(wrong, fmt.Errorf("%s: %w, want %q, %#x", c.Target, err, c.Refused, c.Code))
		case f.Code.Addr != c.Code:
			wrong = append(wrong, fmt.Errorf("%s: %#x, want %q, %#x", c.Target, f.Code.Addr, c.Refused, c.Code))
		}
	}
	for name, ran := range rec.Ran {
		target, err := rc.ParseTarget(name)
		if err != nil {
			return err
		}
		var e Evidence
		f, err := im.resolve(target)
		if err == nil {
			e, err = im.evidence(f.Code)
		}
		switch {
		case err != nil:
			wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
		case e.Executed != ran:
			wrong = append(wrong, fmt.Errorf("%s: %+v; ran: %v", name, e, ran))
		}
	}
	s := &functionScan{FunctionScan: &FunctionScan{}, process: &Process{image: *im}, seen: map[codeKey]bool{}}
	for code, function := range rec.Functions {
		h, err := s.readFunction(im, function)
		switch {
		case err != nil:
			wrong = append(wrong, fmt.Errorf("function at %#x: %w", function, err))
		case h.code != code || len(h.states) == 0 || !s.stillHeld(h):
			wrong = append(wrong, fmt.Errorf("function at %#x with code at %#x: %+v", function, code, h))
		}
	}
	return errors.Join(wrong...)
}
