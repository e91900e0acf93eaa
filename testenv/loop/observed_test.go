package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// TestObserverReadsWhatTheEngineDid compares what is read from outside with what Python says of
// a target, of the function around one, and of a carrier's other functions.
func TestObserverReadsWhatTheEngineDid(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine|testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.Exec("import targets; t = sys.modules['targets']")
		id := func(expr string) uint64 {
			t.Helper()
			n, err := s.Eval("id(" + expr + ")").(json.Number).Int64()
			if err != nil {
				t.Fatal(err)
			}
			return uint64(n)
		}
		const outer, inner, plain = "targets:outer", "targets:outer.<locals>.inner", "targets:innermost"
		before := map[string]uint64{outer: id("t.outer.__code__"), inner: id("t.code_in(t.outer, 'inner')"), plain: id("t.innermost.__code__")}
		s.patch(inner, plain)
		s.Exec("for _ in range(3): t.innermost(1); t.outer(1)[0](2)")

		p, err := pyframes.OpenProcess(s.PID())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for target, patched := range map[string]bool{outer: false, inner: true, plain: true, "targets:outer.<locals>.with_inner": false} {
			parsed, err := rc.ParseTarget(target)
			if err != nil {
				t.Fatal(err)
			}
			f, err := p.Resolve(parsed)
			if err != nil {
				t.Fatal(err)
			}
			if (f.Hook != nil) != patched {
				t.Errorf("%s: hook %+v", target, f.Hook)
			}
			if patched && (f.Hook.Target != target || f.Hook.Hits != 3 || f.Hook.State != pyframes.InPlace || f.Hook.Mode != pyframes.CountMode) {
				t.Errorf("%s: hook %+v", target, f.Hook)
			}
			if was, known := before[target]; known && (f.Original.Addr != was || f.Code.Addr == was) {
				t.Errorf("%s: code %#x, original %#x, was %#x", target, f.Code.Addr, f.Original.Addr, was)
			}
		}
		// Every function once, by its original.
		seen := map[string]int{}
		for f, err := range p.Functions(context.Background(), &pyframes.FunctionScan{Match: func(module string, _ pyframes.Code) bool { return module == "targets" }}) {
			if err != nil {
				t.Fatal(err)
			}
			seen[f.QualName]++
			target := "targets:" + f.QualName
			if was := before[target]; was != 0 && f.Addr != was {
				t.Errorf("%s: code %#x among the functions, was %#x", target, f.Addr, was)
			}
			// 3.12 leaves no evidence of running what has no inline cache.
			ran := f.Evidence.Executed || in.Minor == 12 && f.Evidence.Misses != ""
			if patched := target == inner || target == plain; (f.Hook != nil) != patched || patched && !ran {
				t.Errorf("%s: hook %+v, evidence %+v", target, f.Hook, f.Evidence)
			}
		}
		for _, name := range []string{"outer", "outer.<locals>.inner", "innermost", "outer.<locals>.with_inner.<locals>.innermost_local"} {
			if seen[name] != 1 {
				t.Errorf("%s comes %d times", name, seen[name])
			}
		}
	})
}

// TestObserverReadsTheEnginesState reads, from outside, the state and numbers that sca_probe.stats()
// returns inside.
func TestObserverReadsTheEnginesState(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine|testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		engine := func(s *service) *pyframes.Engine {
			t.Helper()
			p, err := pyframes.OpenProcess(s.PID())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			e, err := p.Engine()
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		if e := engine(startService(t, in)); e != nil {
			t.Errorf("without the testenv.Gates: %+v", e)
		}
		s := startService(t, in, testenv.Gates...)
		s.configure("shapes:plain", "shapes:Shapes.method", "absent:f")
		s.await("shapes:plain", "patched")
		s.await("shapes:Shapes.method", "patched")
		e := engine(s)
		if e == nil || e.State != pyframes.EngineRunning || e.Forks != 0 {
			t.Fatalf("read %+v", e)
		}
		inside := s.Eval("sys.modules['sca_probe'].stats()").(map[string]any)
		for name, got := range e.Numbers {
			switch want, known := inside[name]; {
			case !known:
				t.Errorf("the engine does not know %s", name)
			case strings.HasPrefix(name, "turn") || name == "imports": // goes on
			case fmt.Sprint(got) != fmt.Sprint(want):
				t.Errorf("%s is %d, the engine says %v", name, got, want)
			}
		}
		if len(inside) != len(e.Numbers)+3 { // and its state, the reason, and forks
			t.Errorf("%d numbers read, the engine has %d", len(e.Numbers), len(inside)-3)
		}
		list, _, err := observer.Processes(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.PID == s.PID() && (p.Engine == nil || p.Engine.Numbers["patched"] != 2 || p.Engine.Numbers["targets"] != 3 || !p.EvalLoop.Supported) {
				t.Errorf("listed as %+v", p)
			}
		}
		s.Exec("sys.modules['sca_probe._engine'].stop()")
		if e := engine(s); e == nil || e.State != pyframes.EngineStopped {
			t.Errorf("after its stop: %+v", e)
		}
	})
}

// TestFirstHitCountsAsExecuted verifies a target whose hook removed itself, by the engine's word, and
// does not claim afterwards that the function, now as it was, never ran.
func TestFirstHitCountsAsExecuted(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine|testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.configureAll(map[string]any{"target": "shapes:plain", "mode": "first_hit"})
		s.await("shapes:plain", "patched")
		report := s.watch([]string{"shapes:plain"}, func() {
			s.Call("plain", 1)
			s.await("shapes:plain", "hit")
		})["shapes:plain"]
		if report.Verdict != observer.Executed {
			t.Errorf("hit once within the window: %s (%s), %+v", report.Verdict, report.Reason, report.Statements)
		}
		after := s.watch([]string{"shapes:plain"}, func() {})["shapes:plain"]
		for _, statement := range after.Statements {
			if statement.Witness == observer.Evidence && statement.Executed != nil && !*statement.Executed {
				t.Errorf("afterwards, the evidence says that it did not run: %+v", statement)
			}
		}
		functions, err := observer.Functions(context.Background(), s.PID(), observer.FunctionQuery{Module: "shapes"})
		if err != nil {
			t.Fatal(err)
		}
		if in.Minor != 12 && !strings.Contains(functions.NeverMisses, "while the engine had it patched") {
			t.Errorf("of functions that never ran: %q", functions.NeverMisses)
		}
	})
}
