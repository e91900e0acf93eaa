package patch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"sca-probe/pkg/patch/bytecode"
	"sca-probe/pkg/rc"
)

// State is what has become of a target.
type State string

// The states of a target in this process.
const (
	Pending    State = "pending"    // its module is not imported yet
	Unresolved State = "unresolved" // it cannot be instrumented: Reason says why
	Patched    State = "patched"
	FirstHit   State = "hit"      // it was hit in first-hit mode, and runs its original code since
	Reverted   State = "reverted" // it is no longer desired
)

// Status is a target's state as it is reported.
type Status struct {
	Target     rc.Target `json:"target"`
	State      State     `json:"state"`
	Reason     string    `json:"reason,omitempty"`
	Mode       rc.Mode   `json:"mode,omitempty"`
	Package    string    `json:"package,omitempty"`
	Advisories []string  `json:"advisories,omitempty"`
	// Hook is the id() of the hook that counts the target's hits, 0 without one.
	Hook uint64 `json:"hook,omitempty"`
}

const (
	// recheck is how often targets are compared with what is in place. It finds what no event tells:
	// a function that was replaced, a name that appeared, a module put into sys.modules by hand.
	recheck = time.Second
	// recheckMost bounds how many that is each time: 3 µs each with the GIL.
	recheckMost = 256
	// firstWait is how long an import may be held up for the first desired set. The importing thread
	// waits up to a second for all that it waits for.
	firstWait = 200 * time.Millisecond
	// batch is how many targets are worked on at once. An import waits for a batch at most.
	batch = 64
	// maxTries is how often a batch's targets are tried: several may name one function, in modes that differ.
	maxTries = 3
	// settle is how long after an update what it took besides is given back to the system. A file is read again for
	// up to two seconds after it changed.
	settle = 3 * time.Second
	// maxReverted bounds the withdrawn targets whose last counts are kept.
	maxReverted = rc.MaxTargets
)

type entry struct {
	want    *rc.Instrumentation // in the desired set, while it is desired
	desired bool
	state   State
	reason  string
	hook    Hook // kept after a revert, for its counts
}

// wasHit tells whether what a first-hit target was asked has been answered.
func (r *Reconciler) wasHit(e *entry) bool {
	return e.want.Mode == rc.FirstHit && e.state != Reverted && e.hook != nil && r.host.State(e.hook) == HitOnce
}

// A Reconciler keeps a process's functions as the desired set wants them.
type Reconciler struct {
	host    Host
	version bytecode.Version
	log     logrus.FieldLogger
	desired chan struct{} // closed once the first desired set is in place

	// mu guards the fields below. It is held during the host's turns for one batch, which run one
	// after the other anyway.
	mu        sync.Mutex
	entries   map[rc.Target]*entry
	order     []*entry // of the desired targets
	byModule  map[string][]*entry
	next      int    // where in order the next recheck begins
	imports   []Hook // in the import system, while a module is watched
	leftovers []Hook // of no target any more, and still to be taken out
	spare     []Hook // of no target any more, and out: their references are to be given back
	deaf      bool   // it was said that imports are not heard of
}

// NewReconciler returns a Reconciler for an interpreter of the given version.
func NewReconciler(host Host, version bytecode.Version, log logrus.FieldLogger) *Reconciler {
	return &Reconciler{host: host, version: version, log: log, desired: make(chan struct{}), entries: map[rc.Target]*entry{}}
}

// Run follows updates until they end, ctx ends or the interpreter stops.
func (r *Reconciler) Run(ctx context.Context, updates <-chan rc.Update) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := r.inherit(); err != nil {
		return
	}
	events := make(chan struct{})
	go func() {
		runtime.LockOSThread() // a thread that has turns is known to the interpreter
		defer close(events)
		r.followEvents()
	}()
	ticks := time.NewTicker(recheck)
	defer ticks.Stop()
	settled := time.NewTimer(settle)
	defer settled.Stop()
	for first := true; ; {
		select {
		case <-ctx.Done():
			return
		case <-events: // the interpreter is going away
			return
		case update, open := <-updates:
			if !open {
				return
			}
			r.guard("applying Remote Configuration", func() { r.update(update) })
			update.Ack(nil)
			settled.Reset(settle)
			if first {
				close(r.desired)
				r.host.Ready()
				first = false
			}
		case <-ticks.C:
			r.guard("comparing what is in place", r.recheck)
		case <-settled.C:
			debug.FreeOSMemory()
		}
	}
}

// guard ends a panic, as of memory that ran out: an engine that fails must not take the application with
// it. What was left undone is found when targets are compared with what is in place.
func (r *Reconciler) guard(doing string, work func()) {
	defer func() {
		if failure := recover(); failure != nil {
			r.host.Add(Failures, 1)
			r.log.Debugf("the engine failed while %s: %v\n%s", doing, failure, debug.Stack())
		}
	}()
	work()
}

// locked works with the entries.
func (r *Reconciler) locked(work func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	work()
}

// inherit takes over what a reconciler before this one left, in the process that this one was forked from.
func (r *Reconciler) inherit() error {
	living, err := r.host.Living()
	if err != nil {
		return err
	}
	var old []Hook
	for _, l := range living {
		want := &rc.Instrumentation{Target: l.Target, Mode: r.host.Mode(l.Hook)}
		e := &entry{want: want, hook: l.Hook, state: Patched}
		if r.host.State(l.Hook) == TakenOut {
			old = append(old, l.Hook)
			continue
		}
		if before := r.entries[l.Target]; before != nil {
			old = append(old, l.Hook) // of a function that was replaced since
			continue
		}
		r.entries[l.Target] = e
	}
	r.drop(old)
	return nil
}

func (r *Reconciler) drop(hooks []Hook) {
	if len(hooks) > 0 {
		r.host.Drop(hooks)
	}
}

func (r *Reconciler) followEvents() {
	for {
		event := r.host.Next()
		switch event.Kind {
		case Stopped:
			event.Done()
			return
		case Imported:
			r.guard("patching what was imported", func() { r.imported(event.Module) })
		case Asked:
			r.guard("saying what it does", func() { r.answer(event) })
		case Hit:
			r.guard("taking out what was hit", r.takeOutHit)
		}
		event.Done()
	}
}

func (r *Reconciler) imported(module string) {
	// In a forked child the import may be what woke the engine, before it knows what is desired.
	select {
	case <-r.desired:
	case <-time.After(firstWait):
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log.WithField("module", module).Debug("imported")
	for entries := range slices.Chunk(r.byModule[module], batch) {
		r.apply(targetsOf(entries))
	}
	r.count()
}

// takeOutHit reverts the first-hit hooks that were hit and could not revert themselves.
func (r *Reconciler) takeOutHit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var hit []*entry
	for _, e := range r.entries {
		if e.state == Patched && r.host.State(e.hook) == HitOnce {
			hit = append(hit, e)
		}
	}
	r.answered(hit)
	r.count()
}

// answered notes that first-hit hooks were hit, once they are out: those of functions that share code
// cannot take themselves out. One that fails is tried again.
func (r *Reconciler) answered(hit []*entry) {
	hooks := make([]Hook, len(hit))
	for i, e := range hit {
		hooks[i] = e.hook
	}
	for i, out := range r.revert(hooks) {
		if out {
			hit[i].state = FirstHit
		}
	}
}

// update makes the desired set of an update the one in place.
func (r *Reconciler) update(update rc.Update) {
	r.host.Add(Updates, 1)
	if update.Err != nil {
		r.host.Add(UpdatesRefused, 1)
		r.log.WithError(update.Err).Warn("Remote Configuration was refused; the last good targets stay")
	}
	r.desire(update.Set)
	r.inBatches(targetsOf(r.order), r.apply)
	r.locked(func() { r.log.WithFields(r.count()).Debug("Remote Configuration was applied") })
}

// desire notes what is desired, and reverts what no longer is.
func (r *Reconciler) desire(set rc.DesiredSet) {
	r.locked(func() {
		before := r.order
		r.order = make([]*entry, 0, len(set.Targets))
		r.byModule, r.next = map[string][]*entry{}, 0
		for _, e := range before {
			e.desired = false
		}
		for i := range set.Targets {
			want := &set.Targets[i]
			e := r.entries[want.Target]
			if e == nil {
				e = &entry{state: Pending}
				r.entries[want.Target] = e
			}
			e.want, e.desired = want, true
			r.order = append(r.order, e)
			r.byModule[want.Module] = append(r.byModule[want.Module], e)
		}
		for _, e := range before {
			if !e.desired { // one that is withdrawn must not keep the whole set that it was in
				own := *e.want
				e.want = &own
			}
		}
		r.watch()
	})
	r.withdrawUndesired()
	r.forget()
}

// withdrawUndesired reverts the targets that are in place, or were, and are not desired.
func (r *Reconciler) withdrawUndesired() {
	var withdrawn []rc.Target
	r.locked(func() {
		r.takeOutLeftovers()
		for target, e := range r.entries {
			if !e.desired && e.state != Reverted {
				withdrawn = append(withdrawn, target)
			}
		}
	})
	slices.SortFunc(withdrawn, func(a, b rc.Target) int { return strings.Compare(a.String(), b.String()) })
	r.inBatches(withdrawn, r.withdraw)
}

// watch hears of the imports of the modules that targets are in.
func (r *Reconciler) watch() {
	modules := make([]string, 0, len(r.byModule))
	for module := range r.byModule {
		modules = append(modules, module)
	}
	r.host.Watch(modules)
	switch {
	case len(modules) > 0 && r.imports == nil:
		hooks, err := r.host.Imports(r.version)
		if errors.Is(err, ErrStopped) {
			return
		}
		if err != nil {
			if r.deaf {
				return
			}
			r.deaf = true
			r.log.WithError(err).Warn("imports are not heard of: targets in modules that are imported later are patched up to a second after")
			return
		}
		r.imports = hooks
	case len(modules) == 0 && r.imports != nil && !slices.Contains(r.revert(r.imports), false):
		r.drop(r.imports)
		r.imports = nil
	}
}

// inBatches lets an import have its turn between two batches.
func (r *Reconciler) inBatches(targets []rc.Target, work func([]rc.Target)) {
	for some := range slices.Chunk(targets, batch) {
		r.locked(func() { work(some) })
	}
	r.locked(func() { r.count() })
}

func (r *Reconciler) recheck() {
	r.withdrawUndesired()
	var some []rc.Target
	r.locked(func() {
		if len(r.order) > 0 && r.imports == nil {
			r.watch()
		}
		for range min(len(r.order), recheckMost) {
			some = append(some, r.order[r.next%len(r.order)].want.Target)
			r.next++
		}
	})
	r.inBatches(some, r.apply)
}

func targetsOf(entries []*entry) []rc.Target {
	targets := make([]rc.Target, len(entries))
	for i, e := range entries {
		targets[i] = e.want.Target
	}
	return targets
}

// apply makes desired targets patched, or notes why they are not.
func (r *Reconciler) apply(targets []rc.Target) {
	var read []rc.Target
	var hit []*entry
	for _, target := range targets {
		e := r.entries[target]
		if e == nil || !e.desired {
			continue
		}
		if r.wasHit(e) {
			if e.state != FirstHit {
				hit = append(hit, e)
			}
			continue
		}
		read = append(read, target)
	}
	r.answered(hit)
	for tries := 1; len(read) > 0; tries++ {
		read = r.patch(read, tries == maxTries)
	}
	r.takeOutLeftovers()
}

// patch reads targets and patches those that are not. It returns those to try once more: taken out, to
// be patched in another mode, or changed since they were read.
func (r *Reconciler) patch(targets []rc.Target, lastTry bool) (again []rc.Target) {
	var swaps []Swap
	var unused []Function
	var otherMode []Hook
	for i, reading := range r.host.Read(targets) {
		target := targets[i]
		e := r.entries[target]
		switch {
		case reading.Err != nil:
			r.unresolved(target, reading.Err)
		case reading.Hook == nil && r.wasHit(e): // since it was looked at last
			unused = append(unused, reading.Function)
			e.state = FirstHit
		case reading.Hook == nil:
			code, failure := r.rewrite(reading.Function)
			if failure != nil {
				unused = append(unused, reading.Function)
				r.unresolved(target, failure)
				continue
			}
			swaps = append(swaps, Swap{target, e.want.Mode, reading.Function, code})
		case !lastTry && (r.wrongMode(target, reading.Hook) || r.host.State(reading.Hook) == TakenOut): // put back by something else
			again = append(again, target)
			otherMode = append(otherMode, reading.Hook)
			r.spare = append(r.spare, reading.Hook)
		case e.hook != nil && e.hook == reading.Hook:
			e.state, e.reason = Patched, ""
			r.spare = append(r.spare, reading.Hook)
		default: // another target names the same function
			r.set(target, Patched, "", reading.Hook)
		}
	}
	r.revert(otherMode)
	if len(unused) > 0 {
		r.host.Release(unused)
	}
	if len(swaps) > 0 {
		for i, result := range r.host.Swap(swaps) {
			target := swaps[i].Target
			if errors.Is(result.Err, ErrChanged) && !lastTry {
				again = append(again, target) // perhaps by another target of this batch
				continue
			}
			if result.Err != nil {
				r.unresolved(target, result.Err)
				continue
			}
			r.log.WithField("target", target.String()).Debug("patched")
			r.set(target, Patched, "", result.Hook)
		}
	}
	return again
}

// rewrite transforms a function's code. No bug in that is worth the application's life.
func (r *Reconciler) rewrite(function Function) (code bytecode.Code, err error) {
	defer func() {
		if failure := recover(); failure != nil {
			r.host.Add(Failures, 1)
			r.log.Debugf("%v\n%s", failure, debug.Stack())
			err = fmt.Errorf("%w: the transform failed: %v", ErrFailed, failure)
		}
	}()
	injectFault("rewrite")
	return bytecode.InsertPrologue(r.version, function.Code())
}

// wrongMode reports whether a hook in place must make way for one in the target's mode. Where several
// targets name one function, counting wins: it says more.
func (r *Reconciler) wrongMode(target rc.Target, hook Hook) bool {
	want := r.entries[target].want.Mode
	if want == r.host.Mode(hook) {
		return false
	}
	if want == rc.Count {
		return true
	}
	return !r.shared(hook, target)
}

// shared reports whether another desired target than this one is patched with the hook.
func (r *Reconciler) shared(hook Hook, than rc.Target) bool {
	for target, e := range r.entries {
		if target != than && e.desired && e.state == Patched && e.hook == hook {
			return true
		}
	}
	return false
}

// unresolved notes why a target is not patched.
func (r *Reconciler) unresolved(target rc.Target, err error) {
	if errors.Is(err, ErrStopped) {
		return
	}
	e := r.entries[target]
	state := Unresolved
	if errors.Is(err, ErrNotImported) {
		state = Pending
	}
	if e.state == state && e.reason == err.Error() {
		return
	}
	r.log.WithField("target", target.String()).WithError(err).Debug("not patched")
	if state == Pending && e.hook != nil {
		// Taken out of sys.modules: whoever has the function still may go on calling it.
		e.state, e.reason = state, err.Error()
		return
	}
	r.set(target, state, err.Error(), nil)
}

// set gives a target's entry a state and a hook, or none. A function that the name no longer leads to, as after a
// reload, gets its own code back, unless another target names it still.
func (r *Reconciler) set(target rc.Target, state State, reason string, hook Hook) {
	e := r.entries[target]
	old, was := e.hook, e.state
	e.hook, e.state, e.reason = hook, state, reason
	if old == nil {
		return
	}
	if (was == Patched || was == Pending) && !r.shared(old, target) {
		r.leftovers = append(r.leftovers, old)
		return
	}
	r.spare = append(r.spare, old)
}

// takeOutLeftovers reverts the hooks that no target has any more, and gives back what is spare. One that fails is tried again.
func (r *Reconciler) takeOutLeftovers() {
	hooks := r.leftovers
	r.leftovers = nil
	for i, out := range r.revert(hooks) {
		if out {
			r.spare = append(r.spare, hooks[i])
		} else {
			r.leftovers = append(r.leftovers, hooks[i])
		}
	}
	r.drop(r.spare)
	r.spare = nil
}

// withdraw reverts targets and keeps their last counts.
func (r *Reconciler) withdraw(targets []rc.Target) {
	var hooks []Hook
	var inPlace []*entry
	inUse := map[Hook]bool{}
	for _, e := range r.order {
		if e.state == Patched {
			inUse[e.hook] = true
		}
	}
	for _, target := range targets {
		e := r.entries[target]
		shared := e.hook != nil && inUse[e.hook]
		switch {
		case e.hook == nil || shared:
			delete(r.entries, target)
			if shared {
				r.spare = append(r.spare, e.hook)
			}
			continue
		case e.state == Patched || e.state == Pending:
			hooks, inPlace = append(hooks, e.hook), append(inPlace, e)
			continue
		}
		e.state, e.reason = Reverted, ""
	}
	for i, out := range r.revert(hooks) {
		if out { // else it is tried again
			e := inPlace[i]
			e.state, e.reason = Reverted, ""
			r.log.WithField("target", e.want.Target.String()).Debug("reverted")
		}
	}
	r.takeOutLeftovers()
}

// revert takes hooks out, and reports of each whether it is. A function whose code is another's by now has nothing of ours to revert.
func (r *Reconciler) revert(hooks []Hook) (out []bool) {
	if len(hooks) == 0 {
		return nil
	}
	for _, err := range r.host.Revert(hooks) {
		out = append(out, err == nil || errors.Is(err, ErrChanged))
		if err != nil && !errors.Is(err, ErrChanged) && !errors.Is(err, ErrStopped) {
			r.log.WithError(err).Debug("not reverted")
		}
	}
	return out
}

// forget drops the counts of withdrawn targets past a bound.
func (r *Reconciler) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var reverted []rc.Target
	for target, e := range r.entries {
		if e.state == Reverted {
			reverted = append(reverted, target)
		}
	}
	if len(reverted) <= maxReverted {
		return
	}
	var hooks []Hook
	for _, target := range reverted[maxReverted:] {
		hooks = append(hooks, r.entries[target].hook)
		delete(r.entries, target)
	}
	r.drop(hooks)
}

// count keeps the numbers that the process shows, and returns them.
func (r *Reconciler) count() logrus.Fields {
	states := map[State]int{}
	for _, e := range r.order {
		states[e.state]++
	}
	r.host.Set(Targets, len(r.order))
	r.host.Set(PatchedTargets, states[Patched])
	r.host.Set(PendingTargets, states[Pending])
	r.host.Set(UnresolvedTargets, states[Unresolved])
	return logrus.Fields{"targets": len(r.order), "patched": states[Patched], "pending": states[Pending],
		"unresolved": states[Unresolved]}
}

func (r *Reconciler) answer(event Event) {
	text, err := json.Marshal(r.Statuses())
	if err == nil {
		event.Answer(text)
	}
}

// Statuses reports every target, desired or withdrawn, in the order of their names.
func (r *Reconciler) Statuses() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	statuses := make([]Status, 0, len(r.entries))
	for target, e := range r.entries {
		status := Status{Target: target, State: e.state, Reason: e.reason, Mode: e.want.Mode,
			Package: e.want.Package, Advisories: e.want.Advisories}
		if e.hook != nil {
			status.Hook = uint64(uintptr(e.hook))
			if e.state == Patched && r.host.State(e.hook) == HitOnce {
				status.State = FirstHit
			}
		}
		statuses = append(statuses, status)
	}
	slices.SortFunc(statuses, func(a, b Status) int {
		return strings.Compare(a.Target.String(), b.Target.String())
	})
	return statuses
}
