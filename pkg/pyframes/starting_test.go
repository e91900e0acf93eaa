package pyframes_test

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// TestAProcessThatStarts looks at processes step by step from their execution on. Until one is ready, that is
// what is said of it, and not that its build is another than it is.
func TestAProcessThatStarts(t *testing.T) {
	const enough, processes, step = 10, 100, 200 * time.Microsecond
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		var finder pyframes.Finder // which knows the build after the first look, so that the others take no time
		looks := 0
		for i := 0; looks < enough; i++ {
			if i == processes {
				t.Fatalf("only %d looks came before one of %d processes was ready", looks, processes)
			}
			cmd := exec.Command(in.Path, "-c", readyAndRead)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			signal := func(s syscall.Signal) {
				if err := cmd.Process.Signal(s); err != nil {
					t.Error(err)
				}
			}
			t.Cleanup(func() { stdin.Close(); signal(syscall.SIGCONT); cmd.Wait() })
			for deadline := time.Now().Add(time.Minute); ; looks++ {
				signal(syscall.SIGSTOP)
				err := lookAtStart(&finder, cmd.Process.Pid)
				if err == nil {
					break
				}
				// Before the dynamic linker has mapped libpython there is none.
				if !errors.Is(err, pyframes.ErrNotReady) && !errors.Is(err, pyframes.ErrTorn) && !errors.Is(err, pyframes.ErrNotPython) {
					t.Fatal(err)
				}
				if time.Now().After(deadline) {
					t.Fatalf("not ready after a minute: %v", err)
				}
				signal(syscall.SIGCONT)
				time.Sleep(step)
			}
		}
	})
}

func lookAtStart(finder *pyframes.Finder, pid int) error {
	p, err := finder.Open(pid)
	if err != nil {
		return err
	}
	defer p.Close()
	_, err = p.SearchPath()
	return err
}
