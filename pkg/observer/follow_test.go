package observer_test

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// A following collects what a follower tells.
type following struct {
	mu     sync.Mutex
	events []observer.FollowEvent
	ended  chan error
	cancel func()
}

func follow(t testing.TB, options observer.FollowOptions) *following {
	t.Helper()
	testenv.MayFollow(t)
	f := &following{ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	attached := make(chan struct{})
	options.Attached = func(int) { close(attached) }
	options.Tell = func(e observer.FollowEvent) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.events = append(f.events, e)
	}
	go func() { f.ended <- observer.Follow(ctx, options) }()
	f.cancel = cancel
	t.Cleanup(cancel)
	select {
	case <-attached:
	case err := <-f.ended:
		t.Fatalf("following ended: %v", err)
	}
	return f
}

// stop ends following and returns what was told.
func (f *following) stop(t testing.TB) []observer.FollowEvent {
	t.Helper()
	f.cancel()
	if err := <-f.ended; err != nil {
		t.Fatal(err)
	}
	return f.events
}

func (f *following) await(t *testing.T, what string, is func(observer.FollowEvent) bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		f.mu.Lock()
		found := slices.ContainsFunc(f.events, is)
		f.mu.Unlock()
		if found {
			return
		}
	}
	t.Fatalf("not told: %s", what)
}

// firsts counts how often a function of a process is told of.
func firsts(events []observer.FollowEvent, pid int, module, name string) int {
	n := 0
	for _, e := range events {
		if e.Kind == observer.FirstExecution && e.PID == pid && e.Function.Module == module && e.Function.QualName == name {
			n++
		}
	}
	return n
}

func TestFollowOneProcess(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		site := t.TempDir()
		write(t, site, parser)
		s := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+site))
		f := follow(t, observer.FollowOptions{PID: s.PID()})
		before := time.Now()
		s.Call("plain", 3)
		s.Call("plain", 3)
		s.Create("generator", 2)
		s.Exec("import fp; fp.parse(1); fp.parse(2)")
		s.Exec("class Body:\n class Inner: pass\n value = [x for x in (1,)]\ndef local():\n class Local: pass\nlocal()")
		f.await(t, "fp:scan", func(e observer.FollowEvent) bool { return e.Function != nil && e.Function.QualName == "scan" })
		events := f.stop(t)
		for name, want := range map[string]int{"plain": 1, "generator": 0, "never": 0} {
			if got := firsts(events, s.PID(), "__main__", name); got != want {
				t.Errorf("%s is told of %d times, want %d", name, got, want)
			}
		}
		for _, e := range events {
			if e.Function == nil {
				continue
			}
			// Bodies of classes start too, and are no functions.
			switch _, last := path.Split(strings.ReplaceAll(e.Function.QualName, ".", "/")); last {
			case "Body", "Inner", "Local", "Reader", "<module>":
				t.Errorf("told of the body %s", e.Function.QualName)
			}
		}
		if !slices.ContainsFunc(events, func(e observer.FollowEvent) bool { return e.Function != nil && e.Function.QualName == "local" }) {
			t.Error("not told of local")
		}
		for _, e := range events {
			if e.Function != nil && e.Function.QualName == "parse" && (e.Function.Package != "Fast.Parser 1.2" || e.Time.Before(before.Add(-time.Second)) || e.Time.After(time.Now())) {
				t.Errorf("told %+v at %s", e.Function, e.Time)
			}
		}
		if firsts(events, s.PID(), "fp", "parse") != 1 || firsts(events, s.PID(), "fp", "<module>") != 0 {
			t.Errorf("parse is told of %d times", firsts(events, s.PID(), "fp", "parse"))
		}
	})
}

func TestFollowAllProcesses(t *testing.T) {
	in := debian(t)
	site := t.TempDir()
	write(t, site, parser)
	one := testenv.StartSubject(t, in)
	f := follow(t, observer.FollowOptions{Package: "fast-parser"})
	two := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+site)) // later
	two.Exec("import fp; fp.parse(1)")
	one.Call("plain", 1)
	parsed := func(pid int) func(observer.FollowEvent) bool {
		return func(e observer.FollowEvent) bool {
			return e.PID == pid && e.Function != nil && e.Function.QualName == "parse" && e.Function.Package == "Fast.Parser 1.2"
		}
	}
	f.await(t, "parse in a later process", parsed(two.PID()))
	two.Exit(0)
	f.await(t, "the end of a process", func(e observer.FollowEvent) bool {
		return e.Kind == observer.ProcessEnded && e.PID == two.PID()
	})
	for _, e := range f.stop(t) {
		if e.Function != nil && !strings.HasPrefix(e.Function.Package, "Fast.Parser ") {
			t.Errorf("told of %+v, which is of another package", e.Function)
		}
	}
}

func TestFollowOfAProcessThatEnds(t *testing.T) {
	for name, end := range map[string]string{"exits": "os._exit(0)", "execs": "os.execv('/bin/sleep', ['sleep', '3'])"} {
		t.Run(name, func(t *testing.T) {
			s := testenv.StartSubject(t, debian(t))
			s.Exec("import os, threading")
			f := follow(t, observer.FollowOptions{PID: s.PID()})
			s.Exec("threading.Timer(0.05, lambda: " + end + ").start()")
			select {
			case err := <-f.ended:
				last := f.events[len(f.events)-1]
				if err != nil || last.Kind != observer.ProcessEnded || !strings.Contains(last.Detail, pyframes.ErrNoProcess.Error()) {
					t.Errorf("ended with %v, after %+v", err, last)
				}
			case <-time.After(10 * time.Second):
				t.Error("following goes on")
			}
		})
	}
	err := observer.Follow(context.Background(), observer.FollowOptions{PID: os.Getpid(), Tell: func(observer.FollowEvent) {}})
	if !errors.Is(err, pyframes.ErrNotPython) {
		t.Errorf("following this test: %v", err)
	}
}
