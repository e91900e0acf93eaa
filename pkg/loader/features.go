package loader

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// A Feature is one thing that this package asks of the kernel.
type Feature string

// The features.
const (
	Programs       Feature = "eBPF programs"        // all of this package
	Uprobes        Feature = "uprobes"              // everything on the eval loop, and the static probes
	RingBuffer     Feature = "ring buffer"          // Follower, StaticProbes, ProcessEvents
	KernelTypes    Feature = "kernel types (BTF)"   // ProcessEvents
	ProcessTracing Feature = "process events"       // ProcessEvents, tried out
	Breakpoints    Feature = "hardware watchpoints" // Watchpoints
	AttachCookies  Feature = "attach cookies"       // without them, each probe loads a program of its own
	UprobeMulti    Feature = "uprobe_multi"         // without it, probes are attached one by one
)

// Features tries out each feature, in the order of the constants. An error that is [ErrPermission] says
// that this user cannot find out.
func Features() []FeatureState {
	unlockMemory()
	states := []FeatureState{
		{Programs, features.HaveProgramType(ebpf.Kprobe)},
		{Uprobes, haveUprobes()},
		{RingBuffer, features.HaveMapType(ebpf.RingBuf)},
		{KernelTypes, haveKernelTypes()},
		{ProcessTracing, haveProcessEvents()},
		{Breakpoints, haveBreakpoints()},
		{AttachCookies, features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie)},
		{UprobeMulti, features.HaveBPFLinkUprobeMulti()},
	}
	for i := range states {
		states[i].Err = permission(states[i].Err)
	}
	return states
}

// A FeatureState is whether the kernel has a feature: Err is nil when it does.
type FeatureState struct {
	Feature Feature
	Err     error
}

func haveUprobes() error {
	_, err := os.Stat("/sys/bus/event_source/devices/uprobe/type")
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the kernel has no CONFIG_UPROBE_EVENTS: %w", err)
	}
	return err
}

func haveKernelTypes() error {
	_, err := btf.LoadKernelSpec()
	return err
}

func haveProcessEvents() error {
	events, err := NewProcessEvents(0)
	if err != nil {
		return err
	}
	return events.Close()
}

// haveBreakpoints watches a byte of this program.
func haveBreakpoints() error {
	var pinned runtime.Pinner // the kernel is told its address, and Go moves what is on a stack
	watched := new(uint64)
	pinned.Pin(watched)
	defer pinned.Unpin()
	attr := breakpoint(uint64(uintptr(unsafe.Pointer(watched))))
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watching an address: %w", err)
	}
	return unix.Close(fd)
}
