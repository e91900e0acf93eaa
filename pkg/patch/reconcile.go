package patch

import (
	"context"
	"errors"
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
	Reverted   State = "reverted"
)

// Status is a target's state as it is reported.
type Status struct {
	Target rc.Target `json:"target"`
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"`
	// Hits counts the starts of the function while it was patched.
	Hits uint64 `json:"hits"`
}

const (
	// importCheck is how often the number of imported modules is looked at while targets are missing.
	importCheck = 100 * time.Millisecond
	// recheck is how often every target is compared with what is in place, which finds
	// reloaded modules and replaced functions.
	recheck = time.Second
	// maxReverted bounds the withdrawn targets whose last counts are kept.
	maxReverted = rc.MaxTargets
)

type entry struct {
	state  State
	reason string
	hook   Hook // kept after a revert, for its counts
}

// A Reconciler keeps a process's functions as the desired set wants them.
type Reconciler struct {
	host    Host
	version bytecode.Version
	log     logrus.FieldLogger

	mu      sync.Mutex // guards the fields below; never held during a Host call
	desired []rc.Target
	entries map[rc.Target]*entry
	modules int
}

// NewReconciler returns a Reconciler for an interpreter of the given version.
func NewReconciler(host Host, version bytecode.Version, log logrus.FieldLogger) *Reconciler {
	return &Reconciler{host: host, version: version, log: log, entries: map[rc.Target]*entry{}}
}

// Run follows updates until they end, ctx ends or the interpreter stops.
func (r *Reconciler) Run(ctx context.Context, updates <-chan rc.Update) {
	imports := time.NewTicker(importCheck)
	defer imports.Stop()
	all := time.NewTicker(recheck)
	defer all.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case update, ok := <-updates:
			if !ok {
				return
			}
			if update.Err != nil {
				r.log.WithError(update.Err).Warn("Remote Configuration was refused; the last good targets stay")
			}
			r.mu.Lock()
			r.desired = update.Set.Targets
			r.mu.Unlock()
			err = r.reconcile(func(*entry) bool { return true })
		case <-imports.C:
			err = r.afterImports()
		case <-all.C:
			err = r.reconcile(func(*entry) bool { return true })
		}
		if errors.Is(err, ErrStopped) {
			return
		}
	}
}

// afterImports tries the targets that are not in place, if a module was imported since.
func (r *Reconciler) afterImports() error {
	if !r.anyMissing() {
		return nil
	}
	modules, err := r.host.Modules()
	if err != nil || modules == r.modules {
		return err
	}
	r.modules = modules
	return r.reconcile(func(e *entry) bool { return e == nil || e.state != Patched })
}

func (r *Reconciler) anyMissing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.desired, func(t rc.Target) bool {
		e := r.entries[t]
		return e == nil || e.state != Patched
	})
}

// reconcile closes the difference between the desired set and what is in place, for
// the desired targets whose entry concerns the caller. It returns only ErrStopped.
func (r *Reconciler) reconcile(concerns func(*entry) bool) error {
	r.mu.Lock()
	desired := r.desired
	r.mu.Unlock()

	wanted := make(map[rc.Target]bool, len(desired))
	for _, target := range desired {
		wanted[target] = true
		if !concerns(r.entry(target)) {
			continue
		}
		if err := r.apply(target); errors.Is(err, ErrStopped) {
			return err
		}
	}
	for _, target := range r.withdrawn(wanted) {
		if err := r.withdraw(target); errors.Is(err, ErrStopped) {
			return err
		}
	}
	return nil
}

func (r *Reconciler) entry(target rc.Target) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entries[target]
}

// withdrawn lists the targets that are in place or waited for, and are not wanted.
func (r *Reconciler) withdrawn(wanted map[rc.Target]bool) []rc.Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	var targets []rc.Target
	reverted := 0
	for target, e := range r.entries {
		switch {
		case wanted[target]:
		case e.state != Reverted:
			targets = append(targets, target)
		default:
			reverted++
			if reverted > maxReverted {
				targets = append(targets, target)
			}
		}
	}
	return targets
}

// apply makes one target patched, or says why it is not.
func (r *Reconciler) apply(target rc.Target) error {
	function, err := r.host.Read(target)
	if err != nil {
		return r.unresolved(target, err)
	}
	if hook := function.Hook(); hook != nil {
		r.adopt(target, hook)
		return nil
	}
	code, err := bytecode.InsertPrologue(r.version, function.Code())
	if err != nil {
		function.Release()
		return r.unresolved(target, err)
	}
	hook, err := function.Swap(code)
	if err != nil {
		return r.unresolved(target, err)
	}
	r.log.WithField("target", target.String()).Debug("patched")
	r.set(target, entry{state: Patched, hook: hook})
	return nil
}

// adopt takes a hook that is in place already into the registry: from the turn before,
// from another target that names the same function, or from before a restart.
func (r *Reconciler) adopt(target rc.Target, hook Hook) {
	if e := r.entry(target); e != nil && e.hook != nil && e.hook.Same(hook) {
		hook.Release()
		r.setState(target, Patched)
		return
	}
	r.set(target, entry{state: Patched, hook: hook})
}

func (r *Reconciler) unresolved(target rc.Target, err error) error {
	if errors.Is(err, ErrStopped) {
		return err
	}
	state := Unresolved
	if errors.Is(err, ErrNotImported) {
		state = Pending
	}
	if e := r.entry(target); e == nil || e.state != state || e.reason != err.Error() {
		r.log.WithField("target", target.String()).WithError(err).Debug("not patched")
		r.set(target, entry{state: state, reason: err.Error()})
	}
	return nil
}

// withdraw reverts one target and keeps its last counts. A function whose code is another's by
// now has nothing of ours to revert. A hook that another wanted target shares stays in place.
func (r *Reconciler) withdraw(target rc.Target) error {
	e := r.entry(target)
	if e.hook == nil || e.state == Reverted {
		r.forget(target)
		return nil
	}
	if r.shared(target, e.hook) {
		r.forget(target)
		return nil
	}
	if err := e.hook.Revert(); err != nil && !errors.Is(err, ErrChanged) {
		if errors.Is(err, ErrStopped) {
			return err
		}
		r.log.WithField("target", target.String()).WithError(err).Debug("not reverted; trying again")
		return nil
	}
	r.log.WithField("target", target.String()).Debug("reverted")
	r.setState(target, Reverted)
	return nil
}

// shared reports whether another target that is still desired has the same hook.
func (r *Reconciler) shared(target rc.Target, hook Hook) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.desired, func(other rc.Target) bool {
		e := r.entries[other]
		return other != target && e != nil && e.state == Patched && e.hook.Same(hook)
	})
}

// set replaces a target's entry. A function that the name no longer leads to, as after a
// reload, gets its own code back.
func (r *Reconciler) set(target rc.Target, e entry) {
	r.mu.Lock()
	old := r.entries[target]
	r.entries[target] = &e
	r.mu.Unlock()
	if old == nil || old.hook == nil {
		return
	}
	if old.state == Patched {
		if err := old.hook.Revert(); err != nil {
			r.log.WithField("target", target.String()).WithError(err).Debug("the former function was not reverted")
		}
	}
	old.hook.Release()
}

func (r *Reconciler) setState(target rc.Target, state State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[target] = &entry{state: state, hook: r.entries[target].hook}
}

func (r *Reconciler) forget(target rc.Target) {
	r.mu.Lock()
	old := r.entries[target]
	delete(r.entries, target)
	r.mu.Unlock()
	if old != nil && old.hook != nil {
		old.hook.Release()
	}
}

// Statuses reports every target, desired or withdrawn, in the order of their names.
func (r *Reconciler) Statuses() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	statuses := make([]Status, 0, len(r.entries))
	for target, e := range r.entries {
		status := Status{Target: target, State: e.state, Reason: e.reason}
		if e.hook != nil {
			status.Hits = e.hook.Hits()
		}
		statuses = append(statuses, status)
	}
	slices.SortFunc(statuses, func(a, b Status) int {
		return strings.Compare(a.Target.String(), b.Target.String())
	})
	return statuses
}
