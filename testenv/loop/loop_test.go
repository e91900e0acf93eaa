// Package loop tests the product end to end: Remote Configuration in, code swapped, execution
// confirmed from the kernel, code back, on every interpreter.
package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

const patience = 20 * time.Second

// gates turn the engine on.
var gates = []string{"DD_SCA_DETECTION_ENABLED=1", "DD_APPSEC_ENABLED=1", "DD_APPSEC_SCA_ENABLED=1"}

// service is a subject that runs under `sca-probe run`, with its Remote Configuration file.
type service struct {
	*testenv.Subject
	t      *testing.T
	rcFile string
}

func probePath(t *testing.T) string {
	t.Helper()
	path := filepath.Join(testenv.Root(), "build", "bin", "sca-probe")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return path
}

func startService(t *testing.T, in testenv.Interpreter, env ...string) *service {
	t.Helper()
	rcFile := filepath.Join(t.TempDir(), "targets.json")
	subject := testenv.StartSubject(t, in,
		testenv.WithPrefix(probePath(t), "run", "--rc-file", rcFile, "--"), testenv.WithEnv(env...))
	return &service{Subject: subject, t: t, rcFile: rcFile}
}

// write replaces the Remote Configuration file by a rename, as a deployment would.
func (s *service) write(content string) {
	s.t.Helper()
	next := s.rcFile + ".next"
	if err := os.WriteFile(next, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(next, s.rcFile); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) configure(targets ...string) {
	s.t.Helper()
	payload, err := json.Marshal(map[string]any{"sca_instrumentation": map[string]any{"targets": append([]string{}, targets...)}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(string(payload))
}

// state is a target's state as the engine has it, "" when it knows nothing of it.
func (s *service) state(target string) (state, reason string) {
	s.t.Helper()
	text, _ := s.Eval(fmt.Sprintf(
		"next((t['state'] + '|' + t.get('reason', '') for t in __import__('sca_probe').targets() if t['target'] == %q), '|')", target)).(string)
	for i := range text {
		if text[i] == '|' {
			return text[:i], text[i+1:]
		}
	}
	return text, ""
}

func (s *service) await(target, state string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		got, reason := s.state(target)
		if got == state {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is %q (%s) after %s, want %q", target, got, reason, patience, state)
		}
	}
}

// watch runs work within a window of the observer.
func (s *service) watch(targets []string, work func()) map[string]observer.Report {
	s.t.Helper()
	parsed := make([]rc.Target, 0, len(targets))
	for _, target := range targets {
		p, err := rc.ParseTarget(target)
		if err != nil {
			s.t.Fatal(err)
		}
		parsed = append(parsed, p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	attached := make(chan struct{})
	type outcome struct {
		reports []observer.Report
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		reports, err := observer.Verify(ctx, s.PID(), parsed, func() { close(attached) })
		done <- outcome{reports, err}
	}()
	select {
	case <-attached:
	case o := <-done:
		s.t.Fatalf("observer: %v", o.err)
	}
	work()
	cancel()
	o := <-done
	if o.err != nil {
		s.t.Fatalf("observer: %v", o.err)
	}
	reports := map[string]observer.Report{}
	for _, r := range o.reports {
		reports[r.Target.String()] = r
	}
	return reports
}

func counts(r observer.Report) map[string]uint64 {
	counts := map[string]uint64{}
	for _, s := range r.Statements {
		if s.Count != nil {
			counts[s.Witness] = *s.Count
		}
	}
	return counts
}

// shapes are the functions of testenv/subjects/shapes.py that the loop closes on, each called a
// number of times of its own, so that no count can be another's.
var shapes = []string{
	"plain", "Shapes.method", "Shapes.class_method", "Shapes.static_method", "generator", "coroutine",
	"closure", "raises", "keywords", "async_generator", "closure_generator", "wrapped",
	"Shapes.attribute", "Shapes.Inner.deep", "Child.own",
}

func times(i int) uint64 { return uint64(50 + 7*i) }

func TestTheLoopCloses(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		targets := make([]string, len(shapes))
		for i, shape := range shapes {
			targets[i] = "shapes:" + shape
		}
		s.configure(targets...)
		for _, target := range targets {
			s.await(target, "patched")
		}

		during := s.watch(targets, func() {
			// Created and not started: nothing may count these.
			s.Create("generator", 11)
			s.Create("coroutine", 11)
			for i, shape := range shapes {
				s.Call(shape, int(times(i)))
			}
		})
		for i, target := range targets {
			r := during[target]
			if r.Verdict != observer.Executed {
				t.Errorf("%s: verdict %s (%s), want executed", target, r.Verdict, r.Reason)
			}
			got := counts(r)
			for _, witness := range []string{observer.EngineCount, observer.StaticProbe, observer.EvalLoop} {
				if n, ok := got[witness]; !ok || n != times(i) {
					t.Errorf("%s: %s counted %d (said so: %t), want %d", target, witness, n, ok, times(i))
				}
			}
			if e := r.Statements[0]; e.Witness != observer.Evidence || e.Executed == nil || !*e.Executed {
				t.Errorf("%s: evidence %+v, want executed", target, e)
			}
			if len(r.Callers) == 0 || filepath.Base(r.Callers[0].Path) != "shapes.py" || r.Callers[0].Line == 0 {
				t.Errorf("%s: callers %+v, want one in shapes.py", target, r.Callers)
			}
		}

		after := s.watch(targets, func() {
			s.configure()
			for _, target := range targets {
				s.await(target, "reverted")
			}
			for i, shape := range shapes {
				if same := s.Eval(fmt.Sprintf("function_of(%q).__code__ is ORIGINALS[%q]", shape, shape)); same != true {
					t.Errorf("%s: the original code object is not back", shape)
				}
				s.Call(shape, int(times(i)))
			}
		})
		for i, target := range targets {
			r := after[target]
			if r.Verdict != observer.Reverted {
				t.Errorf("%s: verdict %s (%s) after the withdrawal, want reverted", target, r.Verdict, r.Reason)
			}
			got := counts(r)
			if got[observer.EngineCount] != 0 || got[observer.StaticProbe] != 0 || got[observer.EvalLoop] != times(i) {
				t.Errorf("%s: counts %v after the withdrawal, want 0, 0 and %d starts of the original", target, got, times(i))
			}
			hits := s.Eval(fmt.Sprintf("[t['hits'] for t in __import__('sca_probe').targets() if t['target'] == %q][0]", target))
			if fmt.Sprint(hits) != fmt.Sprint(times(i)) {
				t.Errorf("%s: the engine's counter is %v after the withdrawal, want %d still", target, hits, times(i))
			}
		}
	})
}

func TestObserverNeedsNoEngine(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := &service{Subject: testenv.StartSubject(t, in), t: t}
		reports := s.watch([]string{"shapes:plain", "shapes:never", "shapes:absent", "colorsys:rgb_to_hsv"}, func() {
			s.Call("plain", 33)
		})
		if r := reports["shapes:plain"]; r.Verdict != observer.Executed || counts(r)[observer.EvalLoop] != 33 {
			t.Errorf("plain: %s, counts %v, want executed 33 times", r.Verdict, counts(r))
		}
		if r := reports["shapes:never"]; r.Verdict != observer.Resolved || counts(r)[observer.EvalLoop] != 0 {
			t.Errorf("never: %s, counts %v, want resolved and 0", r.Verdict, counts(r))
		}
		if r := reports["shapes:absent"]; r.Verdict != observer.Unresolved || r.Reason == "" {
			t.Errorf("absent: %s (%s), want unresolved and why", r.Verdict, r.Reason)
		}
		if r := reports["colorsys:rgb_to_hsv"]; r.Verdict != observer.NotImported {
			t.Errorf("colorsys: %s, want not-imported", r.Verdict)
		}
	})
}

func TestLateImport(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		s.configure("colorsys:rgb_to_hsv")
		s.await("colorsys:rgb_to_hsv", "pending")
		s.Exec("import colorsys")
		s.await("colorsys:rgb_to_hsv", "patched")
	})
}

func TestReloadedModuleIsPatchedAgain(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		s.Exec("import colorsys; first = colorsys.rgb_to_hsv; original = first.__code__")
		s.configure("colorsys:rgb_to_hsv")
		s.await("colorsys:rgb_to_hsv", "patched")
		s.Exec("import importlib; importlib.reload(colorsys)")
		for deadline := time.Now().Add(patience); s.Eval("colorsys.rgb_to_hsv(0, 0, 0) and [v['hits'] for v in __import__('sca_probe').stats().values()] != [] and colorsys.rgb_to_hsv.__code__.co_consts[-1].__class__.__name__ == 'builtin_function_or_method'") != true; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the reloaded function was not patched")
			}
		}
		if s.Eval("first.__code__ is original") != true {
			t.Error("the former function did not get its code back")
		}
	})
}
