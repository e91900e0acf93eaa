package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sca-probe/pkg/observer"
	"sca-probe/testenv"
)

// TestFailuresAreOneSentence has each command fail in each way, and expects one sentence on standard error
// that says what is the matter, nothing on standard output, and an exit code that says so too.
func TestFailuresAreOneSentence(t *testing.T) {
	python := exec.Command("/usr/bin/python3.11", "-c", "import sys; print(1, flush=True); sys.stdin.read()")
	testenv.StartCommand(t, python)
	_, library := sharedBuild(t)
	idle := exec.Command("sh", "-c", "echo; exec cat")
	idle.Env = append(os.Environ(), "LD_PRELOAD="+library)
	testenv.StartCommand(t, idle)
	debug := testenv.Interpreters(testenv.ObserverRefuses)
	if len(debug) == 0 {
		testenv.Missing(t, "no build that the observer refuses: run `make pythons`")
	}
	refused := exec.Command(debug[0].Path, "-c", "import sys; print(1, flush=True); sys.stdin.read()")
	testenv.StartCommand(t, refused)

	const ptrace, readAll = unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH
	root := []uintptr{}
	for _, c := range []struct {
		name         string
		pid          int
		capabilities []uintptr // of nobody; those of this test, if empty and not nil
		commands     string
		want         string
	}{
		{"no such process", 4194303, root, "resolve functions watch follow verify", "no such process$"},
		{"no Python", os.Getpid(), root, "resolve functions watch follow verify", "not a CPython interpreter$"},
		{"a Python that is not started", idle.Process.Pid, root, "resolve functions watch follow verify", "has no sys.modules yet, or no longer$"},
		{"a debug build", refused.Process.Pid, root, "resolve functions watch follow verify", "is a debug build of CPython 3.11.* supported are final releases"},
		{"another user's process", python.Process.Pid, nil, "resolve functions watch verify", "permission denied: run as root or with the capability CAP_SYS_PTRACE$"},
		{"no page map", python.Process.Pid, []uintptr{ptrace}, "functions watch", "CAP_DAC_READ_SEARCH$"},
		{"neither", python.Process.Pid, nil, "follow", "not permitted: run as root, or with CAP_BPF and CAP_PERFMON"},
		{"no eBPF", python.Process.Pid, []uintptr{ptrace, readAll}, "watch follow", "not permitted: run as root, or with CAP_BPF and CAP_PERFMON"},
	} {
		for _, command := range strings.Fields(c.commands) {
			for _, format := range []string{"text", "JSON"} {
				t.Run(fmt.Sprintf("%s, %s, %s", c.name, command, format), func(t *testing.T) {
					args := []string{command, "--pid", fmt.Sprint(c.pid)}
					if command == "watch" || command == "follow" || command == "verify" {
						args = append(args, "--for", "100ms")
					}
					if command == "resolve" || command == "verify" {
						args = append(args, "os:getenv")
					}
					if format == "JSON" {
						args = append(args, "--json")
					}
					cmd := exec.Command(testenv.ProbePath(t), args...)
					if c.capabilities == nil || len(c.capabilities) > 0 {
						var dir string
						dir, cmd = nobody(c.capabilities, args)
						defer os.RemoveAll(dir)
					}
					wantFailure(t, cmd, exitFailure, c.want)
				})
			}
		}
	}
	for args, want := range map[string]string{
		"nonsense":                             `unknown command "nonsense"`,
		"ps --nonsense":                        "unknown flag: --nonsense; see 'sca-probe ps --help'",
		"ps extra":                             `takes no arguments, got "extra"`,
		"doctor extra":                         `takes no arguments, got "extra"`,
		"functions":                            "no process given: name one with --pid",
		"functions --pid 0":                    "no process given: name one with --pid",
		"functions --pid 99999999999999999999": "invalid argument",
		"resolve --pid 1":                      "no target given",
		"resolve os:getenv":                    "no process given",
		"resolve --pid 1 os.getenv":            "has no colon",
		"resolve --pid 1 :getenv":              "target",
		"watch --pid 1 --for 0s":               "longer than nothing",
		"watch --pid 1 --for never":            "invalid argument",
		"watch --pid 1 --max-overhead x":       `"x" is no percentage above 0`,
		"watch --pid 1 --top -2":               "--top -2",
		"follow":                               "name one process with --pid, or all with --all",
		"follow --all --for -1s":               "--for -1s",
		"verify --pid 1 os:getenv --for 0s":    "longer than nothing",
		"verify --pid 1":                       "no target given",
		"run":                                  "no command given",
	} {
		t.Run(args, func(t *testing.T) {
			cmd := exec.Command(testenv.ProbePath(t), strings.Fields(args)...)
			wantFailure(t, cmd, exitUsage, regexp.QuoteMeta(want))
		})
	}
}

func wantFailure(t *testing.T, cmd *exec.Cmd, code int, want string) {
	t.Helper()
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("ended with %v, want exit code %d", err, code)
	}
	message := messages.String()
	if out.Len() > 0 || strings.Count(message, "\n") != 1 || !strings.HasPrefix(message, "sca-probe: ") || strings.Contains(message, "%!") {
		t.Errorf("printed %q, and %q on standard error; want one sentence there", out.String(), message)
	}
	if !regexp.MustCompile(want).MatchString(strings.TrimSuffix(message, "\n")) {
		t.Errorf("said %q, want %s", message, want)
	}
}

// TestVerifyWithoutTheKernelsCounts verifies, as a user who may load no eBPF program, a function that ran in a
// process with the engine and one that ran in none: the witnesses that are left have seen them, the others say why
// they have not.
func TestVerifyWithoutTheKernelsCounts(t *testing.T) {
	const ran = "import sys, os; os.getenv('x'); print(1, flush=True); sys.stdin.read()"
	file := filepath.Join(t.TempDir(), "targets.json")
	if err := os.WriteFile(file, []byte(`{"sca_instrumentation": {"targets": ["os:getenv"]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		python  *exec.Cmd
		missing []string // witnesses
	}{
		{"without the engine", exec.Command("/usr/bin/python3.11", "-c", ran), []string{"eval-loop"}},
		{"with the engine", exec.Command(testenv.ProbePath(t), "run", "--rc-file", file, "--", "/usr/bin/python3.11", "-c", ran),
			[]string{"eval-loop", "static-probe"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.python.Env = append(os.Environ(), testenv.Gates...)
			testenv.StartCommand(t, c.python)
			args := []string{"verify", "--pid", fmt.Sprint(c.python.Process.Pid), "--for", "100ms", "--json", "os:getenv"}
			dir, cmd := nobody([]uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, args)
			defer os.RemoveAll(dir)
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var reports []struct {
				Verdict    observer.Verdict
				Statements []observer.Statement `json:"witnesses"`
			}
			if err := json.Unmarshal(out, &reports); err != nil {
				t.Fatal(err)
			}
			if len(reports) != 1 || reports[0].Verdict != observer.Executed {
				t.Fatalf("want one verdict, that it executed: %s", out)
			}
			var missing []string
			for _, s := range reports[0].Statements {
				if s.Executed == nil {
					missing = append(missing, s.Witness)
					if !strings.Contains(s.Detail, "CAP_BPF and CAP_PERFMON") {
						t.Errorf("the %s witness says %q, want what it lacks", s.Witness, s.Detail)
					}
				}
			}
			slices.Sort(missing)
			if !slices.Equal(missing, c.missing) {
				t.Errorf("%v cannot say, want %v: %s", missing, c.missing, out)
			}
		})
	}
}
