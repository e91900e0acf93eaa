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

	"sca-probe/testenv"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sca-probe": main})
}

// TestScripts runs the commands as a user would, wrong arguments and missing permissions included.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("SCA_PROBE_LIB", filepath.Join(testenv.Root(), "python"))
			env.Setenv("SUBJECTS", filepath.Join(testenv.Root(), "testenv", "subjects"))
			env.Setenv("ROOT", testenv.Root())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":        start,
			"unprivileged": unprivileged,
		},
	})
}

// start runs a command in the background, stops it at the script's end, and puts its PID in $PID.
func start(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = ts.MkAbs(".")
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

// unprivileged runs sca-probe as nobody, with no capability.
func unprivileged(ts *testscript.TestScript, neg bool, args []string) {
	if os.Geteuid() != 0 {
		ts.Fatalf("dropping privileges needs root")
	}
	// The checkout may lie where nobody cannot go.
	dir, err := os.MkdirTemp("", "sca-probe-unprivileged-")
	ts.Check(err)
	defer os.RemoveAll(dir)
	ts.Check(os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "sca-probe")
	// Copied by another process: a descriptor that is open for writing here could be inherited by
	// another test's child, and the copy would be busy.
	ts.Check(exec.Command("cp", filepath.Join(testenv.Root(), "build", "bin", "sca-probe"), path).Run())
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
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
