// Package life tests that a program lives and dies with the engine in it as it would without.
package life

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sca-probe/testenv"
)

// An outcome is how a program ended and what it said.
type outcome struct {
	Code           int
	Signal         syscall.Signal // 0 when it was not killed
	Stdout, Stderr string
}

// A program is a Python program of this folder. It starts the engine itself, by sca_probe.start(), so
// that it can look at the process before; without gates that does nothing.
type program struct {
	name    string
	args    []string
	env     []string
	python  []string // options of the interpreter
	imports string   // a package that it imports besides, of those that testenv.PackagePath knows
	timeout time.Duration
}

// run runs the program to its end. An end that does not come fails the test.
func (p program) run(t *testing.T, in testenv.Interpreter) outcome {
	t.Helper()
	timeout := p.timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	args := append(append([]string{}, p.python...), filepath.Join(testenv.Root(), "testenv", "life", p.name))
	cmd := exec.CommandContext(ctx, in.Path, append(args, p.args...)...)
	cmd.Dir = t.TempDir()
	path := filepath.Join(testenv.Root(), "build", "lib", "sca-probe", "python")
	if p.imports != "" {
		path += string(filepath.ListSeparator) + testenv.PackagePath(t, in, p.imports)
	}
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH="+path,
		"SCA_PROBE_RC_SOURCE="+filepath.Join(cmd.Dir, "targets.json"))
	cmd.Env = append(cmd.Env, p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %v did not end within %v\nstdout: %s\nstderr: %s", p.name, p.args, timeout, stdout.String(), stderr.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	o := outcome{Code: status.ExitStatus(), Stdout: stdout.String(), Stderr: stderr.String()}
	if status.Signaled() {
		o.Signal = status.Signal()
	}
	return o
}

// succeed runs a program that checks itself, and reads what it measured, if it says so, into result.
func (p program) succeed(t *testing.T, in testenv.Interpreter, result any) outcome {
	t.Helper()
	p.env = append(p.env, testenv.Gates...)
	o := p.run(t, in)
	if o.Code != 0 || o.Signal != 0 {
		t.Fatalf("%s %v: exit code %d, signal %v\nstdout: %s\nstderr: %s", p.name, p.args, o.Code, o.Signal, o.Stdout, o.Stderr)
	}
	if result == nil {
		return o
	}
	if err := json.Unmarshal([]byte(o.Stdout), result); err != nil {
		t.Fatalf("%s %v: %v in %q", p.name, p.args, err, o.Stdout)
	}
	return o
}

// all reports whether `make test-all` runs.
func all() bool { return os.Getenv("SCA_PROBE_TEST_ALL") != "" }
