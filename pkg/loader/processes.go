package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sca-probe/bpf"
)

// A ProcessEventKind is what a process did.
type ProcessEventKind uint8

// The kinds of process events, as bpf/processes.bpf.c numbers them.
const (
	Forked   ProcessEventKind = iota + 1 // the process began
	Executed                             // it runs another program from now on
	Exited                               // its last thread ended
)

// String returns "forked", "executed" or "exited".
func (k ProcessEventKind) String() string {
	switch k {
	case Forked:
		return "forked"
	case Executed:
		return "executed"
	case Exited:
		return "exited"
	}
	return fmt.Sprintf("ProcessEventKind(%d)", uint8(k))
}

// A ProcessEvent is one event in the life of a process.
type ProcessEvent struct {
	Kind           ProcessEventKind
	Time           time.Duration // since the machine's boot, suspended time included
	PID, ParentPID int           // in the initial PID namespace
	NamespacePID   int           // in the PID namespace that the process is in
	Nested         bool          // that namespace is not the initial one
	StartTime      time.Duration // when the process began: with PID it names the process for good
	Name           string        // comm, of at most 15 bytes
}

// ProcessEvents tells of the processes of the whole machine, as they begin, run another program, and
// end. What it tells of is what happens after NewProcessEvents has returned: to miss no process, look
// for those that are there only then. When the last two threads of a process end at once, its exit may
// be told twice.
type ProcessEvents struct {
	objects bpf.ProcessesObjects
	links   []link.Link
	buffer[bpf.ProcessesProcessEvent]
}

// NewProcessEvents listens from now on. The kernel keeps as many events as bufferSize bytes hold, 72
// each (0: 1 MiB; else a page times a power of two), until they are read.
func NewProcessEvents(bufferSize int) (*ProcessEvents, error) {
	spec, err := bpf.LoadProcesses()
	if err != nil {
		return nil, err
	}
	if bufferSize != 0 {
		spec.Maps["process_events"].MaxEntries = uint32(bufferSize)
	}
	unlockMemory()
	p := &ProcessEvents{}
	if err := spec.LoadAndAssign(&p.objects, nil); err != nil {
		return nil, fmt.Errorf("loading the programs for process events: %w", permission(err))
	}
	if p.buffer, err = openBuffer[bpf.ProcessesProcessEvent](p.objects.ProcessEvents); err != nil {
		return nil, errors.Join(err, p.objects.Close())
	}
	for tracepoint, program := range map[string]*ebpf.Program{
		"sched_process_fork": p.objects.ScaForked,
		"sched_process_exec": p.objects.ScaExecuted,
		"sched_process_exit": p.objects.ScaExited,
	} {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: tracepoint, Program: program})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attaching to %s: %w", tracepoint, permission(err)), p.Close())
		}
		p.links = append(p.links, l)
	}
	return p, nil
}

// Read waits for the next event. It returns [ErrClosed] after Close.
func (p *ProcessEvents) Read() (ProcessEvent, error) {
	event, err := p.next()
	if err != nil {
		return ProcessEvent{}, err
	}
	return ProcessEvent{
		Kind: ProcessEventKind(event.Kind),
		Time: time.Duration(event.Time),
		PID:  int(event.Pid), ParentPID: int(event.ParentPid),
		NamespacePID: int(event.NamespacePid), Nested: event.Level > 0,
		StartTime: time.Duration(event.StartTime),
		Name:      text(event.Comm[:]),
	}, nil
}

// Losses returns what could not be told so far: events that found the buffer full. After a loss, look
// at the processes that are there.
func (p *ProcessEvents) Losses() (Losses, error) {
	dropped, err := sum(p.objects.Dropped)
	return Losses{Dropped: dropped}, err
}

// Close detaches, and ends a Read that waits.
func (p *ProcessEvents) Close() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, p.objects.Close(), p.reader.Close())...)
}
