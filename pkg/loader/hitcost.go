package loader

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"sca-probe/pkg/pyframes/evalloop"
)

// A HitCost is what one hit of an eval-loop probe costs the process that is probed: trap, program and
// map together.
type HitCost struct {
	Emulated time.Duration `json:"emulated_ns"` // where the kernel emulates the probed instruction
	Stepped  time.Duration `json:"stepped_ns"`  // where it steps over it
}

// total is what so many hits cost, stepped ones among them.
func (c HitCost) total(hits, stepped uint64) time.Duration {
	return time.Duration(hits-stepped)*c.Emulated + time.Duration(stepped)*c.Stepped
}

// MeasureHitCost measures on this machine, once: it probes two instructions of this very program with
// the program that counts, and passes them for some milliseconds. Kernels and processors differ by a
// factor of ten and more, by mitigations and by virtualisation.
//
// A hit is missed when the page that it is read from is being moved, which is no reason to count on none:
// then it measures again.
var MeasureHitCost = sync.OnceValues(func() (cost HitCost, err error) {
	for range attempts {
		if cost, err = measureHitCost(); !errors.Is(err, errMissed) {
			break
		}
	}
	return cost, err
})

var errMissed = errors.New("hits were missed")

// How often the probed instructions are passed, and how many times that is done, of which the median
// is taken; and how often to measure again.
const (
	emulatedPasses = 2000
	steppedPasses  = 200
	measurements   = 5
	attempts       = 5
)

func measureHitCost() (cost HitCost, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("measuring what a probe's hit costs: %w", err)
		}
	}()
	// Each pass starts one code object, as a hit at a RESUME does.
	frame := &probedFrame
	frame.code = uintptr(unsafe.Pointer(&frame.made))
	at := evalloop.Location{Base: frameRegister, Add: int32(unsafe.Offsetof(frame.instr))}
	table := &evalloop.Table{FrameCode: uint32(unsafe.Offsetof(frame.code)), LocationBits: 3}
	branch, ordinary := probedAddresses()
	for _, addr := range []uintptr{branch, ordinary} {
		offset, err := ownOffset(addr)
		if err != nil {
			return HitCost{}, err
		}
		table.Sites = append(table.Sites, evalloop.Site{
			Offset: offset, Emulated: addr == branch, Frame: evalloop.Location{Base: frameRegister}, Instr: at,
		})
	}
	layout := CodeLayout{Name: uint32(unsafe.Offsetof(frame.made.name)), FirstLine: uint32(unsafe.Offsetof(frame.made.firstLine))}
	counter, err := NewEvalLoopCounterOfAll(os.Getpid(), "/proc/self/exe", table, layout, 1)
	if err != nil {
		return HitCost{}, err
	}
	defer counter.Close()
	cost.Emulated = median(func() time.Duration { return pass(branch, frame, emulatedPasses) })
	cost.Stepped = median(func() time.Duration { return pass(ordinary, frame, steppedPasses) })
	starts, err := counter.Starts()
	if err != nil {
		return HitCost{}, err
	}
	const want = measurements * (emulatedPasses + steppedPasses)
	if got := starts[Code{Addr: uint64(frame.code)}]; got != want {
		return HitCost{}, fmt.Errorf("%w: %d of %d were counted", errMissed, got, want)
	}
	return cost, nil
}

// A madeFrame is laid out as MeasureHitCost tells the kernel's program.
type madeFrame struct {
	code  uintptr
	instr [2]uint8 // of a start
	made  struct {
		name      uint64
		firstLine uint32
	}
}

// probedFrame is in the program's data, as the kernel is told its address: Go moves what is on a stack.
var probedFrame madeFrame

// frameRegister is the register that holds the frame (r8) in hitcost_amd64.s.
const frameRegister = 8

func probedAddresses() (branch, ordinary uintptr)

// passes passes an instruction, with the frame in its register.
//
//go:noescape
func passes(instruction uintptr, frame *madeFrame, times int)

// pass returns the processor time that one pass takes.
func pass(instruction uintptr, frame *madeFrame, times int) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadTime()
	passes(instruction, frame, times)
	return (threadTime() - began) / time.Duration(times)
}

// threadTime is the processor time of this thread: other processes' turns do not count.
func threadTime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now) // cannot fail for this clock
	return time.Duration(now.Nano())
}

func median(measure func() time.Duration) time.Duration {
	all := make([]time.Duration, measurements)
	for i := range all {
		all[i] = measure()
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// ownOffset returns where in this program's file an address is.
func ownOffset(addr uintptr) (uint64, error) {
	self, err := procfs.Self()
	if err != nil {
		return 0, err
	}
	maps, err := self.ProcMaps()
	if err != nil {
		return 0, err
	}
	for _, m := range maps {
		if addr >= m.StartAddr && addr < m.EndAddr && m.Inode != 0 {
			return uint64(m.Offset) + uint64(addr-m.StartAddr), nil
		}
	}
	return 0, fmt.Errorf("%#x is in no file", addr)
}
