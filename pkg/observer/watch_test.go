package observer_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// watch watches a subject while it works, or for as long as the options say.
func watch(t *testing.T, s observed, options observer.WatchOptions, work func()) *observer.WatchReport {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	worked := make(chan struct{})
	end := cancel
	if options.For == 0 {
		options.For = time.Minute
	} else {
		end = func() {}
	}
	options.Attached = func() {
		go func() { work(); end(); close(worked) }()
	}
	if options.MaxOverhead == 0 {
		options.MaxOverhead = 1000
	}
	report, err := observer.Watch(ctx, s.PID(), options)
	if err != nil {
		t.Fatal(err)
	}
	<-worked
	return report
}

func starts(report *observer.WatchReport, module, name string) uint64 {
	var n uint64
	for _, f := range report.Functions {
		if f.Module == module && f.QualName == name {
			n += f.Starts
		}
	}
	return n
}

func TestWatchCountsEveryFunction(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		site := t.TempDir()
		write(t, site, parser)
		s := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+site))
		s.Call("plain", 10)
		s.Exec("import time")
		report := watch(t, s, observer.WatchOptions{}, func() {
			s.Call("plain", 1234)
			s.Create("generator", 5)
			s.CallThreads("never", 100, 3)
			// What is imported in the window is counted too, and has no name before.
			s.Exec("import fp\nfor i in range(77): fp.parse(i)")
			s.Exec("time.sleep(1.2)") // its names are read while it is there
		})
		for name, want := range map[string]uint64{"plain": 1234, "generator": 0, "never": 300} {
			if got := starts(report, "shapes", name); got != want {
				t.Errorf("%s started %d times, want %d", name, got, want)
			}
		}
		for _, name := range []string{"parse", "scan"} {
			if got := starts(report, "fp", name); got != 77 {
				t.Errorf("%s started %d times, want 77", name, got)
			}
		}
		if report.Functions[0].QualName != "plain" || report.Losses != "" || report.Overhead <= 0 || report.EndedEarly == "" {
			t.Errorf("first %+v, lost %q, overhead %v, ended %q", report.Functions[0], report.Losses, report.Overhead, report.EndedEarly)
		}
		narrow := watch(t, s, observer.WatchOptions{Query: observer.FunctionQuery{Package: "fast.parser"}}, func() {
			s.Call("plain", 10)
			s.Exec("fp.Reader().read()")
		})
		if len(narrow.Functions) != 1 || narrow.Functions[0].Package != "Fast.Parser 1.2" || narrow.Functions[0].Starts != 1 {
			t.Errorf("of the package alone: %+v", narrow.Functions)
		}
	})
}

func TestWatchEndsWhenItCostsTooMuch(t *testing.T) {
	s := testenv.StartSubject(t, debian(t))
	report := watch(t, s, observer.WatchOptions{MaxOverhead: 0.05, For: 10 * time.Second}, func() {
		s.Exec("import time\nuntil = time.time() + 5\nwhile time.time() < until: plain(1)")
	})
	if report.To.Sub(report.From) > 4*time.Second || !strings.Contains(report.EndedEarly, "more than the 5 % allowed") {
		t.Errorf("ended after %s: %q", report.To.Sub(report.From), report.EndedEarly)
	}
	if starts(report, "shapes", "plain") == 0 || report.Losses != "" {
		t.Errorf("%d starts, lost %q", starts(report, "shapes", "plain"), report.Losses)
	}
	// The bound rests on what a hit was measured to cost here.
	var calls float64
	for _, f := range report.Functions {
		calls += float64(f.Starts)
	}
	if least := calls * min(report.HitCost.Emulated, report.HitCost.Stepped).Seconds() / report.To.Sub(report.From).Seconds(); least == 0 || report.Overhead < least {
		t.Errorf("an overhead of %v, with %v starts and %+v a hit", report.Overhead, calls, report.HitCost)
	}
}

func TestWatchRunsItsTimeWhereLittleRuns(t *testing.T) {
	s := testenv.StartSubject(t, debian(t))
	s.Exec("import time")
	const window = 1500 * time.Millisecond
	report := watch(t, s, observer.WatchOptions{MaxOverhead: 0.05, For: window}, func() {
		s.Exec("for i in range(120): plain(1); time.sleep(0.01)")
	})
	if report.EndedEarly != "" || report.To.Sub(report.From) < window || report.Overhead <= 0 || report.Overhead > 0.05 {
		t.Errorf("ended after %s with an overhead of %v: %q", report.To.Sub(report.From), report.Overhead, report.EndedEarly)
	}
	if n := starts(report, "shapes", "plain"); n == 0 || n > 120 {
		t.Errorf("%d starts, want some of 120", n)
	}
}

func TestWatchOfAProcessThatEnds(t *testing.T) {
	for name, end := range map[string]string{"exits": "os._exit(0)", "execs": "os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(3)'])"} {
		t.Run(name, func(t *testing.T) {
			s := testenv.StartSubject(t, debian(t))
			s.Exec("import os, threading")
			report := watch(t, s, observer.WatchOptions{For: 20 * time.Second}, func() {
				s.Call("plain", 50)
				s.Exec("threading.Timer(0.05, lambda: " + end + ").start()")
			})
			if got := starts(report, "shapes", "plain"); got != 50 {
				t.Errorf("%d starts until the end, want 50", got)
			}
			if !strings.Contains(report.EndedEarly, pyframes.ErrNoProcess.Error()) || report.To.Sub(report.From) > 5*time.Second {
				t.Errorf("ended after %s: %q", report.To.Sub(report.From), report.EndedEarly)
			}
		})
	}
}

func TestWatchRefuses(t *testing.T) {
	_, err := observer.Watch(context.Background(), os.Getpid(), observer.WatchOptions{For: time.Second, MaxOverhead: 1})
	if !errors.Is(err, pyframes.ErrNotPython) {
		t.Errorf("of this test: %v", err)
	}
	s := testenv.StartSubject(t, debian(t))
	_, err = observer.Watch(context.Background(), s.PID(), observer.WatchOptions{For: time.Second, MaxOverhead: 1, Query: observer.FunctionQuery{Package: "absent"}})
	if !errors.Is(err, observer.ErrNoPackage) {
		t.Errorf("of a package that is not installed: %v", err)
	}
}
