package pyframes_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

func open(t *testing.T, s *testenv.Subject) *pyframes.Process {
	t.Helper()
	p, err := pyframes.OpenProcess(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func resolve(t *testing.T, p *pyframes.Process, target string) *pyframes.Function {
	t.Helper()
	parsed, err := rc.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Resolve(parsed)
	if err != nil {
		t.Fatalf("resolve %s: %v", target, err)
	}
	return f
}

// targets returns what the subject says it has.
func targets(s *testenv.Subject) (paths []string) {
	for _, path := range s.Eval("TARGETS").([]any) {
		paths = append(paths, path.(string))
	}
	return paths
}

func TestResolveAgreesWithPython(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		if got, want := p.Interpreter().Version.String(), s.Eval("'%d.%d.%d' % sys.version_info[:3]"); got != want {
			t.Errorf("version %s, Python says %v", got, want)
		}
		paths := targets(s)
		if len(paths) < 15 {
			t.Fatalf("only %d targets", len(paths))
		}
		for _, path := range paths {
			f := resolve(t, p, "shapes:"+path)
			if f.Hook != nil || f.Original != f.Code {
				t.Errorf("%s: hook %v in an unpatched function", path, f.Hook)
			}
			c := f.Code
			got := fmt.Sprintf("%d %d %s %s %s %d %d %d", f.Addr, c.Addr, c.Name, c.QualName, c.Filename, c.FirstLine, c.Flags, c.InstructionCount*2)
			want := s.Eval("(lambda f, c: ' '.join(map(str, [id(f), id(c), c.co_name, f.__qualname__, c.co_filename, c.co_firstlineno, c.co_flags, len(c.co_code)])))" +
				fmt.Sprintf("(function_of(%q), function_of(%q).__code__)", path, path))
			if got != want {
				t.Errorf("%s:\n got %s\nwant %v", path, got, want)
			}
		}
	})
}

func TestResolveFollowsWrappers(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		s.Exec("cached = functools.lru_cache()(never); bound = Shapes().method; ünïcode_名前 = never\nsys.modules['a_module_名'] = type(sys)('x'); sys.modules['a_module_名'].f = never")
		for target, path := range map[string]string{
			"shapes:cached": "never", "shapes:bound": "Shapes.method", "shapes:ünïcode_名前": "never", "a_module_名:f": "never",
		} {
			want := s.Eval(fmt.Sprintf("id(ORIGINALS[%q])", path))
			if got := resolve(t, p, target).Code.Addr; json.Number(fmt.Sprint(got)) != want {
				t.Errorf("%s: %d, want %v", target, got, want)
			}
		}
		// Standard library, where the evidence of Python itself is not needed.
		s.Exec("import json.encoder, random, os")
		for target, expr := range map[string]string{
			"json.encoder:JSONEncoder.default": "sys.modules['json.encoder'].JSONEncoder.default.__code__",
			"random:randint":                   "sys.modules['random'].randint.__func__.__code__",
			"os:path.join":                     "sys.modules['os'].path.join.__code__",
		} {
			if got := resolve(t, p, target).Code.Addr; json.Number(fmt.Sprint(got)) != s.Eval("id("+expr+")") {
				t.Errorf("%s: %d", target, got)
			}
		}
	})
}

func TestUnresolved(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		s.Exec("def loop(): pass\nloop.__wrapped__ = loop\nnumber = 1\nsys.modules['odd'] = None")
		for target, want := range map[string]pyframes.UnresolvedKind{
			"wave:open":              pyframes.NotImported,
			"shapes:missing":         pyframes.NotFound,
			"shapes:Shapes.missing":  pyframes.NotFound,
			"shapes:plain.missing":   pyframes.NotFound,
			"odd:f":                  pyframes.NotFound,
			"time:sleep":             pyframes.NotPythonFunction,
			"builtins:len":           pyframes.NotPythonFunction,
			"shapes:Shapes":          pyframes.NotPythonFunction,
			"shapes:json":            pyframes.NotPythonFunction,
			"shapes:number":          pyframes.NotPythonFunction,
			"shapes:loop":            pyframes.NotPythonFunction,
			"shapes:Shapes.__init__": pyframes.NotPythonFunction,
		} {
			parsed, err := rc.ParseTarget(target)
			if err != nil {
				t.Fatal(err)
			}
			f, err := p.Resolve(parsed)
			var unresolved *pyframes.UnresolvedError
			if !errors.As(err, &unresolved) {
				t.Errorf("%s: %v, %v; want an UnresolvedError", target, f, err)
				continue
			}
			if unresolved.Kind != want || unresolved.Target != parsed || unresolved.Reason == "" {
				t.Errorf("%s: %v (%v), want %v", target, unresolved, unresolved.Kind, want)
			}
		}
		s.Exec("import wave")
		resolve(t, p, "wave:open")
		s.Exec("del sys.modules['wave']")
		if _, err := p.Resolve(rc.Target{Module: "wave", QualName: "open"}); err == nil {
			t.Error("wave:open resolves after the module has left sys.modules")
		}
	})
}

func TestOpenInterpreterAgreesWithProcess(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		disk, err := pyframes.OpenInterpreter(in.Path)
		if err != nil {
			t.Fatal(err)
		}
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		if disk.Version != p.Interpreter().Version || disk.BuildID != p.Interpreter().BuildID || disk.Linkage != p.Interpreter().Linkage {
			t.Errorf("on disk %+v, in the process %+v", disk, p.Interpreter())
		}
		again, err := pyframes.OpenInterpreter(p.BinaryPath())
		if err != nil || again.Version != disk.Version || again.BuildID != disk.BuildID {
			t.Errorf("%s: %+v, %v", p.BinaryPath(), again, err)
		}
		want := "shared"
		if in.Name == "3.11-debian" || in.Name == "3.14-standalone" || strings.HasSuffix(in.Name, "-forky") {
			want = "static"
		}
		if disk.Linkage != want {
			t.Errorf("linkage %s, want %s", disk.Linkage, want)
		}
		if path, ok := p.EnginePath(); ok {
			t.Errorf("an engine is mapped: %s", path)
		}
		summaries, err := pyframes.Processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, summary := range summaries {
			if summary.PID == s.PID() {
				if summary.Err != nil || summary.Interpreter == nil || summary.Interpreter.Version != disk.Version {
					t.Errorf("Processes says %+v", summary)
				}
				return
			}
		}
		t.Errorf("process %d is not among the %d of Processes", s.PID(), len(summaries))
	})
}

func TestGoneProcess(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		f := resolve(t, p, "shapes:plain")
		s.Exit(0)
		if _, err := p.Resolve(rc.Target{Module: "shapes", QualName: "plain"}); !errors.Is(err, pyframes.ErrNoProcess) {
			t.Errorf("resolve: %v, want ErrNoProcess", err)
		}
		if _, err := p.Evidence(f.Code); !errors.Is(err, pyframes.ErrNoProcess) {
			t.Errorf("evidence: %v, want ErrNoProcess", err)
		}
		if _, err := pyframes.OpenProcess(s.PID()); !errors.Is(err, pyframes.ErrNoProcess) {
			t.Errorf("open: %v, want ErrNoProcess", err)
		}
	})
}

func TestReplacedProgramIsGone(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		s.Exec("threading.Timer(0.05, os.execv, ('/bin/sleep', ['sleep', '60'])).start()")
		comm := fmt.Sprintf("/proc/%d/comm", s.PID())
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if name, err := os.ReadFile(comm); err == nil && string(name) == "sleep\n" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the subject did not replace its program")
			}
		}
		if f, err := p.Resolve(rc.Target{Module: "shapes", QualName: "plain"}); !errors.Is(err, pyframes.ErrNoProcess) {
			t.Errorf("%+v, %v; want ErrNoProcess", f, err)
		}
	})
}

func TestNotPython(t *testing.T) {
	if _, err := pyframes.OpenProcess(os.Getpid()); !errors.Is(err, pyframes.ErrNotPython) {
		t.Errorf("this test's own process: %v, want ErrNotPython", err)
	}
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	if _, err := pyframes.OpenProcess(sleep.Process.Pid); !errors.Is(err, pyframes.ErrNotPython) {
		t.Errorf("sleep: %v, want ErrNotPython", err)
	}
	if _, err := pyframes.OpenInterpreter("/bin/sh"); !errors.Is(err, pyframes.ErrNotPython) {
		t.Errorf("/bin/sh: %v, want ErrNotPython", err)
	}
	if _, err := pyframes.OpenProcess(1 << 30); !errors.Is(err, pyframes.ErrNoProcess) {
		t.Errorf("no process: %v, want ErrNoProcess", err)
	}
}
