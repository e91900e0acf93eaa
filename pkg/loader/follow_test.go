package loader

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
)

// follow follows one subject until the test ends.
func follow(t *testing.T, p *probed, options FollowOptions) *Follower {
	t.Helper()
	testenv.MayFollow(t)
	f, err := NewFollower(options)
	if err != nil {
		t.Fatal(err)
	}
	p.closeAtEnd(f)
	if err := f.Follow(p.PID(), p.binary, p.table, p.layout); err != nil {
		t.Fatal(err)
	}
	return f
}

// firsts reads what a follower has to tell now.
func firsts(t *testing.T, f *Follower) []First {
	t.Helper()
	f.SetDeadline(time.Now())
	var all []First
	for {
		first, err := f.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, first)
	}
}

func TestFollower(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		t.Run("each once", func(t *testing.T) {
			p := startProbed(t, in)
			f := follow(t, p, FollowOptions{})
			var want []string
			for _, target := range called {
				p.Create("generator", 1) // to create one is not to start it
				p.Call(target, 3)
				code := p.codeOf(fmt.Sprintf("ORIGINALS[%q]", target))
				name := fmt.Sprint(p.Eval(fmt.Sprintf("getattr(ORIGINALS[%q], 'co_qualname', ORIGINALS[%[1]q].co_name)", target)))
				want = append(want, fmt.Sprint(code, name))
			}
			p.CallThreads("plain", 100, 4)
			var got []string
			for _, first := range firsts(t, f) {
				if first.PID != p.PID() || first.TID < first.PID || first.Time <= 0 {
					t.Errorf("a first start of process %d: %+v", p.PID(), first)
				}
				if strings.HasSuffix(first.Filename, "/shapes.py") || strings.HasSuffix(first.Filename, "/shapes38.py") {
					got = append(got, fmt.Sprint(first.Code, first.Name))
				}
			}
			for _, line := range want {
				if n := times(got, line); n != 1 {
					t.Errorf("%s is told of %d times, want once", line, n)
				}
			}
			if never := fmt.Sprint(p.codeOf("never.__code__"), "never"); slices.Contains(got, never) {
				t.Errorf("%s is told of", never)
			}
			wantNothingLost(t, f)
		})
		t.Run("every call shape", func(t *testing.T) {
			p := startProbed(t, in)
			p.Exec("import calls")
			f := follow(t, p, FollowOptions{})
			p.Exec("calls.run(2)")
			told := map[Code]int{}
			for _, first := range firsts(t, f) {
				told[first.Code]++
			}
			names := p.Eval("list(calls.SHAPES)").([]any)
			each := p.numbers("[calls.SHAPES[name][2] for name in calls.SHAPES]")
			for i, name := range names {
				want := 0
				if each[i] > 0 {
					want = 1
				}
				if n := told[p.codeOf(fmt.Sprintf("calls.SHAPES[%q][0]", name))]; n != want {
					t.Errorf("%s is told of %d times, want %d", name, n, want)
				}
			}
			for code, n := range told {
				if n > 1 {
					t.Errorf("%+v is told of %d times", code, n)
				}
			}
			wantNothingLost(t, f)
		})
		t.Run("warm", func(t *testing.T) {
			if in.Minor <= 10 || in.Minor == 12 {
				return // every start comes by
			}
			p := startProbed(t, in)
			p.Call("plain", 5000)
			p.Exec("import time")
			f := follow(t, p, FollowOptions{})
			before, _, _, err := f.stats()
			if err != nil {
				t.Fatal(err)
			}
			p.Call("plain", 10000)
			after, _, _, err := f.stats()
			if err != nil {
				t.Fatal(err)
			}
			if after-before > 100 {
				t.Errorf("10,000 starts of warm code hit the probes %d times", after-before)
			}
		})
		t.Run("every process", func(t *testing.T) {
			testenv.MayFollow(t)
			one := startProbed(t, in)
			f, err := NewFollower(FollowOptions{})
			if err != nil {
				t.Fatal(err)
			}
			one.closeAtEnd(f)
			if err := f.Follow(0, one.binary, one.table, one.layout); err != nil {
				t.Fatal(err)
			}
			two := startProbed(t, in) // later
			one.Call("plain", 1)
			two.Call("plain", 1)
			told := map[int]int{}
			imported := 0
			for _, first := range firsts(t, f) {
				if first.Name == "plain" {
					told[first.PID]++
				}
				if first.PID == two.PID() && first.Name == "<module>" {
					imported++
				}
			}
			if told[one.PID()] != 1 || told[two.PID()] != 1 {
				t.Errorf("plain is told of %v times by process, want once in %d and %d", told, one.PID(), two.PID())
			}
			if imported < 10 {
				t.Errorf("%d modules of the later process are told of", imported)
			}
		})
	})
}

func times(list []string, want string) int {
	n := 0
	for _, s := range list {
		if s == want {
			n++
		}
	}
	return n
}

func wantNothingLost(t *testing.T, f *Follower) {
	t.Helper()
	lost, err := f.Losses()
	if err != nil {
		t.Fatal(err)
	}
	if lost.Any() {
		t.Errorf("of the first starts, %s", lost)
	}
}

// TestFollowerCountsLosses fills the kernel's buffer and its map.
func TestFollowerCountsLosses(t *testing.T) {
	const functions = 1000
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		start := func(t *testing.T, options FollowOptions) (*probed, *Follower) {
			p := startProbed(t, in)
			p.MakeFunctions(functions)
			return p, follow(t, p, options)
		}
		made := func(t *testing.T, f *Follower) int {
			n := 0
			for _, first := range firsts(t, f) {
				if first.Filename == "made" {
					n++
				}
			}
			return n
		}
		t.Run("buffer full", func(t *testing.T) {
			p, f := start(t, FollowOptions{BufferSize: os.Getpagesize() * 4})
			p.Exec("for f in made: f()")
			lost, err := f.Losses()
			if err != nil {
				t.Fatal(err)
			}
			told := made(t, f)
			if told == 0 || uint64(told)+lost.Dropped < functions || lost.Full != 0 || lost.Faults != 0 {
				t.Errorf("%d of %d told; %+v lost", told, functions, lost)
			}
			// Once there is room, the next start of what was dropped is told, where it comes by.
			p.Exec("for f in made[-10:]: f()")
			if again := made(t, f); in.Minor <= 12 && again != 10 {
				t.Errorf("%d of 10 dropped first starts are told later", again)
			}
		})
		t.Run("map full", func(t *testing.T) {
			p, f := start(t, FollowOptions{MaxCodes: functions / 2})
			p.Exec("for f in made: f()")
			lost, err := f.Losses()
			if err != nil {
				t.Fatal(err)
			}
			told := made(t, f)
			if told == 0 || uint64(told)+lost.Full < functions || lost.Dropped != 0 || lost.Faults != 0 {
				t.Errorf("%d of %d told; %+v lost", told, functions, lost)
			}
			if err := f.Forget(p.PID(), math.MaxInt64); err != nil {
				t.Fatal(err)
			}
			p.Exec("def afterwards(): pass\nafterwards()")
			if !slices.ContainsFunc(firsts(t, f), func(first First) bool { return first.Name == "afterwards" }) {
				t.Error("nothing is told after room was made")
			}
		})
	})
}

func TestFollowerClosed(t *testing.T) {
	f, err := NewFollower(FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := f.Read()
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("a Read that waited ends with %v, want ErrClosed", err)
	}
}
