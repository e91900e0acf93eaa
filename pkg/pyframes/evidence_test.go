package pyframes_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// What evidence says of a target.
const (
	ran      = "executed"
	neverRan = "never executed"
	maybeRan = "unknown"
)

func verdict(t *testing.T, p *pyframes.Process, target string) string {
	t.Helper()
	e, err := p.Evidence(resolve(t, p, target).Code)
	switch {
	case errors.Is(err, pyframes.ErrAmbiguousEvidence):
		return maybeRan
	case err != nil:
		t.Fatalf("evidence of %s: %v", target, err)
	case e.Detail == "":
		t.Errorf("evidence of %s without a detail", target)
	case e.Executed:
		return ran
	case e.Misses != "":
		return maybeRan
	}
	return neverRan
}

// hardToTell lists, by minor version, the targets whose runs may leave no evidence, and those that
// evidence may not say of that they did not run.
var hardToTell = map[int][]string{
	6: {"all"}, 7: {"all"}, 12: {"all"}, 13: {"all"}, 14: {"all"}, 15: {"all"},
	8: {"generator", "coroutine", "async_generator", "closure_generator"}, 9: {"generator", "coroutine", "async_generator", "closure_generator"},
	10: {"generator", "coroutine", "async_generator", "closure_generator"},
}

func TestEvidence(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		mayBeUnknown := func(path string) bool {
			list := hardToTell[in.Minor]
			return slices.Contains(list, "all") || slices.Contains(list, path)
		}
		// A claim is wrong when it contradicts what was done; "unknown" is one only where the
		// version could tell.
		expect := func(path, want, when string) {
			t.Helper()
			got := verdict(t, p, "shapes:"+path)
			if got == want || got == maybeRan && want == neverRan && mayBeUnknown(path) {
				return
			}
			// It returns a constant, and no instruction of it has an inline cache.
			if got == maybeRan && path == "Shapes.attribute" && in.Minor == 12 {
				return
			}
			t.Errorf("%s is %s %s, want %s", path, got, when, want)
		}
		for _, path := range targets(s) {
			expect(path, neverRan, "before any call")
		}
		created := []string{"generator", "coroutine", "async_generator", "closure_generator"}
		for _, path := range created {
			s.Create(path, 20)
			expect(path, neverRan, "after it was created 20 times and never started")
		}
		s.Exec("for made in KEPT: getattr(made, 'close', int)()\nKEPT.clear(); __import__('gc').collect()")
		for _, path := range created {
			expect(path, neverRan, "after closing what never started")
		}
		inherited := map[string]bool{}
		for _, path := range targets(s) {
			if path == "never" {
				continue
			}
			// Child.method is Shapes.method.
			if !inherited[strings.TrimPrefix(path, "Child.")] {
				expect(path, neverRan, "after other targets' calls")
			}
			s.Call(path, 1)
			inherited[strings.TrimPrefix(path, "Shapes.")] = true
			expect(path, ran, "after one call")
			s.Call(path, 50)
			expect(path, ran, "after 51 calls")
		}
		expect("never", neverRan, "at the end")
	})
}

func TestEvidenceCountsWhereTheVersionDoes(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		if in.Minor < 8 || in.Minor > 11 {
			t.Skip("this version keeps no count")
		}
		most := uint64(1024)
		if in.Minor == 11 {
			most = 8
		}
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		f := resolve(t, p, "shapes:plain")
		for calls := uint64(1); calls < 2*most; calls *= 2 {
			s.Call("plain", int(calls-calls/2))
			e, err := p.Evidence(f.Code)
			if err != nil {
				t.Fatal(err)
			}
			if e.Entries != min(calls, most) || e.AtLeast != (calls >= most) {
				t.Errorf("after %d calls: %+v", calls, e)
			}
		}
		s.Exec("def loops(n):\n  for i in range(n): pass\nloops(5)")
		e, err := p.Evidence(resolve(t, p, "shapes:loops").Code)
		if err != nil || !e.Executed || e.Entries != 1 && in.Minor < 11 || e.Entries != 0 && in.Minor == 11 {
			t.Errorf("a loop: %+v, %v", e, err)
		}
	})
}

func TestEvidenceInForkedChildren(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		s.Call("plain", 1)
		s.Exec("import os\nend_r, end_w = os.pipe(); out_r, out_w = os.pipe()\nchild = os.fork()\n" +
			"if not child:\n  os.close(end_w); keywords(1); os.write(out_w, b'x'); os.read(end_r, 1); os._exit(0)")
		s.Exec("os.close(end_r); os.read(out_r, 1)")
		pid, err := s.Eval("child").(json.Number).Int64()
		if err != nil {
			t.Fatal(err)
		}
		child, err := pyframes.OpenProcess(int(pid))
		if err != nil {
			t.Fatal(err)
		}
		defer child.Close()
		parent := open(t, s)
		for target, want := range map[string][2]string{
			"shapes:plain":    {ran, ran}, // before the fork
			"shapes:keywords": {neverRan, ran},
			"shapes:never":    {neverRan, neverRan},
		} {
			for i, p := range []*pyframes.Process{parent, child} {
				if got := verdict(t, p, target); got != want[i] && !(got == maybeRan && want[i] == neverRan && slices.Contains(hardToTell[in.Minor], "all")) {
					t.Errorf("%s is %s in %s, want %s", target, got, []string{"the parent", "the child"}[i], want[i])
				}
			}
		}
		s.Exec("os.close(end_w); os.waitpid(child, 0)")
	})
}

func TestEvidenceUnderTracing(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		s.Exec("sys.settrace(lambda *args: None)")
		s.Call("plain", 1)
		s.Exec("sys.settrace(None)")
		if got := verdict(t, p, "shapes:plain"); got != ran {
			t.Errorf("after a traced call, plain is %s", got)
		}
		s.Call("plain", 3)
		if got := verdict(t, p, "shapes:plain"); got != ran {
			t.Errorf("after tracing ended, plain is %s", got)
		}
		if got := verdict(t, p, "shapes:never"); got == ran {
			t.Errorf("under tracing, never is %s", got)
		}
		s.Exec("def inside(): pass\nsys.settrace(lambda *args: inside()); (lambda: 0)(); sys.settrace(None)")
		e, err := p.Evidence(resolve(t, p, "shapes:inside").Code)
		if err != nil {
			t.Fatal(err)
		}
		if !e.Executed && e.Misses == "" {
			t.Errorf("a call from inside a trace function: %+v; want it seen, or named as missed", e)
		}
	})
}

func TestEvidenceUnderMonitoring(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		if in.Minor < 12 {
			t.Skip("sys.monitoring is of 3.12")
		}
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		never := resolve(t, p, "shapes:never").Code
		for _, stmt := range []string{
			"m = sys.monitoring; m.use_tool_id(3, 'test'); m.set_local_events(3, never.__code__, m.events.PY_START)",
			"m.set_local_events(3, never.__code__, m.events.LINE | m.events.INSTRUCTION | m.events.CALL)",
			"m.set_local_events(3, never.__code__, 0)",
			"m.set_local_events(3, never.__code__, m.events.PY_START); m.set_events(3, m.events.PY_RETURN); m.set_events(3, 0)",
			"m.set_local_events(3, never.__code__, 0); m.free_tool_id(3)",
		} {
			s.Exec(stmt)
			if e, err := p.Evidence(never); e.Executed || err != nil && !errors.Is(err, pyframes.ErrAmbiguousEvidence) {
				t.Errorf("never ran, and after %s: %+v, %v", stmt, e, err)
			}
		}
		s.Exec("m.use_tool_id(3, 'test'); m.set_events(3, m.events.PY_START)")
		s.Call("keywords", 1)
		if got := verdict(t, p, "shapes:keywords"); got != ran {
			t.Errorf("after a monitored call, keywords is %s", got)
		}
		s.Exec("m.set_events(3, 0); m.free_tool_id(3)")
		s.Call("raises", 1)
		if got := verdict(t, p, "shapes:raises"); got != ran {
			t.Errorf("after monitoring ended, raises is %s", got)
		}
	})
}
