package pyframes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"sca-probe/pkg/internal/bounded"
)

// A Finder finds the CPython processes on this node. It learns of each file once, however many
// processes run it, and of copies of one build (as containers have them) once too. The zero
// value is ready, and may be used by several goroutines.
type Finder struct {
	mu     sync.Mutex
	files  map[fileID]learnt
	builds map[string]*Interpreter // by build ID
}

// A fileID tells one state of a file from any other.
type fileID struct {
	dev, inode uint64
	size       int64
	changed    unix.Timespec
}

// learnt is what a file turned out to be.
type learnt struct {
	in  *Interpreter // nil when it is no CPython
	err error        // as that of readInterpreter
}

// maxLearnt bounds what a Finder remembers. A large node maps some thousand different files.
const maxLearnt = 1 << 16

// learn reads what a file is, if it is CPython. It is called path, and may be the program itself.
func (f *Finder) learn(file *os.File, path string, program bool) (*Interpreter, error) {
	id, err := identify(file, path)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	known, ok := f.files[id]
	f.mu.Unlock()
	if !ok {
		known.in, known.err = f.read(file, path, program)
		f.mu.Lock()
		if f.files == nil || len(f.files) >= maxLearnt {
			f.files = make(map[fileID]learnt)
		}
		f.files[id] = known
		f.mu.Unlock()
	}
	if known.in == nil {
		return nil, known.err
	}
	in := *known.in
	in.Path = path
	if known.err != nil {
		err = in.supported() // says the path
	}
	return &in, err
}

// identify says which file one is that messages call path.
func identify(file *os.File, path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return fileID{}, fmt.Errorf("%s: %w", path, err)
	}
	return fileID{st.Dev, st.Ino, st.Size, st.Ctim}, nil
}

func (f *Finder) read(file *os.File, path string, program bool) (*Interpreter, error) {
	is, id := mayBeInterpreter(file, program)
	if !is {
		return nil, fmt.Errorf("%s: %w", path, ErrNotPython)
	}
	f.mu.Lock()
	known := f.builds[id]
	f.mu.Unlock()
	if known != nil {
		in := *known
		in.Path, in.byID = path, true
		return &in, in.supported()
	}
	in, err := readInterpreter(file, path)
	if in != nil && id != "" {
		f.mu.Lock()
		if f.builds == nil || len(f.builds) >= maxLearnt {
			f.builds = make(map[string]*Interpreter)
		}
		f.builds[id] = in
		f.mu.Unlock()
	}
	return in, err
}

// readAnew reads a build from its own file. A build ID is only what a file says of itself: one that was made
// to say another's must not be what that is taken for.
func (f *Finder) readAnew(b *mappedBuild) error {
	file, err := os.Open(b.path)
	if err != nil {
		return procError(err)
	}
	defer file.Close()
	id, err := identify(file, b.in.Path)
	if err != nil {
		return err
	}
	b.in, b.err = readInterpreter(file, b.in.Path)
	if b.in == nil {
		return b.err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[id] = learnt{b.in, b.err}
	return nil
}

// maxNames bounds the table of symbols' names that is searched.
const maxNames = 64 << 20

// mayBeInterpreter reports whether a file names the eval loop among its symbols, which is soon
// told, and its build ID. A program that CPython is linked into may export none of its names.
func mayBeInterpreter(r io.ReaderAt, program bool) (bool, string) {
	f, err := bounded.ELF(r)
	if err != nil {
		return false, ""
	}
	defer f.Close()
	sections := []string{".dynstr"}
	if program {
		sections = append(sections, ".strtab")
	}
	for _, name := range sections {
		s := f.Section(name)
		if s == nil || s.Size > maxNames {
			continue
		}
		names, err := s.Data()
		if err == nil && bytes.Contains(names, []byte("\x00_PyEval_EvalFrameDefault\x00")) {
			return true, buildID(f)
		}
	}
	return false, ""
}

// A mappedBuild is a CPython in a process: the executable, a libpython, or any other library
// that CPython is linked into.
type mappedBuild struct {
	in   *Interpreter
	err  error  // why it is not supported
	path string // at which the very file can be opened
	maps []*procfs.ProcMap
}

// interpreters finds the CPythons that are mapped in a process. The error says why there is none.
func (f *Finder) interpreters(pid int, all []*procfs.ProcMap) ([]mappedBuild, error) {
	byFile := make(map[string][]*procfs.ProcMap)
	var order []string
	executable := map[string]bool{}
	for _, m := range all {
		if byFile[m.Pathname] == nil {
			order = append(order, m.Pathname)
		}
		byFile[m.Pathname] = append(byFile[m.Pathname], m)
		executable[m.Pathname] = executable[m.Pathname] || m.Perms.Execute
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil, fmt.Errorf("read the program's path: %w", procError(err))
	}
	problem := fmt.Errorf("%s: %w", program, ErrNotPython)
	var found []mappedBuild
	for _, path := range order {
		if !executable[path] {
			continue
		}
		open, file, err := openMapped(pid, byFile[path][0])
		if err != nil {
			// That another file cannot be read says nothing of this process.
			if path == program || strings.HasPrefix(filepath.Base(path), "libpython") {
				problem = fmt.Errorf("open %s: %w", path, err)
			}
			continue
		}
		in, err := f.learn(file, strings.TrimSuffix(path, deletedSuffix), path == program)
		file.Close()
		if in != nil {
			found = append(found, mappedBuild{in, err, open, byFile[path]})
		}
	}
	if len(found) == 0 {
		return nil, problem
	}
	return found, nil
}

// A Summary is one process that runs CPython, readable or not.
type Summary struct {
	PID int
	// NamespacePID is the process ID that the process itself sees: another one in a container.
	NamespacePID int
	Interpreter  *Interpreter // nil when not even the build could be read
	Started      time.Time
	// Unit is the systemd unit that the process runs in, "gunicorn.service", and Container the
	// ID of its container; "" where there is none.
	Unit, Container string
	Err             error // why [Finder.Open] fails; nil when the process can be read
}

// Processes is [Finder.Processes] of a new Finder.
func Processes() ([]Summary, error) { return new(Finder).Processes(context.Background()) }

// Processes returns all CPython processes that the caller can see, by process ID. A
// process that may not be read at all is listed only when its name says python.
func (f *Finder) Processes(ctx context.Context) ([]Summary, error) {
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	slices.SortFunc(procs, func(a, b procfs.Proc) int { return a.PID - b.PID })
	var found []Summary
	for _, proc := range procs {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		if s, ok := f.Look(proc.PID); ok {
			found = append(found, s)
		}
	}
	return found, nil
}

// Look looks at one process now, as after an event of its starting. It returns false when
// that is no CPython, is gone, or may not be read and does not call itself python.
func (f *Finder) Look(pid int) (Summary, bool) {
	s := Summary{PID: pid, NamespacePID: pid}
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return s, false
	}
	p, err := f.Open(pid)
	switch {
	case err == nil:
		s.Interpreter = p.Interpreter()
		p.Close()
	case errors.Is(err, ErrNotPython), errors.Is(err, ErrNoProcess):
		return s, false
	default:
		s.Err = err
		// Its build may be known all the same.
		mapped, err := readMaps(pid)
		if err == nil && len(mapped) == 0 {
			return s, false // a kernel thread or a zombie
		}
		var builds []mappedBuild
		if err == nil {
			builds, err = f.interpreters(pid, mapped)
		}
		switch {
		case err == nil:
			s.Interpreter = builds[0].in
		case errors.Is(err, ErrNotPython), errors.Is(err, ErrNoProcess):
			return s, false
		default:
			s.Err = fmt.Errorf("process %d: %w", pid, err)
			if comm, err := proc.Comm(); err != nil || !strings.HasPrefix(comm, "python") {
				return s, false
			}
		}
	}
	f.describe(proc, &s)
	return s, true
}

// Started returns when a process began, the zero time when that cannot be told.
func Started(pid int) time.Time {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return time.Time{}
	}
	stat, err := proc.Stat()
	if err != nil {
		return time.Time{}
	}
	started, err := stat.StartTime()
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(int64(started * 1000))
}

// describe fills in what /proc says of a process. What cannot be read stays as it is.
func (f *Finder) describe(proc procfs.Proc, s *Summary) {
	if status, err := proc.NewStatus(); err == nil && len(status.NSpids) > 0 {
		s.NamespacePID = int(status.NSpids[len(status.NSpids)-1])
	}
	s.Started = Started(s.PID)
	groups, err := proc.Cgroups()
	if err != nil {
		return
	}
	for _, g := range groups {
		s.Unit, s.Container = unitOf(g.Path, s.Unit), containerOf(g.Path, s.Container)
	}
}

// unitOf returns the innermost systemd unit in the path of a cgroup, else what was known before.
func unitOf(path, before string) string {
	for _, part := range slices.Backward(strings.Split(path, "/")) {
		if strings.HasSuffix(part, ".service") || strings.HasSuffix(part, ".scope") {
			return part
		}
	}
	return before
}

var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// containerOf returns the container's ID, which Docker, containerd, CRI-O and Podman all put into
// the path of its cgroup.
func containerOf(path, before string) string {
	if id := containerID.FindString(path); id != "" {
		return id
	}
	return before
}
