package observer_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/testenv"
)

// A child is a process that a subject forked.
type child struct {
	parent *testenv.Subject
	pid    int
}

func (c child) PID() int { return c.pid }

// fork forks a subject. The child calls shapes.Shapes.method as often as it is told to.
func fork(t *testing.T, s *testenv.Subject) child {
	t.Helper()
	s.Exec(`
import os
orders, answers = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.close(orders[1])
    while True:
        times = os.read(orders[0], 16)
        if not times:
            os._exit(0)
        for _ in range(int(times)):
            Shapes().method(1)
        os.write(answers[1], b"done")
os.close(orders[0])
`)
	var c = child{parent: s}
	if _, err := fmt.Sscan(fmt.Sprint(s.Eval("child")), &c.pid); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c child) method(times int) {
	c.parent.Exec(fmt.Sprintf("os.write(orders[1], b'%d'); os.read(answers[0], 16)", times))
}

// TestForkedChildren has a child that shares its parent's addresses and has a past of its own.
func TestForkedChildren(t *testing.T) {
	for _, in := range []testenv.Interpreter{debian(t), testenv.OfMinor(t, testenv.Observer, 14)} {
		t.Run(in.Name, func(t *testing.T) {
			s := testenv.StartSubject(t, in)
			s.Call("plain", 1)
			c := fork(t, s)
			both := map[string]observed{"parent": s, "child": c}
			state := func(who, name string) observer.ExecutionState {
				t.Helper()
				for _, f := range group(t, functionsOf(t, both[who], observer.FunctionQuery{Module: "shapes"}), "no distribution").Functions {
					if f.QualName == name {
						return f.State
					}
				}
				t.Fatalf("no %s in the %s", name, who)
				return ""
			}
			want := func(who, name string, want observer.ExecutionState) {
				t.Helper()
				if got := state(who, name); got != want {
					t.Errorf("%s is %s in the %s, want %s", name, got, who, want)
				}
			}
			want("parent", "Shapes.method", observer.StateNever)
			want("child", "Shapes.method", observer.StateNever)
			want("child", "plain", observer.StateExecuted) // as its parent had run it

			all, one := follow(t, observer.FollowOptions{}), follow(t, observer.FollowOptions{PID: s.PID()})
			c.method(1)
			told := func(e observer.FollowEvent) bool {
				return e.PID == c.pid && e.Function != nil && e.Function.QualName == "Shapes.method"
			}
			all.await(t, "what the child runs first", told)
			all.stop(t)
			for _, e := range one.stop(t) {
				if told(e) {
					t.Errorf("of the parent is told %+v, which the child ran", e.Function)
				}
			}
			want("child", "Shapes.method", observer.StateExecuted)
			want("parent", "Shapes.method", observer.StateNever)

			for who, n := range map[string]uint64{"parent": 0, "child": 71} {
				report := watch(t, both[who], observer.WatchOptions{}, func() { c.method(71) })
				var got uint64
				for _, f := range report.Functions {
					if f.QualName == "Shapes.method" {
						got += f.Starts
					}
				}
				if got != n || report.Losses != "" {
					t.Errorf("%d starts of the method in the %s, want %d; lost %q", got, who, n, report.Losses)
				}
				verified := verify(t, both[who], func() { c.method(71) }, "shapes:Shapes.method")[0]
				if loop := statement(verified, observer.EvalLoop); loop == nil || loop.Count == nil || *loop.Count != n {
					t.Errorf("verify says %+v of the %s, want %d starts", verified, who, n)
				}
			}
		})
	}
}

// TestCodeThatComesAndGoes watches, follows and verifies in a process that makes and drops functions all the
// time, so that addresses are used again for others.
func TestCodeThatComesAndGoes(t *testing.T) {
	for _, in := range []testenv.Interpreter{debian(t), testenv.OfMinor(t, testenv.Observer, 14)} {
		t.Run(in.Name, func(t *testing.T) {
			s := testenv.StartSubject(t, in)
			s.Exec(`
import threading, time
def churn():
    i = 0
    while not stop.is_set():
        i += 1
        names = {}
        exec("def never_%d(): pass\ndef once_%d(): pass" % (i, i), names)
        names["once_%d" % i]()
        time.sleep(0.0005)
stop = threading.Event()
thread = threading.Thread(target=churn)
thread.start()
`)
			defer s.Exec("stop.set(); thread.join()")
			f := follow(t, observer.FollowOptions{PID: s.PID()})
			report := watch(t, s, observer.WatchOptions{}, func() {
				s.Call("plain", 500)
				time.Sleep(1500 * time.Millisecond)
				s.Call("plain", 500)
			})
			if got := starts(report, "shapes", "plain"); got != 1000 || report.Losses != "" {
				t.Errorf("%d starts of plain, want 1000; lost %q", got, report.Losses)
			}
			made := 0
			for _, f := range report.Functions {
				made += strings.Count(f.QualName, "once_")
				if strings.HasPrefix(f.QualName, "never_") {
					t.Errorf("%s started %d times", f.QualName, f.Starts)
				}
			}
			verified := verify(t, s, func() { s.Call("plain", 300) }, "shapes:plain", "shapes:never")
			for i, want := range []uint64{300, 0} {
				if loop := statement(verified[i], observer.EvalLoop); loop == nil || *loop.Count != want {
					t.Errorf("verify says %+v, want %d starts", verified[i], want)
				}
			}
			told := map[string]int{}
			for _, e := range f.stop(t) {
				if e.Function != nil {
					told[e.Function.QualName]++
				}
			}
			firsts := 0
			for name, n := range told {
				if strings.HasPrefix(name, "never_") {
					t.Errorf("%s is told of %d times", name, n)
				}
				firsts += strings.Count(name, "once_")
			}
			t.Logf("%d told of; %d named and %d starts unnamed in the window", firsts, made, report.Unnamed)
			if firsts < 100 || made+int(report.Unnamed) < 100 {
				t.Errorf("only %d told of, %d watched", firsts, made+int(report.Unnamed))
			}
		})
	}
}
