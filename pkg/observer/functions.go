package observer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sca-probe/pkg/pyframes"
)

// ErrNoPackage says that a process has no distribution of a name installed.
var ErrNoPackage = errors.New("no such package")

// An ExecutionState is what a function's evidence says of its past.
type ExecutionState string

// The states. Never is claimed only where every ordinary execution leaves a mark; what may leave none
// all the same is in [FunctionReport].NeverMisses.
const (
	StateExecuted ExecutionState = "executed"
	StateNever    ExecutionState = "never"
	StateUnknown  ExecutionState = "unknown"
)

// A FunctionQuery says which functions are asked for. The zero value asks for all.
type FunctionQuery struct {
	Package string // the name of a distribution, in any spelling
	Module  string // a module; those in it are meant too
	// Progress, where not nil, is told now and then how much is done, of 1.
	Progress func(done float64)
}

// A HeldFunction is one function of a process, and whether it ever ran.
type HeldFunction struct {
	Module    string         `json:"module"` // "" when it is not known
	QualName  string         `json:"qualname"`
	File      string         `json:"file"`
	FirstLine int            `json:"first_line"`
	State     ExecutionState `json:"state"`
	// Entries is how often its body was entered, by calls and by resuming it, where CPython keeps count;
	// EntriesAtLeast says that CPython counts no further.
	Entries        uint64 `json:"entries,omitempty"`
	EntriesAtLeast bool   `json:"entries_at_least,omitempty"`
	Patched        bool   `json:"patched,omitempty"`
	Detail         string `json:"detail"` // the mark that was looked at, or why the state is unknown
}

// A FunctionGroup is the functions of one distribution, of the standard library, or of neither.
type FunctionGroup struct {
	Kind         GroupKind     `json:"kind"`
	Distribution *Distribution `json:"distribution,omitempty"`
	Held         int           `json:"held"`
	Executed     int           `json:"executed"`
	Never        int           `json:"never"`
	Unknown      int           `json:"unknown"`

	Functions []HeldFunction `json:"functions"`
}

// A GroupKind says what the functions of a group have in common.
type GroupKind string

// The kinds of groups.
const (
	OfDistribution    GroupKind = "distribution"
	OfStandardLibrary GroupKind = "standard-library"
	OfNoDistribution  GroupKind = "no-distribution" // the service's own code, mostly
)

// Name returns "requests 2.31.0", "standard library" or "no distribution".
func (g *FunctionGroup) Name() string {
	if g.Distribution != nil {
		return g.Distribution.String()
	}
	return strings.ReplaceAll(string(g.Kind), "-", " ")
}

// A FunctionReport is every function that was asked for, by where it comes from.
type FunctionReport struct {
	PID    int    `json:"pid"`
	Python string `json:"python"`
	// Started is when the process began: what is executed ran between then and To.
	Started time.Time       `json:"started"`
	From    time.Time       `json:"from"` // when reading began; what is never had not run then
	To      time.Time       `json:"to"`
	Groups  []FunctionGroup `json:"groups"`
	// NeverMisses says which executions of a function that is never leave no mark on this version, ""
	// when none are known.
	NeverMisses string `json:"never_misses,omitempty"`
	// UnknownMisses says why functions without a mark are unknown on this version, "" where they are not.
	UnknownMisses string `json:"unknown_misses,omitempty"`
	// Rejected counts what looked like a function and is none, or was gone before it was read.
	Rejected int      `json:"rejected"`
	Warnings []string `json:"warnings,omitempty"`
}

// Functions finds the functions that a process holds, and says which ever ran, by the marks that CPython
// leaves in them. It only reads: the process pays nothing and does not notice.
func Functions(ctx context.Context, pid int, query FunctionQuery) (*FunctionReport, error) {
	process, err := open(ctx, pid)
	if err != nil {
		return nil, err
	}
	defer process.Close()
	return functions(ctx, process, query)
}

func functions(ctx context.Context, process *pyframes.Process, query FunctionQuery) (*FunctionReport, error) {
	pid := process.PID()
	report := &FunctionReport{
		PID: pid, Python: process.Interpreter().Version.String(), Started: pyframes.Started(pid), From: time.Now(),
	}
	var origin *origin
	groups := map[string]*FunctionGroup{}
	err := patiently(ctx, pid, func() error {
		search, err := process.SearchPath()
		bundle, _ := process.Bundle() // without it, files in one are of no distribution
		origin = readOrigin(pid, search, bundle)
		if err == nil && query.Package != "" {
			err = origin.prepare(query.Package, pid, groups)
		}
		return err
	})
	if errors.Is(err, pyframes.ErrNoProcess) || errors.Is(err, ErrNoPackage) {
		return nil, err
	}
	if err != nil {
		origin.warn("what is installed cannot be told: %v", err)
	}
	scan := &pyframes.FunctionScan{Progress: query.Progress, Match: func(module string, code pyframes.Code) bool {
		return query.matches(origin, module, code.Filename)
	}}
	for state, err := range process.Functions(ctx, scan) {
		if err != nil {
			return nil, err
		}
		g := groupOf(groups, origin, state.Filename)
		g.add(heldFunction(state, report))
	}
	if engine, err := process.Engine(); err == nil && engine != nil && engine.Numbers["patches"] > engine.Numbers["patched"] {
		report.NeverMisses = strings.TrimPrefix(report.NeverMisses+"; "+missesPatched, "; ")
	}
	report.To, report.Rejected, report.Warnings = time.Now(), scan.Rejected, origin.warnings
	for _, g := range groups {
		slices.SortFunc(g.Functions, func(a, b HeldFunction) int {
			return cmp.Or(cmp.Compare(a.Module, b.Module), cmp.Compare(a.File, b.File), cmp.Compare(a.FirstLine, b.FirstLine), cmp.Compare(a.QualName, b.QualName))
		})
		report.Groups = append(report.Groups, *g)
	}
	slices.SortFunc(report.Groups, func(a, b FunctionGroup) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(strings.ToLower(a.Name()), strings.ToLower(b.Name())))
	})
	return report, nil
}

// prepare makes the groups of a distribution that is installed, also when nothing of it is held.
func (o *origin) prepare(name string, pid int, groups map[string]*FunctionGroup) error {
	for _, d := range o.installed {
		if d.isNamed(name) {
			groups[d.String()] = &FunctionGroup{Kind: OfDistribution, Distribution: d}
		}
	}
	if len(groups) == 0 {
		return notInstalled(name, pid)
	}
	return nil
}

func (o *origin) isInstalled(name string) bool {
	return slices.ContainsFunc(o.installed, func(d *Distribution) bool { return d.isNamed(name) })
}

func notInstalled(name string, pid int) error {
	return fmt.Errorf("%w: %s is not installed where process %d imports from; 'sca-probe functions --pid %[3]d' lists what is", ErrNoPackage, name, pid)
}

func (q *FunctionQuery) matches(o *origin, module, file string) bool {
	if !inModule(module, q.Module) {
		return false
	}
	if q.Package == "" {
		return true
	}
	d, _ := o.of(file)
	return d != nil && d.isNamed(q.Package)
}

// inModule reports whether a module is the wanted one or within it.
func inModule(module, wanted string) bool {
	return wanted == "" || module == wanted || strings.HasPrefix(module, wanted+".")
}

// groupOf returns the group that functions of a file belong to.
func groupOf(groups map[string]*FunctionGroup, o *origin, file string) *FunctionGroup {
	d, standard := o.of(file)
	g := FunctionGroup{Kind: OfNoDistribution, Distribution: d}
	switch {
	case d != nil:
		g.Kind = OfDistribution
	case standard:
		g.Kind = OfStandardLibrary
	}
	name := g.Name()
	if groups[name] == nil {
		groups[name] = &g
	}
	return groups[name]
}

func (g *FunctionGroup) add(f HeldFunction) {
	g.Held++
	switch f.State {
	case StateExecuted:
		g.Executed++
	case StateNever:
		g.Never++
	default:
		g.Unknown++
	}
	g.Functions = append(g.Functions, f)
}

// heldFunction judges one function by its evidence, and notes in the report what that may miss.
func heldFunction(state pyframes.FunctionState, report *FunctionReport) HeldFunction {
	f := HeldFunction{
		Module: state.Module, QualName: state.QualName, File: state.Filename, FirstLine: state.FirstLine,
		State: StateUnknown, Patched: state.Hook != nil, Detail: state.Evidence.Detail,
	}
	switch e := state.Evidence; {
	case state.Unclear != nil:
		f.Detail = state.Unclear.Error()
	case e.Executed:
		f.State, f.Entries, f.EntriesAtLeast = StateExecuted, e.Entries, e.AtLeast
	case e.Weak:
		f.Detail, report.UnknownMisses = "no mark", e.Misses
	default:
		f.State = StateNever
		if e.Misses != "" {
			report.NeverMisses = e.Misses
		}
	}
	return f
}
