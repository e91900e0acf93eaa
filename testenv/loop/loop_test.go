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

// service is a subject that runs under `sca-probe run`, with its Remote Configuration file.
type service struct {
	*testenv.Subject
	t      *testing.T
	rcFile string
}

func startService(t *testing.T, in testenv.Interpreter, env ...string) *service {
	t.Helper()
	rcFile := filepath.Join(t.TempDir(), "targets.json")
	subject := testenv.StartSubject(t, in,
		testenv.WithPrefix(testenv.ProbePath(t), "run", "--rc-file", rcFile, "--"), testenv.WithEnv(env...))
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
	items := make([]any, len(targets))
	for i, target := range targets {
		items[i] = target
	}
	s.configureAll(items...)
}

// configureAll takes targets in either form, a string or an object.
func (s *service) configureAll(targets ...any) {
	s.t.Helper()
	payload, err := json.Marshal(testenv.Payload(targets...))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(string(payload))
}

// must fails the test unless an expression is true in the subject.
func (s *service) must(expression string) {
	s.t.Helper()
	if got := s.Eval(expression); got != true {
		s.t.Errorf("%s: %v; targets: %v", expression, got, s.Eval(`__import__("sca_probe").targets()`))
	}
}

// eventually waits until an expression is true in the subject.
func (s *service) eventually(expression string) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); s.Eval(expression) != true; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not so after %s: %s; targets: %v", patience, expression, s.Eval(`__import__("sca_probe").targets()`))
		}
	}
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

// hits is how often the engine says that a target was hit in the process.
func (s *service) hits(target string) string {
	s.t.Helper()
	return fmt.Sprint(s.Eval(fmt.Sprintf("sum(t['hits'] for t in __import__('sca_probe').targets() if t['target'] == %q)", target)))
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

// patch makes targets all that is desired, and waits until each is patched.
func (s *service) patch(targets ...string) {
	s.t.Helper()
	s.configure(targets...)
	for _, target := range targets {
		s.await(target, "patched")
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
	testenv.EachInterpreter(t, testenv.Engine|testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
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
			// CPython 3.12 leaves a mark in instructions with an inline cache only: without one, nothing is known.
			if e := r.Statements[0]; e.Witness != observer.Evidence || e.Executed == nil && in.Minor != 12 || e.Executed != nil && !*e.Executed {
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
			if hits := s.hits(target); hits != fmt.Sprint(times(i)) {
				t.Errorf("%s: the engine's counter is %s after the withdrawal, want %d still", target, hits, times(i))
			}
		}
	})
}

func TestObserverNeedsNoEngine(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine|testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
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
	testenv.EachInterpreter(t, testenv.Engine|testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.configure("colorsys:rgb_to_hsv", "xml.sax.saxutils:escape")
		s.await("colorsys:rgb_to_hsv", "pending")
		s.await("xml.sax.saxutils:escape", "pending")
		s.Exec("import colorsys; colorsys.rgb_to_hsv(0, 0, 0)")
		s.Exec("import xml.sax.saxutils; xml.sax.saxutils.escape('')")
		for _, target := range []string{"colorsys:rgb_to_hsv", "xml.sax.saxutils:escape"} {
			if hits := s.hits(target); hits != "1" {
				t.Errorf("%s: the first call after the import: %s hits, want 1", target, hits)
			}
		}
	})
}

// TestCountsOfImmortalObjects is about what CPython 3.12 and later never free (PEP 683). Their
// reference counts say so, and nothing may count in them.
func TestCountsOfImmortalObjects(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine|testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		if in.Minor < 12 {
			t.Skip("nothing is immortal before 3.12")
		}
		s := startService(t, in, testenv.Gates...)
		const counts = "[sys.getrefcount(o) for o in [*range(-5, 257), None, True, (), '', b'']]"
		before := fmt.Sprint(s.Eval(counts))
		s.configure("shapes:plain", "shapes:closure", "shapes:Shapes.method")
		s.await("shapes:Shapes.method", "patched")
		s.Call("plain", 10)
		s.configure()
		s.await("shapes:Shapes.method", "reverted")
		if after := fmt.Sprint(s.Eval(counts)); after != before {
			t.Errorf("reference counts of small numbers and singletons\nbefore: %s\nafter:  %s", before, after)
		}
	})
}

func TestModuleTakenOutOfSysModulesKeepsItsCounts(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.Exec("import colorsys; original = colorsys.rgb_to_hsv.__code__")
		s.patch("colorsys:rgb_to_hsv")
		s.Exec("colorsys.rgb_to_hsv(0, 0, 0); del sys.modules['colorsys']")
		s.await("colorsys:rgb_to_hsv", "pending")
		s.Exec("colorsys.rgb_to_hsv(0, 0, 0)")
		if hits := s.hits("colorsys:rgb_to_hsv"); hits != "2" {
			t.Errorf("%s hits, one from before the module went and one from after, want 2", hits)
		}
		s.configure()
		s.await("colorsys:rgb_to_hsv", "reverted")
		if s.Eval("colorsys.rgb_to_hsv.__code__ is original") != true {
			t.Error("the function did not get its code back")
		}
	})
}

// byValue does to plain what cloudpickle does to a function that another process is to run.
const byValue = `
import pickle, types
copied = types.FunctionType(plain.__code__.replace(co_consts=pickle.loads(pickle.dumps(plain.__code__.co_consts))), globals())
VALUES = [copied(1), plain(1)]
`

func TestPatchedFunctionIsPickledByValue(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.patch("shapes:plain")
		s.Exec(byValue)
		if s.Eval("VALUES[0] == VALUES[1]") != true {
			t.Errorf("the copy and the function return %v", s.Eval("VALUES"))
		}
		if hits := s.hits("shapes:plain"); hits != "1" {
			t.Errorf("%s hits, want 1, of the function and not of its copy", hits)
		}
	})
}

func TestReloadedModuleIsPatchedAgain(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine|testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.Exec("import colorsys; first = colorsys.rgb_to_hsv; original = first.__code__")
		s.patch("colorsys:rgb_to_hsv")
		// Before reload() returns, so that the first call counts.
		s.Exec("import importlib; importlib.reload(colorsys); colorsys.rgb_to_hsv(0, 0, 0)")
		if hits := s.hits("colorsys:rgb_to_hsv"); hits != "1" {
			t.Errorf("the reloaded function's first call: %s hits, want 1", hits)
		}
		if s.Eval("first.__code__ is original") != true {
			t.Error("the former function did not get its code back")
		}
	})
}
