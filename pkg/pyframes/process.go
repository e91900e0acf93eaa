package pyframes

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A Process is a running CPython. Its methods may be called from several goroutines.
type Process struct {
	pid    int
	pidfd  int
	in     *Interpreter
	binary string
	bias   uint64
	image  image
}

// OpenProcess opens the CPython process pid, an ID in the caller's PID namespace, and
// checks that its memory is laid out as its version has it. The error is
// [ErrNoProcess], [ErrNotPython], [ErrPermission], [ErrUnsupportedBuild],
// [ErrNotReady] or one of reading.
func OpenProcess(pid int) (*Process, error) { return new(Finder).Open(pid) }

// Open is [OpenProcess] with what the Finder has learnt of builds before.
func (f *Finder) Open(pid int) (*Process, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			err = ErrNoProcess
		}
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &Process{pid: pid, pidfd: pidfd}
	if err := p.open(f); err != nil {
		if gone := p.Gone(); gone != nil {
			err = gone
		}
		p.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return p, nil
}

func (p *Process) open(f *Finder) error {
	maps, err := readMaps(p.pid)
	if err != nil {
		return err
	}
	builds, err := f.interpreters(p.pid, maps)
	if err != nil {
		return err
	}
	// A library that was loaded and never started must not hide the interpreter that runs.
	var problem error
	for _, b := range builds {
		err := p.use(b)
		// Another build's list of interpreters may be where this one has nothing, too.
		if b.in.byID && (errors.Is(err, ErrUnsupportedBuild) || errors.Is(err, ErrNotReady)) {
			if err = f.readAnew(&b); err == nil {
				err = p.use(b)
			}
		}
		if err == nil {
			return nil
		}
		if problem == nil || errors.Is(problem, ErrNotReady) {
			problem = err
		}
	}
	p.image = image{}
	return problem
}

// use makes the process one of a build that is mapped in it.
func (p *Process) use(b mappedBuild) error {
	if b.err != nil {
		return b.err
	}
	p.in, p.binary = b.in, b.path
	var err error
	if p.bias, err = p.in.loadBias(b.maps); err != nil {
		return err
	}
	im := image{mem: processMemory(p.pid), addr: make(map[string]uint64)}
	for name, addr := range p.in.symbols {
		im.addr[name] = addr + p.bias
	}
	im.listHead = im.addr[p.in.Version.listHead()]
	// The dynamic linker maps the whole file first, and then the data of it where they belong.
	if !slices.ContainsFunc(b.maps, func(m *procfs.ProcMap) bool {
		return m.Perms.Write && uint64(m.StartAddr) <= im.addr["PyType_Type"] && im.addr["PyType_Type"] < uint64(m.EndAddr)
	}) {
		return ErrNotReady
	}
	// The file said the version; the process must agree, or the bias is wrong. Older
	// versions are checked by sys.hexversion.
	if at := im.addr["Py_Version"]; at != 0 {
		live, err := im.uint32(at, 0)
		if err != nil {
			return err
		}
		var running Interpreter
		running.setVersion(live)
		if running.Version != p.in.Version {
			return fmt.Errorf("%w: %s is CPython %s, in memory is %#x", ErrUnsupportedBuild, p.in.Path, p.in.Version, live)
		}
	}
	if im.layout, err = layoutOf(im.mem, p.in.Version, im.listHead); err != nil {
		return err
	}
	err = again(func() (final bool, err error) {
		view := im
		view.mem = newPageCache(im.mem)
		err = view.check(p.in.Version)
		return !errors.Is(err, ErrTorn), err
	})
	if err == nil {
		p.image = im
	}
	return err
}

// Close releases what the Process holds. The process itself is not touched.
func (p *Process) Close() error { return unix.Close(p.pidfd) }

// PID returns the process ID in the caller's PID namespace.
func (p *Process) PID() int { return p.pid }

// Interpreter returns the build that the process runs.
func (p *Process) Interpreter() *Interpreter { return p.in }

// BinaryPath returns a path at which the caller can open the file that holds
// _PyEval_EvalFrameDefault, even when it is in another mount namespace or deleted:
// /proc/PID/map_files/… or /proc/PID/root/…. It is good as long as the process lives.
func (p *Process) BinaryPath() string { return p.binary }

// LoadBias returns what is added to a link-time address of the interpreter's file.
func (p *Process) LoadBias() uint64 { return p.bias }

// ReadMemory fills b from the process's memory at addr, or fails.
func (p *Process) ReadMemory(b []byte, addr uint64) error {
	if err := p.image.mem.readAt(b, addr); err != nil {
		return err
	}
	return p.Gone()
}

// Gone returns [ErrNoProcess] when the process that was opened has exited or replaced its
// program. Its ID may be another process's by now, so what was read is then void.
func (p *Process) Gone() error {
	for {
		fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("poll process %d: %w", p.pid, err)
		}
		if n > 0 {
			return fmt.Errorf("process %d has exited: %w", p.pid, ErrNoProcess)
		}
		break
	}
	if p.image.layout == nil {
		return nil
	}
	if err := p.image.checkTypes(); err != nil {
		if errors.Is(err, ErrNoProcess) || errors.Is(err, ErrPermission) {
			return err
		}
		return fmt.Errorf("process %d has replaced its program since it was opened: %w", p.pid, ErrNoProcess)
	}
	return nil
}

// readMaps returns the mappings of files, in the order of addresses.
func readMaps(pid int) ([]*procfs.ProcMap, error) {
	maps, err := readAllMaps(pid)
	return slices.DeleteFunc(maps, func(m *procfs.ProcMap) bool { return !strings.HasPrefix(m.Pathname, "/") }), err
}

// readAllMaps returns the mappings, in the order of addresses.
func readAllMaps(pid int) ([]*procfs.ProcMap, error) {
	proc, err := procfs.NewProc(pid)
	var maps []*procfs.ProcMap
	if err == nil {
		maps, err = proc.ProcMaps()
	}
	if err != nil {
		return nil, fmt.Errorf("read mappings: %w", procError(err))
	}
	return maps, nil
}

func procError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return ErrNoProcess
	case errors.Is(err, fs.ErrPermission):
		return ErrPermission
	}
	return err
}

// deletedSuffix is what the kernel adds to the path of a file that has no name any more.
const deletedSuffix = " (deleted)"

// openMapped opens the file behind a mapping, and returns the path that it used.
func openMapped(pid int, m *procfs.ProcMap) (string, *os.File, error) {
	// map_files is the very file. It needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
	path := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.StartAddr, m.EndAddr)
	f, err := os.Open(path)
	if err == nil {
		return path, f, nil
	}
	// The paths may lead to a newer file of the same name, which would be another build. That of the program
	// always leads to its own.
	paths := []string{filepath.Join("/proc", strconv.Itoa(pid), "root", m.Pathname)}
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	if program, err := os.Readlink(exe); err == nil && program == m.Pathname {
		paths = append(paths, exe)
	}
	for _, path := range paths {
		f, openErr := os.Open(path)
		if openErr != nil {
			err = openErr
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Ino == m.Inode {
			return path, f, nil
		}
		f.Close()
		err = fs.ErrNotExist
	}
	if _, gone := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); gone == nil && errors.Is(err, fs.ErrNotExist) {
		return "", nil, fmt.Errorf("%s was deleted or replaced on disk since it was mapped; reading it needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
			strings.TrimSuffix(m.Pathname, deletedSuffix))
	}
	return "", nil, procError(err)
}

// loadBias compares where the file is mapped with where it was linked.
func (in *Interpreter) loadBias(maps []*procfs.ProcMap) (uint64, error) {
	if in.exec {
		return 0, nil
	}
	return loadBias(in.Path, in.loads, maps)
}

// loadSegments returns the headers of what is mapped of a file.
func loadSegments(f *elf.File) (loads []elf.ProgHeader) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			loads = append(loads, p.ProgHeader)
		}
	}
	return loads
}

func loadBias(path string, loads []elf.ProgHeader, maps []*procfs.ProcMap) (uint64, error) {
	const mask = ^uint64(pageSize - 1)
	for _, m := range maps {
		for _, load := range loads {
			if uint64(m.Offset) == load.Off&mask && uint64(m.StartAddr) >= load.Vaddr&mask {
				return uint64(m.StartAddr) - load.Vaddr&mask, nil
			}
		}
	}
	return 0, fmt.Errorf("%w: no segment of %s is mapped at its start", ErrCorrupt, path)
}
