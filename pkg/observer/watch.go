package observer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sca-probe/pkg/loader"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
)

// WatchOptions bound a window in which all starts are counted.
type WatchOptions struct {
	For time.Duration
	// MaxOverhead ends the window when the probes take more than this share of one CPU's time from the
	// process, by the number of their hits and the cost of one, which is measured before the window. In
	// the first second, bursts may take as much as in all of it.
	MaxOverhead float64
	Query       FunctionQuery // its Progress is told of finding the functions' names, before the window
	// Attached, where not nil, is told when every probe is in place: what starts from then on is counted.
	Attached func()
	// Update, where not nil, is told every second what was counted until then.
	Update func(*WatchReport)
}

// A StartedFunction is a function that started in a window, and how often.
type StartedFunction struct {
	FunctionID
	Starts uint64 `json:"starts"`
}

// A WatchReport is how often each function started in a window.
type WatchReport struct {
	PID       int               `json:"pid"`
	Python    string            `json:"python"`
	From      time.Time         `json:"from"`
	To        time.Time         `json:"to"`
	Functions []StartedFunction `json:"functions"` // the most frequent first
	// Unnamed counts starts of code that was freed before its name was read.
	Unnamed uint64 `json:"unnamed_starts,omitempty"`
	// Overhead estimates the share of one CPU's time that the probes took from the process.
	Overhead float64 `json:"overhead"`
	// HitCost is what a probe's hit was measured to cost on this machine, which Overhead rests on.
	HitCost loader.HitCost `json:"hit_cost"`
	// EndedEarly says why the window was shorter than it was meant to be.
	EndedEarly string `json:"ended_early,omitempty"`
	// Losses says what could not be counted: then counts are lower bounds. Else they are exact.
	Losses string `json:"losses,omitempty"`
}

// The intervals at which a window's overhead is looked at, and its counts are read.
const (
	overheadInterval = 100 * time.Millisecond
	countInterval    = time.Second
)

// Watch counts every start of the functions of a process, until the window ends or ctx does. When the
// process ends or replaces its program, the report is on what it did until then.
func Watch(ctx context.Context, pid int, options WatchOptions) (*WatchReport, error) {
	process, err := open(ctx, pid)
	if err != nil {
		return nil, err
	}
	defer process.Close()
	in := process.Interpreter()
	table, err := evalloop.Find(process.BinaryPath(), in.Version.Major, in.Version.Minor)
	if err != nil {
		return nil, orGone(process, fmt.Errorf("process %d cannot be watched: %w", pid, err))
	}
	names, err := waitForNames(ctx, process, newOrigins(), options.Query.Package)
	if err != nil {
		return nil, err
	}
	if err := names.scan(ctx, options.Query.Progress); err != nil {
		return nil, err
	}
	hitCost, err := loader.MeasureHitCost()
	if err != nil {
		return nil, err
	}
	counter, err := loader.NewEvalLoopCounterOfAll(pid, process.BinaryPath(), table, loader.CodeLayout(process.CodeOffsets()), 0)
	if err != nil {
		return nil, orGone(process, fmt.Errorf("attaching the eval-loop probe: %w", err))
	}
	defer counter.Close()
	w := &watch{names: names, counter: counter, hitCost: hitCost, options: &options, from: time.Now()}
	if options.Attached != nil {
		options.Attached()
	}
	ended, err := w.wait(ctx)
	if err != nil {
		return nil, err
	}
	report, err := w.report()
	if err != nil {
		return nil, err
	}
	report.EndedEarly = ended
	return report, nil
}

type watch struct {
	names   *names
	counter *loader.EvalLoopCounter
	hitCost loader.HitCost
	options *WatchOptions
	from    time.Time
}

// wait returns why the window ends before its time, "" when it does not.
func (w *watch) wait(ctx context.Context) (string, error) {
	end := time.After(w.options.For)
	overhead, count := time.NewTicker(overheadInterval), time.NewTicker(countInterval)
	defer overhead.Stop()
	defer count.Stop()
	for {
		select {
		case <-end:
			return "", nil
		case <-ctx.Done():
			return "it was interrupted", nil
		case <-overhead.C:
			cost, err := w.cost()
			if err != nil {
				return "", err
			}
			share := cost.Seconds() / max(time.Since(w.from), time.Second).Seconds()
			if share > w.options.MaxOverhead {
				return fmt.Sprintf("the probes took about %.0f %% of a CPU's time from the process, more than the %.3g %% allowed", 100*share, 100*w.options.MaxOverhead), nil
			}
			if err := w.names.process.Gone(); errors.Is(err, pyframes.ErrNoProcess) {
				return err.Error(), nil
			}
		case <-count.C:
			// Names are read while the code objects live.
			report, err := w.report()
			if err != nil {
				return "", err
			}
			if w.options.Update != nil {
				w.options.Update(report)
			}
		}
	}
}

func (w *watch) cost() (time.Duration, error) {
	cost, err := w.counter.Cost(w.hitCost)
	if err != nil {
		return 0, fmt.Errorf("reading the cost of the probes: %w", err)
	}
	return cost, nil
}

// report reads what was counted so far.
func (w *watch) report() (*WatchReport, error) {
	starts, err := w.counter.Starts()
	if err != nil {
		return nil, fmt.Errorf("reading the counts: %w", err)
	}
	r := &WatchReport{
		PID: w.names.process.PID(), Python: w.names.process.Interpreter().Version.String(),
		From: w.from, To: time.Now(), HitCost: w.hitCost, Functions: []StartedFunction{},
	}
	losses, err := w.counter.Losses()
	if err != nil {
		return nil, fmt.Errorf("reading the losses: %w", err)
	}
	r.Losses = losses.String()
	cost, err := w.cost()
	if err != nil {
		return nil, err
	}
	r.Overhead = cost.Seconds() / r.To.Sub(r.From).Seconds()
	sums := map[FunctionID]uint64{}
	for code, n := range starts {
		id, ok := w.names.of(code)
		switch {
		case n == 0 || id.other:
		case !ok:
			r.Unnamed += n
		case w.wants(id):
			sums[id] += n
		}
	}
	for id, n := range sums {
		r.Functions = append(r.Functions, StartedFunction{id, n})
	}
	slices.SortFunc(r.Functions, func(a, b StartedFunction) int {
		return cmp.Or(cmp.Compare(b.Starts, a.Starts), cmp.Compare(a.Module, b.Module), cmp.Compare(a.QualName, b.QualName), cmp.Compare(a.FirstLine, b.FirstLine))
	})
	return r, nil
}

func (w *watch) wants(id FunctionID) bool {
	return w.options.Query.matches(w.names.origin, id.Module, id.File)
}
