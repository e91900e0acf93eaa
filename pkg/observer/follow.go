package observer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"sca-probe/pkg/loader"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
)

// FollowOptions say whom to follow, and what to tell of.
type FollowOptions struct {
	PID             int // 0: every process on this node, those that start later included
	Package, Module string
	// Attached, where not nil, is told when the probes are in place, of how many processes.
	Attached func(processes int)
	// Tell is told of each event.
	Tell func(FollowEvent)
}

// A FollowEventKind says what an event tells.
type FollowEventKind string

// The kinds of events.
const (
	FirstExecution  FollowEventKind = "first-execution"
	ProcessFollowed FollowEventKind = "process-followed"
	ProcessRefused  FollowEventKind = "process-refused" // Detail says why
	ProcessEnded    FollowEventKind = "process-ended"
	EventsLost      FollowEventKind = "events-lost" // Detail says what, in all until then
)

// A FollowEvent is one thing that happened.
type FollowEvent struct {
	Kind FollowEventKind `json:"event"`
	Time time.Time       `json:"time"`
	PID  int             `json:"pid,omitempty"`
	TID  int             `json:"tid,omitempty"`
	// Function is that of a FirstExecution.
	Function *FunctionID `json:"function,omitempty"`
	Detail   string      `json:"detail,omitempty"`
}

// The intervals at which a follower looks at processes and losses, and for hosts that have loaded
// libpython only after their start.
const (
	followInterval = 100 * time.Millisecond
	rescanInterval = 10 * time.Second
)

// A process that starts cannot be read at once. What it starts meanwhile is kept, so that its modules and
// distributions can be told, for so long and so many of all processes together.
const (
	maxHold = 10 * time.Second
	maxHeld = 1 << 18
)

// firstRetry and lastRetry are how long to wait before a process is tried again, doubled each time.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 500 * time.Millisecond
)

// What the kernel keeps when all processes are followed: 32 MiB for some 180,000 events, as two hundred
// processes have when they start at once, and 47 MiB for the functions that were told of.
var optionsForAll = loader.FollowOptions{BufferSize: 32 << 20, MaxCodes: 1 << 19}

// Follow tells of the first start of each function, as it happens, until ctx ends, or the one process
// that is followed. What ran before is told of when it starts again, if the interpreter still shows it.
func Follow(ctx context.Context, options FollowOptions) error {
	var bounds loader.FollowOptions
	if options.PID == 0 {
		bounds = optionsForAll
	}
	follower, err := loader.NewFollower(bounds)
	if err != nil {
		return err
	}
	defer follower.Close()
	f := &follow{
		FollowOptions: options, follower: follower, origins: newOrigins(),
		processes: map[int]*followed{}, builds: map[string]error{}, later: map[int][]time.Time{},
	}
	defer f.close()
	if options.PID != 0 {
		return f.one(ctx)
	}
	return f.all(ctx)
}

type follow struct {
	FollowOptions
	follower  *loader.Follower
	finder    pyframes.Finder
	origins   *origins
	events    *loader.ProcessEvents // of all processes
	ahead     []loader.ProcessEvent // read, and not acted upon: what was before is yet to be read
	processes map[int]*followed
	held      int                 // of all processes
	builds    map[string]error    // what became of attaching to a file, by its device and inode
	later     map[int][]time.Time // when to look at processes that started a program just now
	losses    loader.Losses
}

// A followed process: one that was taken in, or of which first starts are known.
type followed struct {
	process *pyframes.Process // nil until it can be read
	names   *names            // nil until what is installed can be read
	refused bool              // it cannot be read: what the kernel tells is all

	held     []loader.First // until there are names
	since    time.Time      // when the first of them came
	retry    time.Time      // when to try again
	interval time.Duration  // and how long to wait then
}

func (f *follow) close() {
	for _, p := range f.processes {
		p.close()
	}
	if f.events != nil {
		f.events.Close()
	}
}

func (p *followed) close() {
	if p.process != nil {
		p.process.Close()
	}
}

func (f *follow) tell(e FollowEvent) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	f.Tell(e)
}

func (f *follow) one(ctx context.Context) error {
	process, err := open(ctx, f.PID)
	if err != nil {
		return err
	}
	f.processes[f.PID] = &followed{process: process}
	if f.Package != "" {
		if _, err := waitForNames(ctx, process, f.origins, f.Package); err != nil {
			return err
		}
	}
	if err := f.attach(f.PID, process); err != nil {
		return orGone(process, fmt.Errorf("process %d cannot be followed: %w", f.PID, err))
	}
	if f.Attached != nil {
		f.Attached(1)
	}
	for ctx.Err() == nil {
		if _, err := f.turn(); err != nil {
			return err
		}
		if err := process.Gone(); err != nil {
			if errors.Is(err, pyframes.ErrNoProcess) {
				// What it started since the last look.
				if err := f.finish(); err != nil {
					return err
				}
				f.tell(FollowEvent{Kind: ProcessEnded, PID: f.PID, Detail: err.Error()})
				return nil
			}
			return err
		}
	}
	return f.finish()
}

func (f *follow) all(ctx context.Context) error {
	var err error
	// Before the list, so that no process falls in between.
	if f.events, err = loader.NewProcessEvents(0); err != nil {
		return err
	}
	if err := f.scan(ctx); err != nil {
		return err
	}
	if f.Attached != nil {
		f.Attached(len(f.processes))
	}
	scanned := time.Now()
	for ctx.Err() == nil {
		if _, err := f.turn(); err != nil {
			return err
		}
		if time.Since(scanned) > rescanInterval {
			if err := f.scan(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			scanned = time.Now()
		}
	}
	return f.finish()
}

// finish tells what is left to tell.
func (f *follow) finish() error {
	end, err := bootTime()
	if err != nil {
		return err
	}
	for {
		told, err := f.turn()
		if err != nil {
			return err
		}
		if told >= end {
			break
		}
	}
	for pid, p := range f.processes {
		if len(p.held) == 0 {
			continue
		}
		p.retry = time.Time{} // it is the last time
		if err := f.prepare(pid, p); err != nil {
			return err
		}
		f.release(p, math.MaxInt64)
	}
	return nil
}

// attach probes what a process runs; with pid 0 for all that run it, once.
func (f *follow) attach(pid int, process *pyframes.Process) error {
	path := process.BinaryPath()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	id := fmt.Sprint(st.Dev, ":", st.Ino)
	if err, known := f.builds[id]; known {
		return err
	}
	in := process.Interpreter()
	table, err := evalloop.Find(path, in.Version.Major, in.Version.Minor)
	if err == nil {
		err = f.follower.Follow(pid, path, table, loader.CodeLayout(process.CodeOffsets()))
	}
	if err == nil || errors.Is(err, evalloop.ErrUnknownBuild) {
		f.builds[id] = err
	}
	return err
}

// scan takes in the processes that there are.
func (f *follow) scan(ctx context.Context) error {
	all, err := procfs.AllProcs()
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for pid, p := range f.processes {
		// The event of its end may have been lost.
		if p.process != nil && errors.Is(p.process.Gone(), pyframes.ErrNoProcess) {
			if err := f.drop(pid, "it exited", math.MaxInt64); err != nil {
				return err
			}
		}
	}
	for _, process := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := f.processes[process.PID]
		if p == nil {
			p = &followed{}
		}
		if p.process != nil {
			continue
		}
		if _, is := f.finder.Look(process.PID); !is {
			continue
		}
		if err := f.takeIn(process.PID, p); err != nil {
			return err
		}
	}
	return nil
}

// takeIn follows a process, if it is one that can be followed; p is what is known of it. The error is one
// that ends all.
func (f *follow) takeIn(pid int, p *followed) error {
	process, err := f.finder.Open(pid)
	switch {
	case errors.Is(err, pyframes.ErrNoProcess), errors.Is(err, pyframes.ErrNotPython), notYet(err):
		return nil
	case err == nil:
		err = f.attach(0, process)
	}
	if errors.Is(err, loader.ErrPermission) {
		process.Close()
		return err
	}
	if err != nil {
		if process != nil {
			process.Close()
		}
		p.refused = true
		if f.builds[refused(pid)] == nil {
			f.builds[refused(pid)] = err
			f.tell(FollowEvent{Kind: ProcessRefused, PID: pid, Detail: err.Error()})
		}
		return nil
	}
	p.process, p.refused, p.interval = process, false, 0
	f.processes[pid] = p
	in := process.Interpreter()
	f.tell(FollowEvent{Kind: ProcessFollowed, PID: pid, Detail: fmt.Sprintf("Python %s, %s", in.Version, in.Path)})
	return nil
}

// refused is the key of a process that was refused, told of once.
func refused(pid int) string { return fmt.Sprint("process ", pid) }

// drop forgets a process that ended or replaced its program at a time, but not what it started since.
func (f *follow) drop(pid int, why string, at time.Duration) error {
	delete(f.later, pid)
	delete(f.builds, refused(pid))
	p := f.processes[pid]
	if p == nil {
		return nil
	}
	f.release(p, at)
	p.close()
	delete(f.processes, pid)
	if len(p.held) > 0 {
		f.processes[pid] = &followed{held: p.held, since: p.since}
	}
	if p.process != nil {
		f.tell(FollowEvent{Kind: ProcessEnded, PID: pid, Detail: why})
	}
	return f.follower.Forget(pid, at)
}

// A new program has loaded libpython some time after its start.
var lookAfter = []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}

// turn tells of what happened in an interval, in the order of time, and returns until when it has told.
func (f *follow) turn() (time.Duration, error) {
	if err := f.readProcesses(); err != nil {
		return 0, err
	}
	// What processes started until then is read after it: the first starts of one that ended come before its end.
	firsts, told, err := f.read()
	if err != nil {
		return 0, err
	}
	for _, first := range firsts {
		if err := f.act(first.Time); err != nil {
			return 0, err
		}
		if err := f.tellFirst(first); err != nil {
			return 0, err
		}
	}
	if err := f.act(told); err != nil {
		return 0, err
	}
	if err := f.tryAgain(); err != nil {
		return 0, err
	}
	return told, f.tellLosses()
}

// read reads first starts, for an interval at most, and returns until when it has read all.
func (f *follow) read() (firsts []loader.First, until time.Duration, err error) {
	end := time.Now().Add(followInterval)
	f.follower.SetDeadline(end)
	for len(firsts) < maxHeld && (len(firsts)%1024 != 1023 || time.Now().Before(end)) {
		first, err := f.follower.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return firsts, math.MaxInt64, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("reading first executions: %w", err)
		}
		firsts, until = append(firsts, first), first.Time
	}
	return firsts, until, nil
}

// readProcesses reads what processes did since it was last called.
func (f *follow) readProcesses() error {
	if f.events == nil {
		return nil
	}
	f.events.SetDeadline(time.Now())
	for {
		e, err := f.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the events of processes: %w", err)
		}
		f.ahead = append(f.ahead, e)
	}
}

// act acts upon what processes did until a time.
func (f *follow) act(until time.Duration) error {
	for len(f.ahead) > 0 && f.ahead[0].Time <= until {
		e := f.ahead[0]
		f.ahead = f.ahead[1:]
		var err error
		switch e.Kind {
		case loader.Exited:
			err = f.drop(e.PID, "it exited", e.Time)
		case loader.Executed:
			err = f.drop(e.PID, "it runs another program", e.Time)
			fallthrough
		case loader.Forked:
			for _, after := range lookAfter {
				f.later[e.PID] = append(f.later[e.PID], time.Now().Add(after))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tryAgain looks at the processes that could not be read before, for an interval at most.
func (f *follow) tryAgain() error {
	end := time.Now().Add(followInterval)
	for pid, times := range f.later {
		now := time.Now()
		if now.After(end) {
			return nil
		}
		if f.processes[pid] != nil { // its first starts are known already
			delete(f.later, pid)
			continue
		}
		if now.Before(times[0]) {
			continue
		}
		if err := f.takeIn(pid, &followed{}); err != nil {
			return err
		}
		if f.later[pid] = times[1:]; len(times) == 1 {
			delete(f.later, pid)
		}
	}
	for pid, p := range f.processes {
		if time.Now().After(end) {
			return nil
		}
		if len(p.held) == 0 {
			continue
		}
		if err := f.prepare(pid, p); err != nil {
			return err
		}
		if p.names != nil || p.refused || time.Since(p.since) > maxHold {
			f.release(p, math.MaxInt64)
		}
	}
	return nil
}

// prepare gets to know what names the functions of a process, if it is time to try.
func (f *follow) prepare(pid int, p *followed) error {
	if p.names != nil || p.refused || time.Now().Before(p.retry) {
		return nil
	}
	if p.process == nil {
		if err := f.takeIn(pid, p); err != nil {
			return err
		}
	}
	if p.process != nil {
		if names, err := newNames(p.process, f.origins); err == nil {
			p.names = names
			return nil
		}
	}
	p.interval = min(max(2*p.interval, firstRetry), lastRetry)
	p.retry = time.Now().Add(p.interval)
	return nil
}

// release tells of what a process started until a time.
func (f *follow) release(p *followed, until time.Duration) {
	held := p.held
	p.held = nil
	for _, first := range held {
		if first.Time > until {
			p.held = append(p.held, first)
			continue
		}
		f.held--
		f.tellNamed(p, first)
	}
}

func (f *follow) tellLosses() error {
	lost, err := f.follower.Losses()
	if err != nil {
		return fmt.Errorf("reading the losses: %w", err)
	}
	if f.events != nil {
		processes, err := f.events.Losses()
		if err != nil {
			return fmt.Errorf("reading the losses: %w", err)
		}
		lost.Dropped += processes.Dropped
	}
	if lost != f.losses {
		f.losses = lost
		f.tell(FollowEvent{Kind: EventsLost, Detail: lost.String()})
	}
	return nil
}

// tellFirst tells of a first start, or holds it until its process can be read.
func (f *follow) tellFirst(first loader.First) error {
	p := f.processes[first.PID]
	if p == nil {
		p = &followed{}
		f.processes[first.PID] = p
	}
	if len(p.held) == 0 {
		if err := f.prepare(first.PID, p); err != nil {
			return err
		}
		if p.names != nil || p.refused || f.held >= maxHeld {
			f.tellNamed(p, first)
			return nil
		}
		p.since = time.Now()
	}
	p.held = append(p.held, first)
	f.held++
	return nil
}

func (f *follow) tellNamed(p *followed, first loader.First) {
	at := sinceBoot(first.Time)
	id := p.name(first, at)
	if id.other || !inModule(id.Module, f.Module) || f.Package != "" && !isPackage(id.Package, f.Package) {
		return
	}
	f.tell(FollowEvent{Kind: FirstExecution, Time: at, PID: first.PID, TID: first.TID, Function: &id})
}

// isPackage reports whether "requests 2.31.0" is of the distribution with a name.
func isPackage(distribution, name string) bool {
	got, _, _ := strings.Cut(distribution, " ")
	return normalised(got) == normalised(name)
}

// name names a function by what the kernel read while it started, or where that is not all, by the
// process's memory if the function is still there.
func (p *followed) name(first loader.First, at time.Time) FunctionID {
	if p.names != nil && !first.Named() {
		if id, ok := p.names.of(first.Code); ok {
			return id
		}
	}
	var id FunctionID
	if p.names != nil {
		id = p.names.place(first.Filename, at)
	} else {
		id = FunctionID{Module: new(origin).module(first.Filename), File: first.Filename}
	}
	id.QualName, id.FirstLine, id.other = first.Name, int(first.Code.FirstLine), !isFunction(first)
	return id
}

// isFunction reports whether what started is a function, not the body of a module or class.
func isFunction(first loader.First) bool { return pyframes.Code{Flags: first.Flags}.IsFunction() }

// sinceBoot turns a time since boot into one of the wall clock, as that is now.
func sinceBoot(at time.Duration) time.Time {
	now, err := bootTime()
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(at - now)
}

// bootTime is the time since boot, suspended time included.
func bootTime() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("reading the time since boot: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
