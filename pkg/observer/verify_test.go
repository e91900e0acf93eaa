package observer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// verify watches targets of a subject while it works.
func verify(t *testing.T, s observed, work func(), names ...string) []observer.Report {
	t.Helper()
	var targets []rc.Target
	for _, name := range names {
		target, err := rc.ParseTarget(name)
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, target)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reports, err := observer.Verify(ctx, s.PID(), targets, func() {
		go func() { work(); cancel() }()
	})
	if err != nil {
		t.Fatal(err)
	}
	return reports
}

func statement(r observer.Report, witness string) *observer.Statement {
	for i := range r.Statements {
		if r.Statements[i].Witness == witness {
			return &r.Statements[i]
		}
	}
	return nil
}

// TestVerifyClosesTheGapsOfEvidence watches a function that leaves no mark on 3.12, and more targets
// than the hardware watches.
func TestVerifyClosesTheGapsOfEvidence(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		s.Exec("def quiet(): pass\ndef a(): pass\ndef b(): pass\ndef c(): pass\ndef d(): pass")
		reports := verify(t, s, func() { s.Exec("for _ in range(42): quiet(); d()") },
			"shapes:quiet", "shapes:a", "shapes:b", "shapes:c", "shapes:d")
		for i, want := range []uint64{42, 0, 0, 0, 42} {
			r := reports[i]
			verdict := observer.Resolved
			if want > 0 {
				verdict = observer.Executed
			}
			if loop := statement(r, observer.EvalLoop); r.Verdict != verdict || *loop.Count != want || loop.From == nil {
				t.Errorf("%s: %s (%s), %+v", r.Target, r.Verdict, r.Reason, loop)
			}
			point := statement(r, observer.Watchpoint)
			switch {
			case in.Minor != 12:
				if point != nil {
					t.Errorf("%s: a watchpoint, where evidence has no gap: %+v", r.Target, point)
				}
			case i == 4:
				if point == nil || point.Executed != nil || point.Detail == "" {
					t.Errorf("%s, one more than the hardware watches: %+v", r.Target, point)
				}
			case point == nil || point.Count == nil || *point.Count != want:
				t.Errorf("%s: the watchpoint says %+v, want %d", r.Target, point, want)
			}
		}
	})
}

func TestVerifyOfAProcessThatEnds(t *testing.T) {
	for name, end := range map[string]string{"exits": "os._exit(0)", "execs": "os.execv('/bin/sleep', ['sleep', '3'])"} {
		t.Run(name, func(t *testing.T) {
			s := testenv.StartSubject(t, debian(t))
			s.Exec("import os, threading")
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := observer.Verify(ctx, s.PID(), []rc.Target{{Module: "shapes", QualName: "plain"}}, func() {
				go s.Exec("threading.Timer(0.05, lambda: " + end + ").start()")
			})
			if !errors.Is(err, pyframes.ErrNoProcess) {
				t.Errorf("the answer is %v, want that there is no such process", err)
			}
		})
	}
}
