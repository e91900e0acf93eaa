package observer_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
)

// debian is the Python that every machine of the tests has, for what does not depend on the version.
func debian(t testing.TB) testenv.Interpreter {
	t.Helper()
	for _, in := range testenv.Interpreters(testenv.Observer) {
		if in.Name == "3.11-debian" {
			return in
		}
	}
	t.Fatal("no /usr/bin/python3.11: run make deps")
	return testenv.Interpreter{}
}

// An observed is a process that tests look at.
type observed interface{ PID() int }

// waitUntilGone waits until the process has ended or runs no Python any more.
func waitUntilGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		program, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
		if err != nil || !strings.Contains(program, "python") {
			return
		}
	}
	t.Fatalf("process %d goes on", pid)
}
