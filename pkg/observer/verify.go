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
// if it is not nil, tells that every probe is in place: what runs from then on is counted. A witness that
// this user, kernel or build has not says so in its statement; the others stand.
func Verify(ctx context.Context, pid int, targets []rc.Target, attached func()) ([]Report, error) {
	process, err := open(ctx, pid)
	if err != nil {
		return nil, err
	}
	defer process.Close()

	w := &window{process: process, begun: pyframes.Started(pid), from: time.Now(), watched: map[uint64]bool{}}
	for _, target := range targets {
		w.subjects = append(w.subjects, &subject{target: target, hooks: map[uint64]*hookSeen{}, firstHits: map[uint64]bool{}})
	}
	if err := w.look(); err != nil {
		return nil, err
	}
	for _, s := range w.subjects {
		s.patchedBefore = s.function != nil && s.function.Hook != nil
	}
	if err := w.attach(); err != nil {
		return nil, orGone(process, err)
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
	missed, lost   uint64 // what the eval-loop program and the static-probe program could not count
	engine         bool   // the process runs one
	static         *loader.StaticProbes
	staticReason   string          // why there is none, where there is an engine
	watched        map[uint64]bool // code objects that the eval-loop probe counts
	points         *loader.Watchpoints
	pointsReason   string               // why there is none; "" where evidence needs none
	pointed        map[loader.Code]bool // what they watch
	pointLosses    loader.Losses
	open           bool      // the probes are attached
	attached, read time.Time // when the probes were in place, and their counts read
	begun          time.Time // when the process began
	unpatched      bool      // the engine has taken patches back
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
	firstHits     map[uint64]bool // patched code objects that go when they are hit
}

type codeSeen struct {
	pyframes.Code
	patched bool
	whole   bool // watched from the window's start
}

// hookSeen brackets one hook's counter around attaching and detaching.
type hookSeen struct {
	patched                          uint64 // the code object that carries it
	hit                              bool   // it was of first-hit mode, and removed itself
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
		if f.Hook.Mode == pyframes.FirstHitMode {
			s.firstHits[f.Code.Addr] = true
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
		w.evalLoop, err = loader.NewEvalLoopCounter(w.process.PID(), w.process.BinaryPath(), table,
			loader.CodeLayout(w.process.CodeOffsets()), codes)
		if errors.Is(err, loader.ErrPermission) {
			w.evalLoop, w.evalLoopReason = nil, "starts are not counted: "+err.Error()
		} else if err != nil {
			return fmt.Errorf("attaching the eval-loop probe: %w", err)
		}
	}
	var engine string
	if engine, w.engine = w.process.EnginePath(); w.engine {
		w.static, err = loader.NewStaticProbes(w.process.PID(), engine)
		if errors.Is(err, loader.ErrPermission) {
			w.static, w.staticReason = nil, "hits are not counted: "+err.Error()
		} else if err != nil {
			w.detach()
			return fmt.Errorf("attaching the static probes: %w", err)
		}
	}
	w.attachWatchpoints(table)
	w.open, w.attached = true, time.Now()
	return nil
}

// attachWatchpoints watches the first targets' code where evidence is weak. Without it the other
// witnesses stand.
func (w *window) attachWatchpoints(table *evalloop.Table) {
	if table == nil || !table.Watchable {
		return
	}
	var points []loader.Watchpoint
	w.pointed = map[loader.Code]bool{}
	for _, s := range w.subjects {
		if s.function == nil || len(points) == loader.MaxWatchpoints || w.pointed[watchable(s.function.Code)] {
			continue
		}
		resume, err := w.process.ResumeAddress(s.function.Code)
		if err != nil {
			w.pointsReason = err.Error()
			continue
		}
		points = append(points, loader.Watchpoint{Code: watchable(s.function.Code), Resume: resume})
		w.pointed[watchable(s.function.Code)] = true
	}
	if len(points) == 0 {
		return
	}
	var err error
	if w.points, err = loader.NewWatchpoints(w.process.PID(), table, loader.CodeLayout(w.process.CodeOffsets()), points); err != nil {
		w.points, w.pointsReason = nil, err.Error()
	}
}

func (w *window) detach() {
	if w.evalLoop != nil {
		w.evalLoop.Close()
	}
	if w.static != nil {
		w.static.Close()
	}
	if w.points != nil {
		w.points.Close()
	}
	w.evalLoop, w.static, w.points = nil, nil, nil
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
			h.hit = hook.State == pyframes.Hit
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
	// First, so that its window lies within the eval loop's.
	pointed, err := w.watchpointCounts()
	if err != nil {
		return nil, err
	}
	starts, hits, reverted, err := w.counts()
	if err != nil {
		return nil, err
	}
	w.read = time.Now()
	if engine, err := w.process.Engine(); err == nil && engine != nil {
		w.unpatched = engine.Numbers["patches"] > engine.Numbers["patched"]
	}
	if err := w.mark(func(h *hookSeen, hits uint64) { h.last = hits }); err != nil {
		return nil, err
	}
	to := time.Now()
	reports := make([]Report, 0, len(w.subjects))
	for _, s := range w.subjects {
		report, err := w.report(s, starts, pointed, hits, reverted)
		if err != nil {
			return nil, err
		}
		report.PID, report.Target, report.From, report.To = w.process.PID(), s.target, w.from, to
		reports = append(reports, report)
	}
	return reports, nil
}

func (w *window) watchpointCounts() (map[loader.Code]uint64, error) {
	if w.points == nil {
		return nil, nil
	}
	starts, err := w.points.Starts()
	if err == nil {
		w.pointLosses, err = w.points.Losses()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the watchpoints: %w", err)
	}
	return starts, nil
}

// counts reads what the kernel counted, by code object, and which targets it saw reverted.
func (w *window) counts() (starts map[loader.Code]uint64, hits map[uint64]uint64, reverted map[string]bool, err error) {
	reverted = map[string]bool{}
	if w.evalLoop != nil {
		if starts, err = w.evalLoop.Starts(); err != nil {
			return nil, nil, nil, fmt.Errorf("reading the eval-loop counts: %w", err)
		}
		losses, err := w.evalLoop.Losses()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("reading the eval-loop losses: %w", err)
		}
		w.missed = losses.Faults
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

func (w *window) report(s *subject, starts, pointed map[loader.Code]uint64, hits map[uint64]uint64, reverted map[string]bool) (Report, error) {
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
	if point, ok := w.watchpointStatement(s, pointed); ok {
		f.statements = append(f.statements, point)
	}
	for _, h := range s.hooks {
		f.firstHit = f.firstHit || h.hit
	}
	for patched := range s.firstHits { // the hook may be gone by now
		f.firstHit = f.firstHit || hits[patched] > 0
	}
	f.hitUnseen = w.static == nil && len(s.firstHits) > 0
	if w.engine {
		f.engine = s.engineCount()
		if f.engine != nil {
			engine := count(EngineCount, f.engine.lower, f.engine.lower)
			if f.firstHit {
				executed := true
				engine.Executed, engine.Detail = &executed, "its first-hit hook was hit, and removed itself"
			}
			f.statements = append(f.statements, engine)
		}
		if w.static == nil {
			f.statements = append(f.statements, Statement{Witness: StaticProbe, Detail: w.staticReason})
		} else {
			f.statements = append(f.statements, atLeast(staticStatement(s, hits), w.lost))
		}
	}
	if s.function.Hook != nil {
		report.Callers = s.function.Hook.Callers
	}
	for i := range f.statements {
		w.date(&f.statements[i])
	}
	report.Statements = f.statements
	report.Verdict, report.Reason = judge(f)
	return report, nil
}

// missesPatched is why a function that the engine had patched may have run without a mark.
const missesPatched = "what ran while the engine had it patched left its marks in code that is gone"

// date says when a witness looked.
func (w *window) date(s *Statement) {
	from, to := w.attached, w.read
	switch {
	case s.Executed == nil:
		return
	case s.Witness == Evidence && !w.begun.IsZero():
		from = w.begun
	}
	s.From, s.To = &from, &to
}

// watchpointStatement returns what the hardware counted, false where evidence is not weak.
func (w *window) watchpointStatement(s *subject, starts map[loader.Code]uint64) (Statement, bool) {
	switch {
	case w.pointed == nil:
		return Statement{}, false
	case w.points == nil:
		return Statement{Witness: Watchpoint, Detail: w.pointsReason}, true
	}
	var total uint64
	watched := false
	for _, code := range s.codes {
		if w.pointed[watchable(code.Code)] {
			total, watched = total+starts[watchable(code.Code)], true
		}
	}
	if !watched {
		return Statement{Witness: Watchpoint, Detail: fmt.Sprintf("not watched: the hardware watches %d functions, those that resolve when the window begins", loader.MaxWatchpoints)}, true
	}
	statement := count(Watchpoint, total, 0)
	statement.hooked = nil
	if w.pointLosses.Any() {
		statement.Detail = "a lower bound: of the starts, " + w.pointLosses.String()
	}
	return statement, true
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
	if !executed && f.Hook == nil && w.unpatched {
		s.Executed, s.Detail = nil, "no mark, but "+missesPatched
	} else if !executed && now.Misses != "" {
		s.Executed, s.Detail = nil, "no mark, but "+now.Misses
	}
	return s, nil
}

func (w *window) evalLoopStatement(s *subject, starts map[loader.Code]uint64) Statement {
	if w.evalLoop == nil {
		return Statement{Witness: EvalLoop, Detail: w.evalLoopReason}
	}
	var total, hooked uint64
	whole := true
	for _, code := range s.codes {
		total += starts[watchable(code.Code)]
		if code.patched {
			hooked += starts[watchable(code.Code)]
			whole = whole && code.whole
		}
	}
	statement := count(EvalLoop, total, hooked)
	if !whole {
		statement.hooked = nil
		statement.Detail = "watched from some time after the patch"
	}
	statement.exact = w.missed == 0
	return atLeast(statement, w.missed)
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
