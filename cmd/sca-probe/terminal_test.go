package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// onTerminal runs sca-probe with a terminal for its output, and returns what that was sent.
func onTerminal(t *testing.T, arguments string) string {
	t.Helper()
	// script(1) runs a command on a terminal of its own.
	cmd := exec.Command("script", "--quiet", "--return", "--command", testenv.ProbePath(t)+" "+arguments, "/dev/null")
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", arguments, err, out)
	}
	return string(out)
}

// TestTerminal has what takes its time show how far it is, and take that away again.
func TestTerminal(t *testing.T) {
	python := exec.Command("/usr/bin/python3.11", "-c", `
import sys, threading, types
def work(): pass
many = [types.FunctionType(work.__code__.replace(co_name="many%d" % i), {}) for i in range(100_000)]
stop = threading.Event()
def loop():
    while not stop.wait(0.01): work()
threading.Thread(target=loop).start()
print("ready", flush=True)
sys.stdin.read()
stop.set()
`)
	testenv.StartCommand(t, python)
	pid := fmt.Sprint(python.Process.Pid)

	out := onTerminal(t, "functions --pid "+pid)
	shown := strings.Index(out, "reading functions")
	result := strings.Index(out, "functions executed")
	if shown < 0 || result < shown || !strings.Contains(out, "%") {
		t.Errorf("functions showed no progress before its answer:\n%q", out)
	}

	out = onTerminal(t, "resolve --pid "+pid+strings.Repeat(" os:path.join", 4000))
	if shown, result = strings.Index(out, "resolving"), strings.Index(out, "posixpath"); shown < 0 || result < shown {
		t.Errorf("resolve showed no progress before its answer:\n%.1000q", out)
	}

	out = onTerminal(t, "watch --for 2500ms --max-overhead 50% --pid "+pid)
	live, end := strings.Index(out, alternateScreen), strings.Index(out, mainScreen)
	if live < 0 || end < live || !strings.Contains(out[live:end], "overhead about") || !strings.Contains(out[live:end], "work") || !strings.Contains(out[end:], "counts are exact") {
		t.Errorf("watch drew no live table before its answer:\n%q", out)
	}

	out = onTerminal(t, "verify --for 1500ms --pid "+pid+" __main__:work")
	if shown = strings.Index(out, "watching "); shown < 0 || strings.LastIndex(out, "executed") < shown {
		t.Errorf("verify showed no progress before its answer:\n%q", out)
	}
	if strings.Contains(onTerminal(t, "watch --json --for 1200ms --max-overhead 50% --pid "+pid), alternateScreen) {
		t.Error("watch --json drew a table")
	}
}
