package patch

import (
	"errors"
	"unsafe"

	"sca-probe/pkg/patch/bytecode"
	"sca-probe/pkg/rc"
)

// What a Host answers when a target cannot be read, patched or reverted.
// Each is wrapped with a sentence that says which name and why.
var (
	ErrNotImported = errors.New("not imported")
	ErrNotFound    = errors.New("no such name")
	ErrNotFunction = errors.New("not a Python function")
	ErrChanged     = errors.New("replaced by something else")
	ErrFailed      = errors.New("the interpreter refused")
	// ErrStopped says that the interpreter is going away: nothing more can be done.
	ErrStopped = errors.New("the interpreter is stopping")
)

// A Host is the interpreter that functions are patched in. What takes a list works through it in
// short turns with the GIL and answers for each item, in the list's order.
type Host interface {
	// Read finds targets. It imports nothing and runs no Python code.
	Read([]rc.Target) []Reading
	// Release gives up functions that were read and are not swapped.
	Release([]Function)
	// Swap puts rewritten code in place where the function's code is still what was read, and gives
	// up the functions. A Reading has the hook or the error.
	Swap([]Swap) []Reading
	// Revert puts the identical original code objects back.
	Revert([]Hook) []error
	// Drop gives references to hooks up. A hook lives on while its code object does.
	Drop([]Hook)
	// Mode and State are a hook's, which must not have been dropped.
	Mode(Hook) rc.Mode
	State(Hook) HookState
	// Living lists the hooks that live in the process: what a reconciler before this one left.
	Living() ([]Living, error)

	// Imports makes the import of watched modules an event.
	Imports(bytecode.Version) ([]Hook, error)
	// Watch sets the modules whose import is an event.
	Watch(modules []string)
	// Next waits for an event.
	Next() Event
	// Ready says that the first desired set has been applied.
	Ready()

	// Set and Add keep the numbers that the process shows of its engine.
	Set(Number, int)
	Add(Number, int)
}

// A Reading is what became of one target: it was found, or found patched, or there is an error.
type Reading struct {
	Function Function // to be given to Swap or Release
	Hook     Hook     // to be given to Drop, some time
	Err      error
}

// A Function is a function as one Read found it.
type Function interface {
	Code() bytecode.Code
}

// A Swap is code to be put in place for a function.
type Swap struct {
	Target   rc.Target
	Mode     rc.Mode
	Function Function
	Code     bytecode.Code
}

// HookState is what has become of a hook.
type HookState int

// The states of a hook.
const (
	InPlace HookState = iota
	TakenOut
	HitOnce // a first-hit hook that was hit and took itself out
)

// A Hook is the hook of one patched function, and its undo: the address of the Python object that it is, which tells
// hooks apart. A nil Hook is none.
type Hook unsafe.Pointer

// A Living hook, with the target that it was made for.
type Living struct {
	Hook   Hook
	Target rc.Target
}

// An Event is what happened in the application. Done must be called once it is dealt with: a thread
// may be waiting for that.
type Event struct {
	Kind   EventKind
	Module string            // of Imported
	Answer func(json []byte) // of Asked
	Done   func()
}

// EventKind is what an event is about.
type EventKind int

// The kinds of events.
const (
	Stopped  EventKind = iota // the interpreter is going away
	Imported                  // a watched module was imported or reloaded
	Asked                     // somebody asks for the state of every target
	Hit                       // a first-hit hook was hit that cannot take itself out
)

// Number names a number that a process shows of its engine.
type Number int

// Gauges, then counters.
const (
	Targets Number = iota
	PatchedTargets
	PendingTargets
	UnresolvedTargets
	Updates
	UpdatesRefused
	Failures
)
