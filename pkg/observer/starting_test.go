package observer_test

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// TestAProcessThatStarts has each command look at a process that was started just now. It waits until the
// process can answer.
func TestAProcessThatStarts(t *testing.T) {
	target := rc.Target{Module: "encodings", QualName: "normalize_encoding"}
	commands := map[string]func(pid int) error{
		"resolve": func(pid int) error {
			_, err := observer.Resolve(t.Context(), pid, []rc.Target{target}, nil)
			return err
		},
		"functions": func(pid int) error {
			_, err := observer.Functions(t.Context(), pid, observer.FunctionQuery{Package: "fast-parser"})
			return err
		},
		"watch": func(pid int) error {
			_, err := observer.Watch(t.Context(), pid, observer.WatchOptions{For: time.Millisecond, MaxOverhead: 1000, Query: observer.FunctionQuery{Package: "fast-parser"}})
			return err
		},
		"follow": func(pid int) error {
			ctx, cancel := context.WithCancel(t.Context())
			return observer.Follow(ctx, observer.FollowOptions{PID: pid, Package: "fast-parser", Attached: func(int) { cancel() }, Tell: func(observer.FollowEvent) {}})
		},
		"verify": func(pid int) error {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := observer.Verify(ctx, pid, []rc.Target{target}, cancel)
			return err
		},
	}
	site := t.TempDir()
	write(t, site, parser)
	for _, in := range []testenv.Interpreter{debian(t), sharedBuild(t)} {
		for name, command := range commands {
			t.Run(in.Name+", "+name, func(t *testing.T) {
				pid := startStopped(t, in, site)
				time.AfterFunc(100*time.Millisecond, func() { syscall.Kill(pid, syscall.SIGCONT) })
				if err := command(pid); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// startStopped starts a process and stops it before it can be read.
func startStopped(t *testing.T, in testenv.Interpreter, site string) (pid int) {
	t.Helper()
	for range 100 {
		cmd := exec.Command(in.Path, "-c", "import sys; sys.stdin.read()")
		cmd.Env = append(cmd.Environ(), "PYTHONPATH="+site)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stdin.Close(); cmd.Process.Signal(syscall.SIGCONT); cmd.Wait() })
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		p, err := pyframes.OpenProcess(cmd.Process.Pid)
		if err != nil {
			return cmd.Process.Pid
		}
		p.Close()
	}
	t.Fatal("each process was ready before it was stopped")
	return 0
}
