package loop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sca-probe/testenv"
)

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
		"two of three":  testenv.Gates[:2],
		"detection off": {"DD_SCA_DETECTION_ENABLED=0", testenv.Gates[1], testenv.Gates[2]},
		"appsec off":    {testenv.Gates[0], "DD_APPSEC_ENABLED=false", testenv.Gates[2]},
		"sca off":       {testenv.Gates[0], testenv.Gates[1], "DD_APPSEC_SCA_ENABLED="},
	}
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		for name, environment := range environments {
			t.Run(name, func(t *testing.T) {
				s := startService(t, in, environment...)
				s.configure("shapes:plain")
				s.Call("plain", 10)
				if len(testenv.EngineFiles(t, s.PID())) > 0 {
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
			s := startService(t, in, testenv.Gates...)
			if len(testenv.EngineFiles(t, s.PID())) == 0 || threads(t, s.PID()) == 1 {
				t.Error("the engine is not loaded with all variables set")
			}
		})
	})
}

// A build that the engine cannot work with runs its program as if the engine were not there, and
// says once why.
func TestEngineRefusesInASentence(t *testing.T) {
	testenv.EachInterpreter(t, testenv.EngineRefuses, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.configure("shapes:plain")
		if got := fmt.Sprint(s.Call("plain", 2)); got != "[2 2]" {
			t.Errorf("plain(1) twice: %s", got)
		}
		if n := strings.Count(s.Stderr(), "sca-probe: the engine stays off: "); n != 1 || strings.Count(s.Stderr(), "\n") != 1 {
			t.Errorf("want one sentence, got:\n%s", s.Stderr())
		}
		if len(testenv.EngineFiles(t, s.PID())) > 0 {
			t.Error("a file of the engine is mapped")
		}
		t.Log(strings.TrimSpace(s.Stderr()))
	})
}

// behaviour is everything that a program can tell of a function without looking at its bytecode.
const behaviour = `(lambda inspect, traceback: {p: [
	str(inspect.signature(function_of(p))), inspect.getsource(function_of(p)), inspect.getdoc(function_of(p)),
	function_of(p).__qualname__, function_of(p).__code__.co_varnames, function_of(p).__code__.co_firstlineno,
	function_of(p).__code__.co_flags, sorted({l for _, l in __import__("dis").findlinestarts(function_of(p).__code__) if l}),
	_call(p, 3)] for p in TARGETS})(__import__("inspect"), __import__("traceback"))`

// raised is the traceback of an exception that a target lets out: files, lines, columns and text.
const raised = `(lambda tb: [(f.name, f.lineno, getattr(f, "colno", 0), getattr(f, "end_colno", 0), f.line) for f in tb.stack])(
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
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
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
		"time:sleep":                          "C function",
		"shapes:Shapes":                       "class",
		"shapes:absent":                       "absent",
		"shapes:Shapes.absent":                "absent",
		"shapes:sys":                          "module",
		"builtins:len":                        "built-in",
		"importlib._bootstrap:_find_and_load": "frozen",
		"not_imported:f":                      "not imported",
	}
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
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
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.patch("shapes:plain")
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
        for _ in range(7):
            plain(1)
        code = [t["hits"] for t in sca_probe.targets() if t["target"] == "shapes:plain"][0]
    finally:
        os._exit(code)
STATUS = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
`

func TestForkedChildCountsOnItsOwn(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.patch("shapes:plain")
		s.Call("plain", 3)
		s.Exec(forked)
		if got := fmt.Sprint(s.Eval("STATUS")); got != "7" {
			t.Errorf("the child counted %s, want 7", got)
		}
		if got := s.hits("shapes:plain"); got != "3" {
			t.Errorf("the parent counted %s, want 3 still", got)
		}
	})
}

func TestExitCodeIsTheProgramsOwn(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, testenv.Gates...)
		s.patch("shapes:plain")
		s.Exit(3)
	})
}

// TestFunctionsRunWhileTheInterpreterEnds has an event loop die, and so call its own methods, when
// the interpreter has let go of every module.
func TestFunctionsRunWhileTheInterpreterEnds(t *testing.T) {
	payload := `{"sca_instrumentation": {"targets": [
		"asyncio.base_events:BaseEventLoop.__del__", "asyncio.base_events:BaseEventLoop.is_closed"]}}`
	rcFile := filepath.Join(t.TempDir(), "targets.json")
	if err := os.WriteFile(rcFile, []byte(payload), 0o644); err != nil {
		t.Fatal(err)
	}
	const program = `
import asyncio, sca_probe
asyncio.set_event_loop(asyncio.new_event_loop())
assert [t["state"] for t in sca_probe.targets()] == ["patched"] * 2, sca_probe.targets()
`
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		cmd := exec.Command(testenv.ProbePath(t), "run", "--rc-file", rcFile, "--", in.Path, "-c", program)
		cmd.Env = append(os.Environ(), testenv.Gates...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func TestImportSystemIsLeftAlone(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		const importers = "[str(i) for i in sys.meta_path + sys.path_hooks]"
		off, on := startService(t, in), startService(t, in, testenv.Gates...)
		if with, without := on.Eval(importers), off.Eval(importers); len(with.([]any)) != len(without.([]any)) {
			t.Errorf("importers with the engine %v, without %v", with, without)
		}
	})
}

func TestSitecustomizeOfTheProgramStillRuns(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "sitecustomize.py"), []byte("import os; os.environ['MARK'] = '1'\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := startService(t, in, append([]string{"PYTHONPATH=" + dir}, testenv.Gates...)...)
		if s.Eval("os.environ.get('MARK')") != "1" {
			t.Error("the program's sitecustomize did not run")
		}
		if s.Eval("any('bootstrap' in p for p in sys.path)") != false {
			t.Error("the bootstrap folder is on sys.path")
		}
	})
}

// TestFailureInTheReconcilerIsCaught has a nil pointer dereferenced where code is rewritten, in an engine that
// was built to fail there. To the program that is nothing, neither then nor when it crashes by itself.
func TestFailureInTheReconcilerIsCaught(t *testing.T) {
	library := filepath.Join(testenv.Root(), "build", "faults", "lib", "sca-probe", "python")
	if _, err := os.Stat(library); err != nil {
		t.Fatalf("%v: run `make engine-with-faults` first", err)
	}
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, append([]string{"SCA_PROBE_LIB=" + library, "SCA_PROBE_FAULT=rewrite"}, testenv.Gates...)...)
		s.configure("shapes:plain")
		s.await("shapes:plain", "unresolved")
		if _, reason := s.state("shapes:plain"); !strings.Contains(reason, "nil pointer") {
			t.Errorf("reason %q does not tell of the nil pointer", reason)
		}
		s.eventually(`__import__("sca_probe").stats()["failures"] > 1`) // and again, a second later
		s.must("function_of('plain').__code__ is ORIGINALS['plain']")

		s.Exec(`
import ctypes
pid = os.fork()
if pid == 0:
    ctypes.string_at(0)
STATUS = os.waitpid(pid, 0)[1]
`)
		if got := fmt.Sprint(s.Eval("os.WTERMSIG(STATUS)")); got != "11" {
			t.Errorf("a crash of a child's own ended it with signal %s, want 11", got)
		}
		s.Exec("import subprocess; CRASH = subprocess.call([sys.executable, '-c', 'import ctypes, time; time.sleep(0.3); ctypes.string_at(0)'])")
		if got := fmt.Sprint(s.Eval("CRASH")); got != "-11" {
			t.Errorf("a crash of a program's own ended it with %s, want -11", got)
		}
	})
}
