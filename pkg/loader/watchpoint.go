package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sca-probe/bpf"
	"sca-probe/pkg/pyframes/evalloop"
)

// MaxWatchpoints is how many addresses x86-64 hardware watches at once, in each thread.
const MaxWatchpoints = 4

// ErrWatchpoints says that hardware watchpoints tell nothing about a build.
var ErrWatchpoints = errors.New("hardware watchpoints count starts on CPython 3.12 only, where a code object's own evidence has gaps")

// A Watchpoint is a code object to watch.
type Watchpoint struct {
	Code Code
	// Resume is the address of its first RESUME, which its start executes even where other
	// instructions come before (a generator's creation executes those, and is no start).
	Resume uint64
}

// Watchpoints counts the starts of up to four code objects in all threads of a process, exactly, by
// letting the hardware watch an instruction of each. Other code runs at full speed; a start costs what
// a breakpoint does, some 9 µs.
//
// It is a witness of its own: it needs neither the handlers nor the thread state that an
// [EvalLoopCounter] reads. Threads that start later are watched too, from Linux 5.13 on.
type Watchpoints struct {
	objects bpf.WatchpointObjects
	pid     int
	points  []Watchpoint
	inherit bool
	threads map[int]bool // watched
	events  []int        // file descriptors
	missed  uint64       // threads that ran unwatched
}

// NewWatchpoints counts from now on.
func NewWatchpoints(pid int, table *evalloop.Table, layout CodeLayout, points []Watchpoint) (*Watchpoints, error) {
	if !table.Watchable {
		return nil, ErrWatchpoints
	}
	if len(points) > MaxWatchpoints {
		return nil, fmt.Errorf("%d watchpoints, more than the %d that the hardware has", len(points), MaxWatchpoints)
	}
	unlockMemory()
	w := &Watchpoints{pid: pid, points: points, inherit: threadsInherit(), threads: map[int]bool{}}
	spec, err := bpf.LoadWatchpoint()
	if err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&w.objects, nil); err != nil {
		return nil, fmt.Errorf("loading the program for watchpoints: %w", permission(err))
	}
	for i, point := range points {
		value := bpf.WatchpointPoint{
			Code: point.Code.Addr, Name: point.Code.Name, FirstLine: point.Code.FirstLine,
			FrameCode: table.FrameCode, FrameInstr: table.FrameInstr,
			CodeName: layout.Name, CodeFirstLine: layout.FirstLine,
			Disp: table.Dispatch.Disp, Base: uint8(table.Dispatch.Base), Memory: flag(table.Dispatch.Memory),
			Index: uint32(i),
		}
		if err := w.objects.Points.Update(point.Resume, &value, ebpf.UpdateNoExist); err != nil {
			return nil, errors.Join(fmt.Errorf("configuring the watchpoint at %#x: %w", point.Resume, err), w.Close())
		}
	}
	if err := w.watchThreads(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// watchThreads watches the threads that are not watched yet, until there are none.
func (w *Watchpoints) watchThreads() error {
	for {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.pid))
		if err != nil {
			return fmt.Errorf("listing the threads of process %d: %w", w.pid, err)
		}
		found := false
		for _, entry := range entries {
			tid, err := strconv.Atoi(entry.Name())
			if err != nil || w.threads[tid] {
				continue
			}
			found = true
			if err := w.watchThread(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("watching thread %d of process %d: %w", tid, w.pid, permission(err))
			}
			w.threads[tid] = true
		}
		// A thread that a watched one starts is watched from its first instruction on. Only one whose
		// parent was not watched yet can have been missed, and is in the list by now.
		if !found {
			return nil
		}
	}
}

// Bits of perf_event_attr that golang.org/x/sys/unix does not name (include/uapi/linux/perf_event.h).
const (
	inheritThread = 1 << 35 // a new thread inherits, a forked process does not
	removeOnExec  = 1 << 36
)

// breakpoint is an event at each access of the program's to the byte at an address, once it is enabled.
func breakpoint(addr uint64) unix.PerfEventAttr {
	return unix.PerfEventAttr{
		Type:    unix.PERF_TYPE_BREAKPOINT,
		Size:    uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Bp_type: 3, // HW_BREAKPOINT_RW
		Ext1:    addr,
		Ext2:    1, // byte
		Bits:    unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv | unix.PerfBitDisabled,
	}
}

// threadsInherit is a variable so that a test can cover older kernels on a new one.
var threadsInherit = func() bool { return true }

func (w *Watchpoints) watchThread(tid int) error {
	for _, point := range w.points {
		attr := breakpoint(point.Resume)
		attr.Sample = 1 // the program runs at each access
		if w.inherit {
			attr.Bits |= unix.PerfBitInherit | inheritThread | removeOnExec
		}
		fd, err := undisturbed(func() (int, error) {
			return unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		})
		if errors.Is(err, unix.EINVAL) && w.inherit {
			w.inherit = false
			return w.watchThread(tid)
		}
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("its hardware watchpoints are in use, by a debugger or another observer: %w", err)
		}
		if err != nil {
			return err
		}
		w.events = append(w.events, fd)
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, w.objects.ScaTouched.FD()); err != nil {
			return fmt.Errorf("attaching the program: %w", err)
		}
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
			return fmt.Errorf("enabling: %w", err)
		}
	}
	return nil
}

// Starts returns the starts so far.
func (w *Watchpoints) Starts() (map[Code]uint64, error) {
	starts := map[Code]uint64{}
	for i, point := range w.points {
		touches, err := w.touches(i)
		if err != nil {
			return nil, err
		}
		starts[point.Code] = touches.Starts
	}
	return starts, nil
}

func (w *Watchpoints) touches(i int) (sum bpf.WatchpointTouches, err error) {
	var perCPU []bpf.WatchpointTouches
	if err := w.objects.Touched.Lookup(uint32(i), &perCPU); err != nil {
		return sum, fmt.Errorf("reading watchpoint %d: %w", i, err)
	}
	for _, t := range perCPU {
		sum.Starts, sum.Others, sum.Faults = sum.Starts+t.Starts, sum.Others+t.Others, sum.Faults+t.Faults
	}
	return sum, nil
}

// Losses returns what could not be counted so far: Faults are accesses that could not be judged,
// Dropped those that the kernel did not hand to the program. Before Linux 5.13 it looks for threads
// that started since, watches them from now on, and counts them in Threads.
func (w *Watchpoints) Losses() (Losses, error) {
	var lost Losses
	var touched, judged uint64
	for _, fd := range w.events {
		var n [8]byte
		if _, err := unix.Read(fd, n[:]); err != nil {
			return Losses{}, fmt.Errorf("reading a watchpoint's counter: %w", err)
		}
		touched += binary.NativeEndian.Uint64(n[:])
	}
	for i := range w.points { // after the counters, so that accesses in between are no loss
		t, err := w.touches(i)
		if err != nil {
			return Losses{}, err
		}
		lost.Faults += t.Faults
		judged += t.Starts + t.Others + t.Faults
	}
	if touched > judged {
		lost.Dropped = touched - judged
	}
	if !w.inherit {
		known := len(w.threads)
		if err := w.watchThreads(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Losses{}, err
		}
		w.missed += uint64(len(w.threads) - known)
		lost.Threads = w.missed
	}
	return lost, nil
}

// Close takes the watchpoints away.
func (w *Watchpoints) Close() error {
	var errs []error
	for _, fd := range w.events {
		errs = append(errs, unix.Close(fd))
	}
	w.events = nil
	return errors.Join(append(errs, w.objects.Close())...)
}
