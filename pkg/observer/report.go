package observer

import (
	"fmt"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
)

// Verdict is what can be said of a target in a process.
type Verdict string

// The verdicts. Unknown is an honest answer; never-executed is not among them, since no witness
// here has seen the process from its start.
const (
	NotImported  Verdict = "not-imported"
	Unresolved   Verdict = "unresolved"
	Resolved     Verdict = "resolved"
	Patched      Verdict = "patched"
	Executed     Verdict = "executed"
	Reverted     Verdict = "reverted"
	Contradicted Verdict = "contradicted"
	Unknown      Verdict = "unknown"
)

// The names of the witnesses.
const (
	Evidence    = "evidence"     // CPython's own marks in the code object
	EngineCount = "engine"       // the hook's counter, read from the process's memory
	StaticProbe = "static-probe" // sca:hit, counted by the kernel
	EvalLoop    = "eval-loop"    // starts of the code object, counted by the kernel
	Watchpoint  = "watchpoint"   // the same, counted by the hardware
)

// A Statement is what one witness says of one target.
type Statement struct {
	Witness string `json:"witness"`
	// Executed is nil when the witness cannot say; Detail then has the reason.
	Executed *bool `json:"executed"`
	// Count is nil where the witness does not count starts within the window.
	Count  *uint64 `json:"count,omitempty"`
	Detail string  `json:"detail,omitempty"`
	// From and To are when the witness looked: evidence since the process began (or its parent, of
	// which it was forked). They are missing where it did not.
	From *time.Time `json:"from,omitempty"`
	To   *time.Time `json:"to,omitempty"`

	// hooked counts the starts of the patched code object over the whole window: what the engine
	// must have counted too. It is nil where the witness did not see the whole window.
	hooked *uint64
	// exact says that no start can be missing in Count.
	exact bool
}

// A Report is the verdict on one target in one process, with what it rests on.
type Report struct {
	PID        int               `json:"pid"`
	Target     rc.Target         `json:"target"`
	Verdict    Verdict           `json:"verdict"`
	Reason     string            `json:"reason,omitempty"`
	From       time.Time         `json:"from"`
	To         time.Time         `json:"to"`
	Location   *Location         `json:"location,omitempty"`
	Statements []Statement       `json:"witnesses,omitempty"`
	Callers    []pyframes.Caller `json:"callers,omitempty"`
}

// A Location says where a target's code is, in the process's memory and in its source.
type Location struct {
	Code      Address `json:"code"`
	File      string  `json:"file"`
	FirstLine int     `json:"first_line"`
	Patched   bool    `json:"patched"`
	// Original is the code object that a patched one stands for.
	Original Address `json:"original,omitempty"`
}

// An Address is a process address; it reads as 0x… because JSON numbers lose bits past 2^53.
type Address uint64

// String returns the address in hexadecimal.
func (a Address) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// MarshalText makes an Address a string in JSON.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Locate describes a resolved function.
func Locate(f *pyframes.Function) *Location {
	l := &Location{
		Code: Address(f.Code.Addr), File: f.Code.Filename, FirstLine: f.Code.FirstLine,
		Patched: f.Hook != nil,
	}
	if f.Hook != nil {
		l.Original = Address(f.Original.Addr)
	}
	return l
}
