package loader

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// processEvents reads what there is to tell now.
func processEvents(t *testing.T, p *ProcessEvents) []ProcessEvent {
	t.Helper()
	p.SetDeadline(time.Now())
	var all []ProcessEvent
	for {
		event, err := p.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, event)
	}
}

func newProcessEvents(t *testing.T, bufferSize int) *ProcessEvents {
	t.Helper()
	p, err := NewProcessEvents(bufferSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

func TestProcessEvents(t *testing.T) {
	p := newProcessEvents(t, 0)
	// A shell that replaces itself.
	child := exec.Command("/bin/sh", "-c", "exec /bin/sleep 0")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	var last ProcessEvent
	for _, event := range processEvents(t, p) {
		if event.PID != child.Process.Pid {
			continue
		}
		kinds = append(kinds, event.Kind.String()+" "+event.Name)
		if event.ParentPID != os.Getpid() || event.NamespacePID != event.PID || event.Nested {
			t.Errorf("%+v, want the parent %d and no PID namespace", event, os.Getpid())
		}
		if last.StartTime != 0 && (event.StartTime != last.StartTime || event.Time <= last.Time) || event.Time < event.StartTime {
			t.Errorf("%+v follows %+v", event, last)
		}
		last = event
	}
	got := strings.Join(kinds[1:], ", ")
	if !strings.HasPrefix(kinds[0], "forked") || got != "executed sh, executed sleep, exited sleep" {
		t.Errorf("%s, %s", kinds[0], got)
	}
	if lost, err := p.Losses(); err != nil || lost.Any() {
		t.Errorf("%+v lost, %v", lost, err)
	}
}

// TestProcessEventsOfThreads checks that a thread is no process, and that a process ends with its last
// thread, whichever that is.
func TestProcessEventsOfThreads(t *testing.T) {
	p := newProcessEvents(t, 0)
	child := exec.Command("/usr/bin/python3.11", "-c", `
import ctypes, os, threading, time
for _ in range(3):
    threading.Thread(target=time.sleep, args=(0.3,)).start()
ctypes.CDLL(None).syscall(60, 0) # the main thread alone ends
`)
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	var began, ended int
	for _, event := range processEvents(t, p) {
		if event.PID != child.Process.Pid {
			continue
		}
		switch event.Kind {
		case Forked:
			began++
		case Exited:
			ended++
			if lived := event.Time - event.StartTime; lived < 300*time.Millisecond {
				t.Errorf("told that it ended after %v", lived)
			}
		}
	}
	if began != 1 || ended < 1 || ended > 2 {
		t.Errorf("began %d times, ended %d times", began, ended)
	}
}

func TestProcessEventsInANamespace(t *testing.T) {
	p := newProcessEvents(t, 0)
	child := exec.Command("/bin/sleep", "0")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, event := range processEvents(t, p) {
		if event.PID == child.Process.Pid {
			seen++
			if event.NamespacePID != 1 || !event.Nested {
				t.Errorf("%+v, want process 1 of its namespace", event)
			}
		}
	}
	if seen != 3 {
		t.Errorf("%d events, want 3", seen)
	}
}

func TestProcessEventsCountLosses(t *testing.T) {
	p := newProcessEvents(t, os.Getpagesize())
	const processes = 60
	for range processes {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
	}
	lost, err := p.Losses()
	if err != nil {
		t.Fatal(err)
	}
	told := len(processEvents(t, p))
	if told == 0 || lost.Dropped == 0 || told+int(lost.Dropped) < 3*processes {
		t.Errorf("%d told and %+v lost of %d events", told, lost, 3*processes)
	}
	// There is room again.
	if err := exec.Command("/bin/true").Run(); err != nil {
		t.Fatal(err)
	}
	if again := len(processEvents(t, p)); again < 3 {
		t.Errorf("%d events told after those before were read", again)
	}
}
