package patch

import (
	"errors"

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

// A Host is the interpreter that functions are patched in. Every call is one
// short turn with the GIL; none is held between calls.
type Host interface {
	// Read finds a target. It imports nothing and runs no Python code.
	Read(rc.Target) (Function, error)
	// Modules is a number that changes when a module is imported.
	Modules() (int, error)
}

// A Function is a target as one Read found it. Exactly one of Swap and Release ends it,
// unless Hook is not nil: then there is nothing to end.
type Function interface {
	// Hook is the hook that the function carries already, or nil.
	Hook() Hook
	Code() bytecode.Code
	// Swap puts the rewritten code in place, if the function's code is still what was read.
	Swap(bytecode.Code) (Hook, error)
	Release()
}

// A Hook is the hook of one patched function, and its undo.
type Hook interface {
	// Same reports whether both are the hook of the same patched code object.
	Same(Hook) bool
	Hits() uint64
	// Revert puts the identical original code object back.
	Revert() error
	// Release gives the reference up. The hook lives on while its code object does.
	Release()
}
