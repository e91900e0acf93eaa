package libtest

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"sca-probe/testenv"
)

const (
	// hang is after how long a test makes the runner print every thread's stack and give up. The
	// longest module takes 2 minutes on two idle cores.
	hang = 10 * time.Minute
	// grace is how long the runner then has, before it is killed.
	grace = 30 * time.Second
)

// exitStatus is the key among the outcomes for the test runner's own exit status.
const exitStatus = "exit status"

// A runner runs `python -m test` for one module of one interpreter.
type runner struct {
	python  string
	module  string   // "test_json"
	exclude []string // tests that are not run
	logs    string   // where the outputs are left to be read
}

// run returns the outcome of each test by its id, and of what is not a test (the setup of a class,
// the whole run) by how the runner names it. command is what python and its arguments follow.
func (r runner) run(t *testing.T, name string, environment []string, command ...string) map[string]string {
	t.Helper()
	// Not t.TempDir(): its path is so long that no socket can be bound below it.
	dir, err := os.MkdirTemp("", "libtest")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	results := filepath.Join(r.logs, name+".xml")
	os.Remove(results) // an earlier run's
	log, err := os.Create(filepath.Join(r.logs, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()

	// Without -u, the runner leaves out what needs a network, a display or much of the machine.
	argv := append(command, r.python, "-m", "test", "-v", "--fail-env-changed",
		"--timeout", strconv.Itoa(int(hang.Seconds())), "--junit-xml", results)
	for _, test := range r.exclude {
		argv = append(argv, "--ignore", test)
	}
	argv = append(argv, r.module)
	ctx, cancel := context.WithTimeout(t.Context(), hang+grace)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LANG=C.UTF-8"}, environment...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	// What the tests leave running goes with them.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)

	outcomes := map[string]string{exitStatus: cmd.ProcessState.String()}
	if err := addResults(outcomes, results); err != nil {
		t.Errorf("%s: %v", r.module, err)
	}
	if err := addFailures(outcomes, log.Name()); err != nil {
		t.Errorf("%s: %v", r.module, err)
	}
	return outcomes
}

// addResults adds the tests in a file that `python -m test --junit-xml` wrote. There is none when
// the runner crashed or skipped the module, which the exit status and the missing tests tell.
func addResults(outcomes map[string]string, path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// Before 3.12 the runner copies what tests print as it is, and XML has no way to say that.
	data = bytes.Map(func(c rune) rune {
		if c == unicode.ReplacementChar || unicode.IsControl(c) && c != '\n' && c != '\t' {
			return '?'
		}
		return c
	}, data)
	var suites struct {
		Cases []struct {
			Name    string    `xml:"name,attr"`
			Outcome string    `xml:"outcome,attr"`
			Failure *struct{} `xml:"failure"`
			Error   *struct{} `xml:"error"`
			Skipped *struct{} `xml:"skipped"`
			Output  *struct{} `xml:"output"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, c := range suites.Cases {
		outcome := "passed"
		switch {
		case c.Name == "": // a subtest of it failed: the runner names it in its output alone
			continue
		case c.Failure != nil:
			outcome = "failed"
		case c.Error != nil:
			outcome = "error"
		case c.Skipped != nil:
			outcome = "skipped"
		case c.Output != nil:
			outcome = "failed as expected"
		case c.Outcome == "UNEXPECTED_SUCCESS":
			outcome = "passed unexpectedly"
		}
		add(outcomes, c.Name, outcome)
	}
	return nil
}

// address is where an object is, as its repr() says.
var address = regexp.MustCompile(`\b0x[0-9a-f]{6,}`)

// add gives a test that runs more than once, as doctests and generated classes do, a key each time.
func add(outcomes map[string]string, id, outcome string) {
	id = address.ReplaceAllString(id, "0x...")
	key := id
	for n := 2; outcomes[key] != ""; n++ {
		key = fmt.Sprintf("%s #%d", id, n)
	}
	outcomes[key] = outcome
}

// failureHeading is what stands above each traceback: "FAIL: test_a (test.test_b.C)" up to 3.10,
// with the test's own name within the parentheses too from 3.11 on, and its subtest after them.
var failureHeading = regexp.MustCompile(`(?m)^={70}\n(ERROR|FAIL): (\S+) \(([^\s()]+)\)`)

// addFailures adds what failed and has no outcome of its own: a test by its subtests, the setup of a
// class or a module, and a module that cannot be loaded.
func addFailures(outcomes map[string]string, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, m := range failureHeading.FindAllStringSubmatch(string(data), -1) {
		name, id := m[2], m[3]
		if !strings.HasSuffix(id, "."+name) {
			id += "." + name
		}
		if outcomes[id] == "" {
			outcomes[id] = map[string]string{"FAIL": "failed", "ERROR": "error"}[m[1]]
		}
	}
	return nil
}

// targets are what testdata/targets.py says.
type targets struct {
	Targets []string
	Tests   map[string]string
	Left    int
}

func (r runner) targets(t *testing.T) targets {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.python, script(t, "targets.py"), r.module)
	cmd.Dir = t.TempDir()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("testdata/targets.py %s: %v\n%s", r.module, err, stderr.String())
	}
	var found targets
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("testdata/targets.py %s: %v", r.module, err)
	}
	return found
}

// script returns the path of a file in testdata, opened so that go test runs again when it changes.
func script(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(testenv.Root(), "testenv", "libtest", "testdata", name)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	return path
}
