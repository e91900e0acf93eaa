// Package forks tests the engine under everything that makes processes: servers that fork their
// workers, and each way that Python itself has.
package forks

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"sca-probe/testenv"
)

const patience = 30 * time.Second

// all is set by `make test-all`: every interpreter and every combination.
var all = os.Getenv("SCA_PROBE_TEST_ALL") != ""

// few are the interpreters of `make test`: Debian 12's and the newest.
var few = []string{"3.11-debian", "3.15-forky"}

// each runs f with the interpreters that these tests cover.
func each(t *testing.T, f func(t *testing.T, in testenv.Interpreter)) {
	t.Helper()
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		if !all && !slices.Contains(few, in.Name) {
			t.Skip("left to `make test-all`")
		}
		f(t, in)
	})
}

// A program is a Python program under `sca-probe run`, in a process group of its own.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	folder string // its own, with targets.json in it
	output output
	ended  chan struct{}
}

// output is what a program and its children print.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func newProgram(t *testing.T, targets ...string) *program {
	t.Helper()
	p := &program{t: t, folder: t.TempDir()}
	p.configure(targets...)
	return p
}

// start runs the interpreter with arguments; site is a folder with packages, or "".
func (p *program) start(in testenv.Interpreter, site string, args ...string) {
	p.t.Helper()
	p.cmd = exec.Command(testenv.ProbePath(p.t), append([]string{"run", "--rc-file", p.rcFile(), "--", in.Path}, args...)...)
	p.cmd.Dir = p.folder
	p.cmd.Env = append(append(os.Environ(), testenv.Gates...), "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "ANSWERS="+p.answers(),
		"PYTHONPATH="+subjects()+string(os.PathListSeparator)+site)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.ended = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(patience):
			p.t.Errorf("the program did not end within %s of SIGTERM", patience)
		}
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		if p.t.Failed() {
			p.t.Logf("%v printed:\n%s", p.cmd.Args, p.output.String())
		}
	})
}

func subjects() string { return filepath.Join(testenv.Root(), "testenv", "forks", "subjects") }

func (p *program) rcFile() string { return filepath.Join(p.folder, "targets.json") }

// answers is the file that subjects/answers.py writes lines of JSON to.
func (p *program) answers() string { return filepath.Join(p.folder, "answers") }

// configure replaces the Remote Configuration file by a rename, as a deployment would.
func (p *program) configure(targets ...string) {
	p.t.Helper()
	payload, err := json.Marshal(testenv.Payload(targets...))
	if err != nil {
		p.t.Fatal(err)
	}
	next := p.rcFile() + ".next"
	if err := os.WriteFile(next, payload, 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(next, p.rcFile()); err != nil {
		p.t.Fatal(err)
	}
}

// answers returns what processes have written to the file of answers.
func answers[T any](p *program) []T {
	p.t.Helper()
	content, err := os.ReadFile(p.answers())
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	var found []T
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		var answer T
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			p.t.Fatalf("%v: %q", err, lines.Text())
		}
		found = append(found, answer)
	}
	return found
}

// await waits until a condition holds.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
