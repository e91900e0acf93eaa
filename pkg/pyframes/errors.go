package pyframes

import (
	"errors"
	"fmt"

	"sca-probe/pkg/rc"
)

var (
	// ErrNoProcess says that the process does not exist, has exited, or has replaced
	// its program (exec) since it was opened.
	ErrNoProcess = errors.New("no such process")
	// ErrNotPython says that a file or process holds no CPython interpreter.
	ErrNotPython = errors.New("not a CPython interpreter")
	// ErrPermission says that the process may not be read.
	ErrPermission = errors.New("permission denied: run as root or with the capability CAP_SYS_PTRACE")
	// ErrUnsupportedBuild says that it is CPython, but of a version, an ABI or a layout
	// that this package does not know.
	ErrUnsupportedBuild = errors.New("unsupported CPython build")
	// ErrNotReady says that the interpreter is still starting or already finalizing:
	// its sys.modules, or what is in it from the start, is not there. Ask again.
	ErrNotReady = errors.New("the interpreter has no sys.modules yet, or no longer")
	// ErrTorn says that the process changed what was read, while it was read, each
	// time. Ask again.
	ErrTorn = errors.New("memory changed while it was read")
	// ErrCorrupt says that what is in memory cannot be what it should be.
	ErrCorrupt = errors.New("implausible memory")
	// ErrAmbiguousEvidence says that a mark in a code object may be there without the
	// code having run.
	ErrAmbiguousEvidence = errors.New("ambiguous evidence")
)

// An UnresolvedKind tells why a target is no function in a process.
type UnresolvedKind int

const (
	// NotImported says that sys.modules has no such module. It may be imported later.
	NotImported UnresolvedKind = iota + 1
	// NotFound says that the module is there, and the name is not in it (or not yet).
	NotFound
	// NotPythonFunction says that the name is bound to something without Python code.
	NotPythonFunction
	// Ambiguous says that several functions have the name.
	Ambiguous
)

// String returns "not-imported", "not-found", "not-python-function" or "ambiguous".
func (k UnresolvedKind) String() string {
	switch k {
	case NotImported:
		return "not-imported"
	case NotFound:
		return "not-found"
	case NotPythonFunction:
		return "not-python-function"
	case Ambiguous:
		return "ambiguous"
	}
	return fmt.Sprintf("UnresolvedKind(%d)", int(k))
}

// An UnresolvedError is the answer that a target is not a Python function in a process
// now. It is knowledge, not failure: memory was read and understood.
type UnresolvedError struct {
	Target rc.Target
	Kind   UnresolvedKind
	Reason string // a clause: "module yaml is not imported"
}

func (e *UnresolvedError) Error() string {
	return fmt.Sprintf("target %s is unresolved: %s", e.Target, e.Reason)
}
