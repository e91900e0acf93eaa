package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sca-probe": main})
}

// TestScripts runs the commands as a user would, wrong arguments and missing permissions included.
func TestScripts(t *testing.T) {
	testenv.MayFollow(t)
	python, library := sharedBuild(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("SCA_PROBE_LIB", filepath.Join(testenv.Root(), "python"))
			env.Setenv("SUBJECTS", filepath.Join(testenv.Root(), "testenv", "subjects"))
			env.Setenv("ROOT", testenv.Root())
			env.Setenv("SHARED_PYTHON", python)
			env.Setenv("SHARED_LIBRARY", library)
			env.Setenv("SHARED_NAME", filepath.Base(library))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":        start,
			"unprivileged": func(ts *testscript.TestScript, neg bool, args []string) { asNobody(ts, neg, nil, args) },
			"capable": func(ts *testscript.TestScript, neg bool, args []string) {
				asNobody(ts, neg, []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_BPF, unix.CAP_PERFMON}, args)
			},
		},
	})
}

// sharedBuild returns a Python whose interpreter is in a libpython, and that.
func sharedBuild(t *testing.T) (python, library string) {
	t.Helper()
	in := testenv.Find(t, testenv.Observer, "CPython with a libpython", func(in testenv.Interpreter) bool {
		build, err := pyframes.OpenInterpreter(in.Path)
		if err != nil || build.Linkage != "shared" {
			return false
		}
		library = build.Path
		return true
	})
	return in.Path, library
}

// start runs a command in the background, stops it at the script's end, and puts its PID in $PID.
func start(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+ts.Getenv("PYTHONPATH"))
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	// A line on standard output says that it is ready.
	_, err = stdout.Read(make([]byte, 1))
	ts.Check(err)
	ts.Setenv("PID", strconv.Itoa(cmd.Process.Pid))
}

// asNobody runs sca-probe as nobody, with no capabilities but those given.
func asNobody(ts *testscript.TestScript, neg bool, capabilities []uintptr, args []string) {
	dir, cmd := nobody(capabilities, args)
	defer os.RemoveAll(dir)
	output, err := cmd.CombinedOutput()
	ts.Check(os.WriteFile(ts.MkAbs("output"), output, 0o644))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("running sca-probe: %v", err)
	}
	if (err != nil) != neg {
		ts.Fatalf("unexpected outcome %v: %s", err, output)
	}
}

// nobody prepares a command that runs sca-probe as nobody, with no capabilities but those given, from a
// folder to be removed afterwards.
func nobody(capabilities []uintptr, args []string) (dir string, cmd *exec.Cmd) {
	if os.Geteuid() != 0 {
		panic("dropping privileges needs root")
	}
	// The checkout may lie where nobody cannot go.
	dir, err := os.MkdirTemp("", "sca-probe-unprivileged-")
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	path := filepath.Join(dir, "sca-probe")
	// Copied by another process: a descriptor that is open for writing here could be inherited by
	// another test's child, and the copy would be busy.
	if out, err := exec.Command("cp", filepath.Join(testenv.Root(), "build", "bin", "sca-probe"), path).CombinedOutput(); err != nil {
		panic(string(out))
	}
	cmd = exec.Command(path, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: capabilities}
	return dir, cmd
}
