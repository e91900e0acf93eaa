package observer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sca-probe/pkg/loader"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/pkg/rc"
)

// lookAgain is how often a window looks for targets that were imported, patched or reverted in it.
const lookAgain = 100 * time.Millisecond

// Verify watches the targets in one process until ctx ends, and reports on each. Call attached,
// if it is not nil, tells that every probe is in place: what runs from then on is counted.
func Verify(ctx context.Context, pid int, targets []rc.Target, attached func()) ([]Report, error) {
	process, err := pyframes.OpenProcess(pid)
	if err != nil {
		return nil, err
	}
	defer process.Close()

	w := &window{process: process, from: time.Now(), watched: map[uint64]bool{}}
	for _, target := range targets {
		w.subjects = append(w.subjects, &subject{target: target, hooks: map[uint64]*hookSeen{}})
	}
	if err := w.look(); err != nil {
		return nil, err
	}
	for _, s := range w.subjects {
		s.patchedBefore = s.function != nil && s.function.Hook != nil
	}
	if err := w.attach(); err != nil {
		return nil, err
	}
	defer w.detach()
	if err := w.mark(func(h *hookSeen, hits uint64) { h.attached = hits }); err != nil {
		return nil, err
	}
	if attached != nil {
		attached()
	}
	if err := w.wait(ctx); err != nil {
		return nil, err
	}
	return w.close()
}

// A window is one stretch of time in which witnesses watch one process.
type window struct {
	process  *pyframes.Process
	subjects []*subject
	from     time.Time

	evalLoop       *loader.EvalLoopCounter
	evalLoopReason string // why there is none
	faults, lost   uint64 // what the eval-loop program and the static-probe program could not count
	static         *loader.StaticProbes
	watched        map[uint64]bool // code objects that the eval-loop probe counts
	open           bool            // the probes are attached
}

// A subject is one target in a window.
type subject struct {
	target        rc.Target
	function      *pyframes.Function // nil until it resolves
	unresolved    *pyframes.UnresolvedError
	unknown       error // why nothing can be said of it now
	codes         []codeSeen
	hooks         map[uint64]*hookSeen // by address
	patchedBefore bool
}

type codeSeen struct {
	pyframes.Code
	patched bool
	whole   bool // watched from the window's start
}

// hookSeen brackets one hook's counter around attaching and detaching.
type hookSeen struct {
	patched                          uint64 // the code object that carries it
	before, attached, detached, last uint64
}

// look resolves every target as it is now, and takes in code objects and hooks not seen before.
func (w *window) look() error {
	for _, s := range w.subjects {
		f, err := w.process.Resolve(s.target)
		var unresolved *pyframes.UnresolvedError
		if errors.As(err, &unresolved) {
			s.unresolved, s.function, s.unknown = unresolved, nil, nil
			continue
		}
		if unclear(err) {
			s.unresolved, s.function, s.unknown = nil, nil, err
			continue
		}
		if err != nil {
			return fmt.Errorf("resolving %s: %w", s.target, err)
		}
		s.unresolved, s.function, s.unknown = nil, f, nil
		if err := w.see(s, f.Code, f.Hook != nil); err != nil {
			return err
		}
		if f.Hook == nil {
			continue
		}
		if err := w.see(s, f.Original, false); err != nil {
			return err
		}
		if s.hooks[f.Hook.Addr] == nil {
			h := &hookSeen{patched: f.Code.Addr}
			if !w.open { // a hook made within the window began at zero within it
				h.before = f.Hook.Hits
			}
			s.hooks[f.Hook.Addr] = h
		}
	}
	return nil
}

// unclear reports whether an error says that memory could not be understood just then.
func unclear(err error) bool {
	return errors.Is(err, pyframes.ErrTorn) || errors.Is(err, pyframes.ErrNotReady) || errors.Is(err, pyframes.ErrCorrupt)
}

func (w *window) see(s *subject, code pyframes.Code, patched bool) error {
	for _, seen := range s.codes {
		if seen.Addr == code.Addr {
			return nil
		}
	}
	s.codes = append(s.codes, codeSeen{Code: code, patched: patched, whole: !w.open})
	if w.evalLoop == nil || w.watched[code.Addr] {
		return nil
	}
	w.watched[code.Addr] = true
	return w.evalLoop.Watch(watchable(code))
}

func watchable(code pyframes.Code) loader.Code {
	return loader.Code{Addr: code.Addr, Name: code.NameAddr, FirstLine: uint32(code.FirstLine)}
}

func (w *window) attach() error {
	interpreter := w.process.Interpreter()
	table, err := evalloop.Find(w.process.BinaryPath(), interpreter.Version.Major, interpreter.Version.Minor)
	if errors.Is(err, evalloop.ErrUnknownBuild) {
		w.evalLoopReason = err.Error()
	} else if err != nil {
		return err
	}
	if table != nil {
		var codes []loader.Code
		for _, s := range w.subjects {
			for _, code := range s.codes {
				if !w.watched[code.Addr] {
					w.watched[code.Addr] = true
					codes = append(codes, watchable(code.Code))
				}
			}
		}
		name, firstLine := w.process.CodeIdentity()
		w.evalLoop, err = loader.NewEvalLoopCounter(w.process.PID(), w.process.BinaryPath(), table,
			loader.CodeLayout{Name: name, FirstLine: firstLine}, codes)
		if err != nil {
			return fmt.Errorf("attaching the eval-loop probe: %w", err)
		}
	}
	if engine, ok := w.process.EnginePath(); ok {
		w.static, err = loader.NewStaticProbes(w.process.PID(), engine)
		if err != nil {
			w.detach()
			return fmt.Errorf("attaching the static probes: %w", err)
		}
	}
	w.open = true
	return nil
}

func (w *window) detach() {
	if w.evalLoop != nil {
		w.evalLoop.Close()
	}
	if w.static != nil {
		w.static.Close()
	}
	w.evalLoop, w.static = nil, nil
}

// mark reads the counter of every hook seen.
func (w *window) mark(set func(h *hookSeen, hits uint64)) error {
	for _, s := range w.subjects {
		for addr, h := range s.hooks {
			hook, err := w.process.ReadHook(addr)
			if errors.Is(err, pyframes.ErrNoProcess) {
				return err
			}
			if err != nil { // freed with its code object: nothing is known of its count any more
				delete(s.hooks, addr)
				continue
			}
			set(h, hook.Hits)
		}
	}
	return nil
}

func (w *window) wait(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := w.look(); err != nil {
				return err
			}
		}
	}
}

// close ends the window and judges every subject.
func (w *window) close() ([]Report, error) {
	if err := w.look(); err != nil {
		return nil, err
	}
	if err := w.mark(func(h *hookSeen, hits uint64) { h.detached = hits }); err != nil {
		return nil, err
	}
	starts, hits, reverted, err := w.counts()
	if err != nil {
		return nil, err
	}
	if err := w.mark(func(h *hookSeen, hits uint64) { h.last = hits }); err != nil {
		return nil, err
	}
	to := time.Now()
	reports := make([]Report, 0, len(w.subjects))
	for _, s := range w.subjects {
		report, err := w.report(s, starts, hits, reverted)
		if err != nil {
			return nil, err
		}
		report.PID, report.Target, report.From, report.To = w.process.PID(), s.target, w.from, to
		reports = append(reports, report)
	}
	return reports, nil
}

// counts reads what the kernel counted, by code object, and which targets it saw reverted.
func (w *window) counts() (starts, hits map[uint64]uint64, reverted map[string]bool, err error) {
	reverted = map[string]bool{}
	if w.evalLoop != nil {
		if starts, err = w.evalLoop.Counts(); err != nil {
			return nil, nil, nil, fmt.Errorf("reading the eval-loop counts: %w", err)
		}
		if w.faults, err = w.evalLoop.Faults(); err != nil {
			return nil, nil, nil, fmt.Errorf("reading the eval-loop faults: %w", err)
		}
	}
	if w.static != nil {
		if hits, err = w.static.Hits(); err != nil {
			return nil, nil, nil, fmt.Errorf("reading the static-probe counts: %w", err)
		}
		if w.lost, err = w.static.Lost(); err != nil {
			return nil, nil, nil, fmt.Errorf("reading the static-probe losses: %w", err)
		}
		for _, event := range w.static.Events() {
			if event.Kind == loader.Reverted {
				reverted[event.Target] = true
			}
		}
	}
	return starts, hits, reverted, nil
}

func (w *window) report(s *subject, starts, hits map[uint64]uint64, reverted map[string]bool) (Report, error) {
	if s.unresolved != nil {
		verdict := Unresolved
		if s.unresolved.Kind == pyframes.NotImported {
			verdict = NotImported
		}
		return Report{Verdict: verdict, Reason: s.unresolved.Reason}, nil
	}
	if s.unknown != nil {
		return Report{Verdict: Unknown, Reason: s.unknown.Error()}, nil
	}
	report := Report{Location: Locate(s.function)}
	f := findings{
		patchedBefore: s.patchedBefore,
		patchedAfter:  s.function.Hook != nil,
		revertSeen:    reverted[s.target.String()],
	}
	evidence, err := w.evidence(s.function)
	if err != nil {
		return Report{}, err
	}
	f.statements = append(f.statements, evidence, w.evalLoopStatement(s, starts))
	if w.static != nil {
		f.engine = s.engineCount()
		if f.engine != nil {
			f.statements = append(f.statements, count(EngineCount, f.engine.lower, f.engine.lower))
		}
		f.statements = append(f.statements, atLeast(staticStatement(s, hits), w.lost))
	}
	if s.function.Hook != nil {
		report.Callers = s.function.Hook.Callers
	}
	report.Statements = f.statements
	report.Verdict, report.Reason = judge(f)
	return report, nil
}

// evidence reads the marks of the code object in place and, when it is patched, of the original,
// which say whether the function ran before it was patched.
func (w *window) evidence(f *pyframes.Function) (Statement, error) {
	now, err := w.process.Evidence(f.Code)
	if errors.Is(err, pyframes.ErrAmbiguousEvidence) || unclear(err) {
		return Statement{Witness: Evidence, Detail: err.Error()}, nil
	}
	if err != nil {
		return Statement{}, fmt.Errorf("reading the evidence in %s: %w", f.Code.QualName, err)
	}
	executed, detail := now.Executed, now.Detail
	if f.Hook != nil && !executed {
		if before, err := w.process.Evidence(f.Original); err == nil && before.Executed {
			executed, detail = true, before.Detail+" (in the original, so before it was patched)"
		}
	}
	s := Statement{Witness: Evidence, Executed: &executed, Detail: detail}
	if !executed && now.Misses != "" {
		s.Executed, s.Detail = nil, "no mark, but "+now.Misses
	}
	return s, nil
}

func (w *window) evalLoopStatement(s *subject, starts map[uint64]uint64) Statement {
	if w.evalLoop == nil {
		return Statement{Witness: EvalLoop, Detail: w.evalLoopReason}
	}
	var total, hooked uint64
	whole := true
	for _, code := range s.codes {
		total += starts[code.Addr]
		if code.patched {
			hooked += starts[code.Addr]
			whole = whole && code.whole
		}
	}
	statement := count(EvalLoop, total, hooked)
	if !whole {
		statement.hooked = nil
		statement.Detail = "watched from some time after the patch"
	}
	return atLeast(statement, w.faults)
}

func staticStatement(s *subject, hits map[uint64]uint64) Statement {
	var total uint64
	for _, code := range s.codes {
		if code.patched {
			total += hits[code.Addr]
		}
	}
	return count(StaticProbe, total, total)
}

// atLeast marks a count as a lower bound where the kernel says that it lost some.
func atLeast(s Statement, lost uint64) Statement {
	if lost > 0 {
		s.hooked = nil
		s.Detail = fmt.Sprintf("a lower bound: %d probe hits could not be read or kept", lost)
	}
	return s
}

func count(witness string, n, hooked uint64) Statement {
	executed := n > 0
	return Statement{Witness: witness, Executed: &executed, Count: &n, hooked: &hooked}
}

// engineCount brackets what the engine counted in the window; nil when it had no hook to count with.
func (s *subject) engineCount() *bracket {
	if len(s.hooks) == 0 {
		return nil
	}
	var b bracket
	for _, h := range s.hooks {
		b.lower += h.detached - h.attached
		b.upper += h.last - h.before
	}
	return &b
}
