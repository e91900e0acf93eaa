package observer_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// TestProgramsReplacedOnDisk has every command look at processes whose interpreter is no longer, or is
// something else, where they were started from. The place then holds another CPython, in which each
// offset means something else.
func TestProgramsReplacedOnDisk(t *testing.T) {
	static, shared := debian(t), sharedBuild(t)
	library, err := pyframes.OpenInterpreter(shared.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in      testenv.Interpreter
		file    string // that holds the interpreter
		another string
		options func(copied string) []testenv.SubjectOption
	}{
		"program": {static, static.Path, library.Path, func(copied string) []testenv.SubjectOption {
			return []testenv.SubjectOption{testenv.WithEnv("PYTHONHOME=/usr")}
		}},
		"library": {shared, library.Path, static.Path, func(copied string) []testenv.SubjectOption {
			// It has the name that the program asks for.
			return []testenv.SubjectOption{testenv.WithEnv("LD_PRELOAD=" + copied)}
		}},
	} {
		for how, replace := range map[string]func(t *testing.T, path string){
			"deleted": func(t *testing.T, path string) {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			},
			"replaced": func(t *testing.T, path string) {
				copyFile(t, c.another, path+".new")
				if err := os.Rename(path+".new", path); err != nil {
					t.Fatal(err)
				}
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				copied := filepath.Join(t.TempDir(), filepath.Base(c.file))
				copyFile(t, c.file, copied)
				in := c.in
				if name == "program" {
					in.Path = copied
				}
				s := testenv.StartSubject(t, in, c.options(copied)...)
				replace(t, copied)
				seen := observe(t, s)
				if seen.Path != copied {
					t.Errorf("ps says the interpreter is %s, want %s", seen.Path, copied)
				}
			})
		}
	}
}

// list returns a process as it is listed.
func list(t *testing.T, s observed) observer.PythonProcess {
	t.Helper()
	processes, _, err := observer.Processes(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(processes, func(p observer.PythonProcess) bool { return p.PID == s.PID() })
	if at < 0 {
		t.Fatalf("process %d is not among the %d listed", s.PID(), len(processes))
	}
	return processes[at]
}

// observe has every command look at a subject, checks that each sees what Python itself says, and
// returns the process as it is listed.
func observe(t *testing.T, s *testenv.Subject) observer.PythonProcess {
	t.Helper()
	listed := list(t, s)
	if want := s.Eval("'%d.%d.%d' % sys.version_info[:3]"); listed.Version != want || !listed.Memory.Supported || !listed.EvalLoop.Supported {
		t.Errorf("listed as %+v; Python says %v", listed, want)
	}

	process, err := pyframes.OpenProcess(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	f, err := process.Resolve(rc.Target{Module: "shapes", QualName: "Shapes.method"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := json.Number(fmt.Sprint(f.Code.Addr)), s.Eval("id(ORIGINALS['Shapes.method'])"); got != want {
		t.Errorf("shapes:Shapes.method resolves to %s, Python says %v", got, want)
	}

	s.Call("keywords", 1)
	held := map[string]observer.ExecutionState{}
	for _, g := range functionsOf(t, s, observer.FunctionQuery{}).Groups {
		for _, f := range g.Functions {
			held[f.QualName] = f.State
		}
	}
	if held["keywords"] != observer.StateExecuted || held["never"] == observer.StateExecuted || held["never"] == "" || len(held) < 500 {
		t.Errorf("of %d functions, keywords is %q and never %q", len(held), held["keywords"], held["never"])
	}

	one, all := follow(t, observer.FollowOptions{PID: s.PID()}), follow(t, observer.FollowOptions{})
	s.Call("plain", 1)
	for name, f := range map[string]*following{"--pid": one, "--all": all} {
		f.await(t, "plain, with "+name, func(e observer.FollowEvent) bool {
			return e.PID == s.PID() && e.Function != nil && e.Function.QualName == "plain"
		})
		f.stop(t)
	}

	report := watch(t, s, observer.WatchOptions{}, func() { s.Call("plain", 321) })
	if got := starts(report, "shapes", "plain"); got != 321 || report.Losses != "" {
		t.Errorf("watch counts %d starts, want 321; lost %q", got, report.Losses)
	}

	verified := verify(t, s, func() { s.Call("plain", 123) }, "shapes:plain", "shapes:never")
	for i, want := range []uint64{123, 0} {
		loop := statement(verified[i], observer.EvalLoop)
		if loop == nil || loop.Count == nil || *loop.Count != want || verified[i].Verdict == observer.Contradicted {
			t.Errorf("verify says of %s %s (%s), %+v, want %d starts", verified[i].Target, verified[i].Verdict, verified[i].Reason, loop, want)
		}
	}
	return listed
}

// sharedBuild is a Python whose interpreter is in a libpython.
func sharedBuild(t *testing.T) testenv.Interpreter {
	t.Helper()
	return testenv.Find(t, testenv.Observer, "CPython 3.12 or newer with a libpython", func(in testenv.Interpreter) bool {
		build, err := pyframes.OpenInterpreter(in.Path)
		return err == nil && build.Linkage == "shared" && in.Minor >= 12
	})
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(target, source); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
}
