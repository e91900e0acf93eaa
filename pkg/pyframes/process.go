package pyframes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
func OpenProcess(pid int) (*Process, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			err = ErrNoProcess
		}
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &Process{pid: pid, pidfd: pidfd}
	if err := p.open(); err != nil {
		if gone := p.gone(); gone != nil {
			err = gone
		}
		p.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return p, nil
}

func (p *Process) open() error {
	maps, err := readMaps(p.pid)
	if err != nil {
		return err
	}
	found, err := findInterpreter(p.pid, maps)
	if err != nil {
		return err
	}
	p.in, p.binary = found.in, found.path
	if p.bias, err = p.in.loadBias(found.maps); err != nil {
		return err
	}
	p.image = image{mem: processMemory(p.pid), addr: make(map[string]uint64)}
	for name, addr := range p.in.symbols {
		p.image.addr[name] = addr + p.bias
	}
	// The file said the version; the process must agree, or the bias is wrong.
	live, err := p.image.uint32(p.image.addr["Py_Version"], 0)
	if err != nil {
		return err
	}
	var running Interpreter
	running.setVersion(live)
	if running.Version != p.in.Version {
		return fmt.Errorf("%w: %s is CPython %s, in memory is %#x", ErrUnsupportedBuild, p.in.Path, p.in.Version, live)
	}
	if p.image.layout, err = layoutOf(p.image.mem, p.in.Version, p.image.addr["_PyRuntime"]); err != nil {
		return err
	}
	for range retries {
		view := p.image
		view.mem = newPageCache(p.image.mem)
		if err = view.check(p.in.Version); !errors.Is(err, ErrTorn) {
			break
		}
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

// EnginePath returns a path like [Process.BinaryPath] to the engine that is mapped now:
// a file _engine*.abi3.so with static probes of the provider sca. It returns false when
// there is none, and when the process cannot be read.
func (p *Process) EnginePath() (string, bool) {
	maps, err := readMaps(p.pid)
	if err != nil {
		return "", false
	}
	seen := make(map[string]bool)
	for _, m := range maps {
		base := filepath.Base(strings.TrimSuffix(m.Pathname, deletedSuffix))
		if !strings.HasPrefix(base, "_engine") || !strings.HasSuffix(base, ".abi3.so") || seen[m.Pathname] {
			continue
		}
		seen[m.Pathname] = true
		path, f, err := openMapped(p.pid, m)
		if err != nil {
			continue
		}
		is := hasProbes(f, "sca")
		f.Close()
		if is && p.gone() == nil {
			return path, true
		}
	}
	return "", false
}

// ReadMemory fills b from the process's memory at addr, or fails.
func (p *Process) ReadMemory(b []byte, addr uint64) error {
	if err := p.image.mem.readAt(b, addr); err != nil {
		return err
	}
	return p.gone()
}

// gone returns an error when the process that was opened has exited or replaced its
// program. Its ID may be another process's by now, so what was read is then void.
func (p *Process) gone() error {
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
	proc, err := procfs.NewProc(pid)
	if err == nil {
		var maps []*procfs.ProcMap
		if maps, err = proc.ProcMaps(); err == nil {
			files := maps[:0]
			for _, m := range maps {
				if strings.HasPrefix(m.Pathname, "/") {
					files = append(files, m)
				}
			}
			return files, nil
		}
	}
	return nil, fmt.Errorf("read mappings: %w", procError(err))
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
	// The path may lead to a newer file of the same name, which would be another build.
	path = filepath.Join("/proc", strconv.Itoa(pid), "root", m.Pathname)
	if f, err = os.Open(path); err != nil {
		return "", nil, procError(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return "", nil, err
	}
	if st.Ino != m.Inode {
		f.Close()
		return "", nil, fmt.Errorf("%s was replaced on disk since it was mapped; reading the mapped one needs CAP_SYS_ADMIN", m.Pathname)
	}
	return path, f, nil
}

// foundInterpreter is the build in a process, and its mappings.
type foundInterpreter struct {
	in   *Interpreter
	path string
	maps []*procfs.ProcMap
}

// findInterpreter finds the mapped file with the eval loop: the executable, which may be
// any program that embeds CPython, or a library called libpython. The result is not
// nil when a build was found that is not supported.
func findInterpreter(pid int, maps []*procfs.ProcMap) (*foundInterpreter, error) {
	executable, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil, fmt.Errorf("read the program's path: %w", procError(err))
	}
	byPath := make(map[string][]*procfs.ProcMap)
	var candidates []string
	for _, m := range maps {
		base := filepath.Base(m.Pathname)
		if m.Pathname != executable && !(strings.HasPrefix(base, "libpython") && strings.Contains(base, ".so")) {
			continue
		}
		if byPath[m.Pathname] == nil {
			candidates = append(candidates, m.Pathname)
		}
		byPath[m.Pathname] = append(byPath[m.Pathname], m)
	}
	problem := fmt.Errorf("%s: %w", executable, ErrNotPython)
	for _, path := range candidates {
		open, f, err := openMapped(pid, byPath[path][0])
		if err != nil {
			problem = fmt.Errorf("open %s: %w", path, err)
			continue
		}
		in, err := readInterpreter(f, strings.TrimSuffix(path, deletedSuffix))
		f.Close()
		if in != nil {
			return &foundInterpreter{in, open, byPath[path]}, err
		}
		if !errors.Is(err, ErrNotPython) {
			problem = err
		}
	}
	return nil, problem
}

// loadBias compares where the file is mapped with where it was linked.
func (in *Interpreter) loadBias(maps []*procfs.ProcMap) (uint64, error) {
	if in.exec {
		return 0, nil
	}
	const mask = ^uint64(pageSize - 1)
	for _, m := range maps {
		for _, load := range in.loads {
			if uint64(m.Offset) == load.Off&mask && uint64(m.StartAddr) >= load.Vaddr&mask {
				return uint64(m.StartAddr) - load.Vaddr&mask, nil
			}
		}
	}
	return 0, fmt.Errorf("%w: no segment of %s is mapped at its start", ErrCorrupt, in.Path)
}

// A Summary is one process that runs CPython, readable or not.
type Summary struct {
	PID         int
	Interpreter *Interpreter // nil when not even the build could be read
	Err         error        // why OpenProcess fails; nil when the process can be read
}

// Processes returns all CPython processes that the caller can see, by process ID. A
// process that may not be read at all is listed only when its name says python.
func Processes() ([]Summary, error) {
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Summary
	for _, proc := range procs {
		if s, ok := summarize(proc); ok {
			found = append(found, s)
		}
	}
	return found, nil
}

func summarize(proc procfs.Proc) (Summary, bool) {
	s := Summary{PID: proc.PID}
	maps, err := readMaps(proc.PID)
	if err == nil && len(maps) == 0 {
		return s, false // a kernel thread or a zombie
	}
	if err == nil {
		var in *foundInterpreter
		if in, err = findInterpreter(proc.PID, maps); in != nil {
			s.Interpreter = in.in
		}
	}
	switch {
	case errors.Is(err, ErrNotPython), errors.Is(err, ErrNoProcess):
		return s, false
	case err != nil && s.Interpreter == nil:
		comm, commErr := proc.Comm()
		s.Err = fmt.Errorf("process %d: %w", proc.PID, err)
		return s, commErr == nil && strings.HasPrefix(comm, "python")
	case err != nil:
		s.Err = fmt.Errorf("process %d: %w", proc.PID, err)
		return s, true
	}
	p, err := OpenProcess(proc.PID)
	if err != nil {
		s.Err = err
		return s, !errors.Is(err, ErrNoProcess)
	}
	p.Close()
	return s, true
}
