package loop

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/testenv"
)

// underDdtrace runs f with the CPython that every ddtrace is tested with, and in `make test-all` with the oldest and
// the newest that the newest ddtrace supports.
func underDdtrace(t *testing.T, f func(t *testing.T, in testenv.Interpreter)) {
	minors := []int{12}
	if os.Getenv("SCA_PROBE_TEST_ALL") != "" {
		minors = []int{9, 12, 14}
	}
	for _, minor := range minors {
		name := fmt.Sprintf("3.%d", minor)
		t.Run(name, func(t *testing.T) {
			f(t, testenv.Interpreter{Name: name, Major: 3, Minor: minor,
				Path: filepath.Join(testenv.DdtraceRelease{Python: name, Ddtrace: testenv.NewestDdtrace}.Environment(t), "bin", "python")})
		})
	}
}

// ddtracesOwn has ddtrace instrument functions by its own SCA instrumentation, count, and take itself out.
const ddtracesOwn = `
import sca_probe
from ddtrace.appsec.sca._instrumenter import Instrumenter, sca_detection_hook, _first_instr_line
from ddtrace.appsec.sca._registry import InstrumentationRegistry
from ddtrace.internal.bytecode_injection import eject_hook
registry = InstrumentationRegistry()
instrumenter = Instrumenter(registry)
INSTRUMENTED = []
def ddtrace_in(paths):
    for path in paths:
        INSTRUMENTED.append((path, _first_instr_line(function_of(path).__code__)))
        assert instrumenter.instrument(path, function_of(path)), path
def ddtrace_out():
    for path, line in INSTRUMENTED:
        eject_hook(function_of(path), sca_detection_hook, line, path)
        registry.remove_target(path)
    del INSTRUMENTED[:]
def hits(path):
    ours = sum(t["hits"] for t in sca_probe.targets() if t["target"] == "shapes:" + path)
    return ours, registry._targets[path].hit_count if registry.has_target(path) else 0
def counted(paths):
    """How many calls the engine counts, and ddtrace, of so many of each function."""
    answer = {}
    for times, path in enumerate(paths, 3):
        before = hits(path)
        results = set(map(str, _call(path, times)))
        assert len(results) == 1 and "Hook" not in str(results), results
        answer[path] = [times] + [after - before for after, before in zip(hits(path), before)]
    return answer
`

// TestBesideDdtracesOwnInstrumentation has both instrument the same functions, in either order, and revert in
// either order. Whoever is in counts each call once, and what is out does not.
func TestBesideDdtracesOwnInstrumentation(t *testing.T) {
	const engineIn, engineOut, ddtraceIn, ddtraceOut = "engine in", "engine out", "ddtrace in", "ddtrace out"
	orders := [][]string{
		{engineIn, ddtraceIn, engineOut, ddtraceOut},
		{engineIn, ddtraceIn, ddtraceOut, engineOut},
		{ddtraceIn, engineIn, engineOut, ddtraceOut},
		{ddtraceIn, engineIn, ddtraceOut, engineOut},
	}
	// No generators and coroutines: on CPython 3.12 ddtrace counts them twice, by itself too.
	functions := []string{"plain", "Shapes.method", "closure", "raises", "keywords", "Shapes.static_method", "wrapped"}
	list, _ := json.Marshal(functions)
	var targets []string
	for _, function := range functions {
		targets = append(targets, "shapes:"+function)
	}
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		for _, order := range orders {
			t.Run(strings.Join(order, ", "), func(t *testing.T) {
				s := startService(t, in, testenv.Gates...)
				s.Exec(ddtracesOwn)
				ours, theirs := 0, 0
				count := func(when string) {
					t.Helper()
					for function, counted := range s.Eval(fmt.Sprintf("counted(%s)", list)).(map[string]any) {
						n := ints(t, counted)
						if times := n[0]; n[1] != ours*times || n[2] != theirs*times {
							t.Errorf("after %s, of %d calls of %s the engine counts %d and ddtrace %d", when, times, function, n[1], n[2])
						}
					}
				}
				for i, step := range order {
					state := ""
					switch step {
					case engineIn:
						s.configure(targets...)
						ours, state = 1, "patched"
					case engineOut:
						s.configure()
						ours, state = 0, "reverted"
					case ddtraceIn:
						s.Exec(fmt.Sprintf("ddtrace_in(%s)", list))
						theirs = 1
					case ddtraceOut:
						s.Exec("ddtrace_out()")
						theirs = 0
					}
					when := strings.Join(order[:i+1], ", ")
					for _, target := range targets {
						if state != "" {
							s.await(target, state)
						}
					}
					count(when)
					time.Sleep(1200 * time.Millisecond) // the engine compares what is in place
					count(when + ", and a while")
					if i+1 < len(order) && ours+theirs < 2 {
						continue
					}
					for target, report := range s.watch(targets[:2], func() { s.Call("plain", 4); s.Call("Shapes.method", 4) }) {
						got := counts(report)
						if report.Verdict != observer.Executed || got[observer.StaticProbe] != uint64(4*ours) || got[observer.EvalLoop] != 4 {
							t.Errorf("after %s, the observer on 4 calls of %s: %s (%s), counts %v", when, target, report.Verdict, report.Reason, got)
						}
					}
				}
				// What is left takes both once more.
				s.configure(targets...)
				for _, target := range targets {
					s.await(target, "patched")
				}
				s.Exec(fmt.Sprintf("ddtrace_in(%s)", list))
				ours, theirs = 1, 1
				count(strings.Join(order, ", ") + ", both in")
			})
		}
	})
}

// TestDdtraceCountsEachBeginningOfTheLine shows what docs/ddtrace.md says of ddtrace's own hook: it is called wherever
// code begins on the line of the def. By itself that is more than once for spread. The engine's prologue makes it no
// more than that, and the engine counts right.
func TestDdtraceCountsEachBeginningOfTheLine(t *testing.T) {
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		if in.Minor < 11 {
			t.Skip("the prologue has a line before CPython 3.11")
		}
		s := startService(t, in, testenv.Gates...)
		s.Exec(ddtracesOwn + `
import shapes
def one_line(x): return x
def spread(x): return max(x,
    0)
def again(x): return max(x,
    0)
shapes.one_line, shapes.spread, shapes.again = one_line, spread, again
def of_three_calls(name):
    before = hits(name)
    for _ in range(3):
        getattr(shapes, name)(1)
    return [after - before for after, before in zip(hits(name), before)]
`)
		expect := func(when, name string, ours, theirs int) {
			t.Helper()
			if n := ints(t, s.Eval(fmt.Sprintf("of_three_calls(%q)", name))); n[0] != ours || n[1] != theirs {
				t.Errorf("%s, of 3 calls of %s the engine counts %d and ddtrace %d, want %d and %d", when, name, n[0], n[1], ours, theirs)
			}
		}
		s.Exec(`assert instrumenter.instrument("spread", spread)`)
		expect("ddtrace alone", "spread", 0, 6)
		s.patch("shapes:one_line")
		s.Exec(`assert instrumenter.instrument("one_line", one_line)`)
		expect("the engine first", "one_line", 3, 3)
		s.configure("shapes:one_line", "shapes:again")
		s.await("shapes:again", "patched")
		s.Exec(`assert instrumenter.instrument("again", again)`)
		expect("the engine first", "again", 3, 6)
	})
}

func ints(t *testing.T, list any) []int {
	t.Helper()
	var numbers []int
	text, err := json.Marshal(list)
	if err == nil {
		err = json.Unmarshal(text, &numbers)
	}
	if err != nil {
		t.Fatal(err)
	}
	return numbers
}
