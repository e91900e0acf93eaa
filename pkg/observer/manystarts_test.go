package observer_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sca-probe/pkg/observer"
	"sca-probe/testenv"
)

// manyStarts is how many processes start at once, and handlers how many functions of its own each runs.
const (
	manyStarts = 200
	handlers   = 50
)

// startMany starts processes at once, each of which imports what a service does and runs its functions, and
// returns their IDs when all have. They end when end is called, or the test ends.
func startMany(tb testing.TB, in testenv.Interpreter) (started map[int]bool, end func()) {
	tb.Helper()
	var program strings.Builder
	program.WriteString("import json, logging, sys\n")
	for i := range handlers {
		fmt.Fprintf(&program, "def handle_%d(): return json.loads('[1]')\nhandle_%[1]d()\n", i)
	}
	program.WriteString("print(); sys.stdout.flush(); sys.stdin.read()\n")
	script := filepath.Join(tb.TempDir(), "service.py")
	if err := os.WriteFile(script, []byte(program.String()), 0o600); err != nil {
		tb.Fatal(err)
	}
	started = map[int]bool{}
	var outputs []io.Reader
	var ends []func()
	end = func() {
		for _, end := range ends {
			end()
		}
		ends = nil
	}
	tb.Cleanup(func() { end() })
	for range manyStarts {
		cmd := exec.Command(in.Path, script)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			tb.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			tb.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			tb.Fatal(err)
		}
		started[cmd.Process.Pid] = true
		outputs = append(outputs, stdout)
		ends = append(ends, func() { stdin.Close(); cmd.Wait() })
	}
	for _, output := range outputs {
		if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
			tb.Fatal(err)
		}
	}
	return started, end
}

// TestFollowOfManyStarts follows all processes while two hundred start. Each is told of, and so is each of its
// functions, once: the kernel has room for all that they run, however long the follower gets no CPU. What else
// runs on the machine takes of that room, too: where something was lost the follower says so, and the test is made
// again.
func TestFollowOfManyStarts(t *testing.T) {
	for _, in := range []testenv.Interpreter{debian(t), testenv.OfMinor(t, testenv.Observer, 12)} {
		t.Run(in.Name, func(t *testing.T) {
			testenv.StartSubject(t, in) // so that the build is known
			for attempts := 3; ; attempts-- {
				lost := followManyStarts(t, in)
				if len(lost) == 0 {
					return
				}
				if attempts == 1 {
					t.Fatalf("lost: %v", lost)
				}
				t.Logf("once more, as something was lost: %v", lost)
			}
		})
	}
}

// followManyStarts returns what the follower says that it lost. Where that is nothing, nothing may be missing.
func followManyStarts(t *testing.T, in testenv.Interpreter) (lost []string) {
	t.Helper()
	f := follow(t, observer.FollowOptions{})
	started, end := startMany(t, in)
	defer end()
	followed := map[int]bool{}
	told := map[int]map[string]int{}
	for pid := range started {
		told[pid] = map[string]int{}
	}
	for _, e := range f.stop(t) {
		switch {
		case e.Kind == observer.EventsLost:
			lost = append(lost, e.Detail)
		case !started[e.PID]:
		case e.Kind == observer.ProcessFollowed:
			followed[e.PID] = true
		case e.Kind == observer.ProcessRefused:
			t.Errorf("process %d is refused: %s", e.PID, e.Detail)
		case e.Kind == observer.FirstExecution && e.Function.Module == "__main__":
			told[e.PID][e.Function.QualName]++
		case e.Kind == observer.FirstExecution && e.Function.Module == "":
			t.Errorf("%s of %s is told without its module", e.Function.QualName, e.Function.File)
		}
	}
	if len(lost) == 0 && len(followed) != manyStarts {
		t.Errorf("%d of %d processes are told of", len(followed), manyStarts)
	}
	for pid, functions := range told {
		for i := range handlers {
			if n := functions[fmt.Sprint("handle_", i)]; n > 1 || n < 1 && len(lost) == 0 {
				t.Fatalf("handle_%d of process %d is told of %d times, want once", i, pid, n)
			}
		}
	}
	return lost
}

// BenchmarkFollowOfManyStarts measures what following costs two hundred processes that start at once: how
// many times longer it takes until the last has run its functions, and how much CPU the observer itself uses.
func BenchmarkFollowOfManyStarts(b *testing.B) {
	in := debian(b)
	run := func() (took, used time.Duration) {
		began, before := time.Now(), cpuTime(b)
		_, end := startMany(b, in)
		took, used = time.Since(began), cpuTime(b)-before
		end()
		return took, used
	}
	run() // what it reads is in memory from now on
	var alone, with, own, last time.Duration
	var events, lost int
	for range b.N {
		aloneTook, aloneUsed := run()
		f := follow(b, observer.FollowOptions{})
		before := cpuTime(b)
		withTook, _ := run()
		ended := time.Now()
		for _, e := range f.stop(b) {
			switch e.Kind {
			case observer.FirstExecution:
				events++
			case observer.EventsLost:
				lost++
			}
		}
		last += time.Since(ended)
		alone, with, own = alone+aloneTook, with+withTook, own+cpuTime(b)-before-aloneUsed
	}
	b.ReportMetric(with.Seconds()/alone.Seconds(), "with/without")
	b.ReportMetric(float64(own.Microseconds())/float64(events), "µs-CPU/function")
	b.ReportMetric(float64(events)/float64(b.N), "functions")
	b.ReportMetric(float64(lost)/float64(b.N), "losses")
	b.ReportMetric(float64(last.Milliseconds())/float64(b.N), "ms-to-end")
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what this process has used.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
