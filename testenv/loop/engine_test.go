package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sca-probe/testenv"
)

// mappedEngine reports whether any file of the engine is mapped in the process.
func mappedEngine(t *testing.T, pid int) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(maps), "_engine")
}

func threads(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestOffByDefault(t *testing.T) {
	environments := map[string][]string{
		"no variables":  nil,
		"two of three":  gates[:2],
		"detection off": {"DD_SCA_DETECTION_ENABLED=0", gates[1], gates[2]},
		"appsec off":    {gates[0], "DD_APPSEC_ENABLED=false", gates[2]},
		"sca off":       {gates[0], gates[1], "DD_APPSEC_SCA_ENABLED="},
	}
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		for name, environment := range environments {
			t.Run(name, func(t *testing.T) {
				s := startService(t, in, environment...)
				s.configure("shapes:plain")
				s.Call("plain", 10)
				if mappedEngine(t, s.PID()) {
					t.Error("a file of the engine is mapped")
				}
				if n := threads(t, s.PID()); n != 1 {
					t.Errorf("%d threads, want 1", n)
				}
				if loaded := s.Eval("[m for m in sys.modules if m.startswith('sca_probe')]"); fmt.Sprint(loaded) != "[]" {
					t.Errorf("modules %v were imported", loaded)
				}
			})
		}
		t.Run("on", func(t *testing.T) { // what the others would show if they could fail
			s := startService(t, in, gates...)
			if !mappedEngine(t, s.PID()) || threads(t, s.PID()) == 1 {
				t.Error("the engine is not loaded with all variables set")
			}
		})
	})
}

// behaviour is everything that a program can tell of a function without looking at its bytecode.
const behaviour = `(lambda inspect, traceback: {p: [
	str(inspect.signature(function_of(p))), inspect.getsource(function_of(p)), inspect.getdoc(function_of(p)),
	function_of(p).__qualname__, function_of(p).__code__.co_varnames, function_of(p).__code__.co_firstlineno,
	function_of(p).__code__.co_flags, [l for l in function_of(p).__code__.co_lines() if l[2] is not None][-1][2],
	_call(p, 3)] for p in TARGETS})(__import__("inspect"), __import__("traceback"))`

// raised is the traceback of an exception that a target lets out: files, lines, columns and text.
const raised = `(lambda tb: [(f.name, f.lineno, f.colno, f.end_colno, f.line) for f in tb.stack])(
	__import__("traceback").TracebackException(*CAUGHT, capture_locals=False))`

// traced are the trace events of one call of plain and of one generator.
const traced = `
EVENTS = []
def _tracer(frame, event, arg):
    if frame.f_code.co_filename == __file__ and frame.f_code.co_name in ("plain", "generator"):
        EVENTS.append((event, frame.f_lineno))
        return _tracer
sys.settrace(_tracer)
plain(1); list(generator(2))
sys.settrace(None)
try:
    raises(1)
except ValueError:
    CAUGHT = sys.exc_info()
`

func TestBehaviourIsUnchanged(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		observe := func() []any {
			s.Exec(traced)
			return []any{s.Eval(behaviour), s.Eval(raised), s.Eval("EVENTS")}
		}
		before := observe()
		var targets []string
		for _, shape := range shapes {
			targets = append(targets, "shapes:"+shape)
		}
		s.configure(targets...)
		for _, target := range targets {
			s.await(target, "patched")
		}
		if diff := cmp.Diff(before, observe()); diff != "" {
			t.Errorf("patched functions behave differently (-before +patched):\n%s", diff)
		}
	})
}

func TestTargetsThatCannotBeInstrumented(t *testing.T) {
	cases := map[string]string{
		"time:sleep":           "C function",
		"shapes:Shapes":        "class",
		"shapes:absent":        "absent",
		"shapes:Shapes.absent": "absent",
		"shapes:sys":           "module",
		"not_imported:f":       "not imported",
	}
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		targets := []string{"shapes:plain"}
		for target := range cases {
			targets = append(targets, target)
		}
		s.configure(targets...)
		s.await("shapes:plain", "patched")
		for target, why := range cases {
			state := "unresolved"
			if target == "not_imported:f" {
				state = "pending"
			}
			s.await(target, state)
			if _, reason := s.state(target); !strings.Contains(reason, why) {
				t.Errorf("%s: reason %q does not mention %q", target, reason, why)
			}
		}
	})
}

func TestMalformedPayloadKeepsTheLastGoodSet(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		s.configure("shapes:plain")
		s.await("shapes:plain", "patched")
		for _, bad := range []string{"", "{", `{"sca_instrumentation": {"targets": ["shapes:plain", 7]}}`, `{"sca_instrumentation": {"targets": ["no colon"]}}`} {
			refusals := strings.Count(s.Stderr(), "refused")
			s.write(bad)
			for deadline := time.Now().Add(patience); strings.Count(s.Stderr(), "refused") == refusals; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("nothing on stderr tells of the refused payload %q:\n%s", bad, s.Stderr())
				}
			}
		}
		s.configure("shapes:plain", "shapes:never") // settled once the engine has this one
		s.await("shapes:never", "patched")
		if got := s.Eval("function_of('plain').__code__ is ORIGINALS['plain']"); got != false {
			t.Error("plain lost its patch to a malformed payload")
		}
	})
}

// forked has a child call plain 7 times and report its own count, in its exit code.
const forked = `
pid = os.fork()
if pid == 0:
    code = 99
    try:
        import sca_probe
        before = sca_probe.stats()["shapes:plain"]["hits"]
        for _ in range(7):
            plain(1)
        sca_probe.targets()
        code = sca_probe.stats()["shapes:plain"]["hits"] - before
    finally:
        os._exit(code)
STATUS = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
`

func TestForkedChildCountsOnItsOwn(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		s.configure("shapes:plain")
		s.await("shapes:plain", "patched")
		s.Call("plain", 3)
		s.Exec(forked)
		if got := fmt.Sprint(s.Eval("STATUS")); got != "7" {
			t.Errorf("the child counted %s, want 7", got)
		}
		if got := fmt.Sprint(s.Eval("__import__('sca_probe').stats()['shapes:plain']['hits']")); got != "3" {
			t.Errorf("the parent counted %s, want 3 still", got)
		}
	})
}

func TestExitCodeIsTheProgramsOwn(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, gates...)
		s.configure("shapes:plain")
		s.await("shapes:plain", "patched")
		s.Exit(3)
	})
}

func TestSitecustomizeOfTheProgramStillRuns(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "sitecustomize.py"), []byte("import os; os.environ['MARK'] = '1'\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := startService(t, in, append([]string{"PYTHONPATH=" + dir}, gates...)...)
		if s.Eval("os.environ.get('MARK')") != "1" {
			t.Error("the program's sitecustomize did not run")
		}
		if s.Eval("any('bootstrap' in p for p in sys.path)") != false {
			t.Error("the bootstrap folder is on sys.path")
		}
	})
}
