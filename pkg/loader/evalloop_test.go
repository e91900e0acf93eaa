package loader

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A counted is a subject whose starts are counted, of every target in shapes.TARGETS.
type counted struct {
	*probed
	counter *EvalLoopCounter
	code    map[string]Code // by target
}

func count(t *testing.T, in testenv.Interpreter) *counted {
	t.Helper()
	c := &counted{probed: startProbed(t, in), code: map[string]Code{}}
	var codes []Code
	for target := range c.Eval("dict.fromkeys(ORIGINALS)").(map[string]any) {
		if target == "Child.method" { // inherited: the code object is that of Shapes.method
			continue
		}
		code := c.codeOf(fmt.Sprintf("ORIGINALS[%q]", target))
		c.code[target] = code
		codes = append(codes, code)
	}
	c.counter = c.probe(codes...)
	return c
}

// starts returns what was counted by target, without those that did not start.
func (c *counted) starts() map[string]uint64 {
	c.t.Helper()
	all := counts(c.t, c.counter)
	starts := map[string]uint64{}
	for target, code := range c.code {
		if all[code] != 0 {
			starts[target] = all[code]
		}
	}
	return starts
}

func (c *counted) wantStarts(when string, want map[string]uint64) {
	c.t.Helper()
	if got := c.starts(); fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Errorf("%s:\n got %v\nwant %v", when, got, want)
	}
}

// called are the targets that a test calls. Each call starts the target's code object once; the
// subject's never is among what is counted, and nothing calls it.
var called = []string{
	"plain", "raises", "generator", "coroutine", "async_generator", "keywords", "closure",
	"closure_generator", "wrapped", "Shapes.method", "Shapes.class_method", "Shapes.static_method",
	"Shapes.attribute", "Shapes.Inner.deep", "Child.own",
}

// A way of tracing Python. Turning it on or off changes the process's instrumentation version, so
// that code objects are instrumented anew.
type way struct {
	name, on, off string
}

var tracing = []way{
	{"settrace", "import sys; sys.settrace(lambda *args: None)", "sys.settrace(None)"},
	{"settrace by line", "import sys\ndef _trace(*args):\n return _trace\nsys.settrace(_trace)", "sys.settrace(None)"},
	{"setprofile", "import sys; sys.setprofile(lambda *args: None)", "sys.setprofile(None)"},
}

// monitoring are the ways from 3.12 on.
var monitoring = []way{
	monitor("starts", 3, "set_events(3, sys.monitoring.events.PY_START)", "set_events(3, 0)"),
	monitor("instructions and lines", 4,
		"set_events(4, sys.monitoring.events.INSTRUCTION | sys.monitoring.events.LINE)", "set_events(4, 0)"),
	monitor("one code object", 5,
		"set_local_events(5, plain.__code__, sys.monitoring.events.PY_START)", "set_local_events(5, plain.__code__, 0)"),
}

func waysOf(in testenv.Interpreter) []way {
	if in.Minor < 12 {
		return tracing
	}
	return append(tracing[:len(tracing):len(tracing)], monitoring...)
}

func monitor(name string, tool int, on, off string) way {
	return way{
		name: "sys.monitoring of " + name,
		on: fmt.Sprintf(`import sys
sys.monitoring.use_tool_id(%d, "test")
for event in "PY_START", "INSTRUCTION", "LINE":
  sys.monitoring.register_callback(%[1]d, getattr(sys.monitoring.events, event), lambda *args: None)
sys.monitoring.%s`, tool, on),
		off: fmt.Sprintf("sys.monitoring.%s; sys.monitoring.free_tool_id(%d)", off, tool),
	}
}

// TestEvalLoopCounter checks that each start counts once, and nothing else counts.
func TestEvalLoopCounter(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		t.Run("each shape", func(t *testing.T) {
			c := count(t, in)
			c.wantStarts("before any call", map[string]uint64{})
			want := map[string]uint64{}
			for _, times := range []int{1, 2, 997} { // cold, then warm
				for _, target := range called {
					c.Call(target, times)
					want[target] += uint64(times)
				}
				c.wantStarts(fmt.Sprintf("%d calls of each more", times), want)
			}
		})
		t.Run("created and not started", func(t *testing.T) {
			c := count(t, in)
			for _, target := range []string{"generator", "coroutine", "async_generator", "closure_generator"} {
				c.Create(target, 50)
			}
			c.wantStarts("after creating", map[string]uint64{})
			c.Exec("KEPT[0].close(); next(KEPT[1]); KEPT[1].close(); list(KEPT[2])")
			c.wantStarts("closed one unstarted, closed one started, ended one", map[string]uint64{"generator": 2})
		})
		t.Run("threads", func(t *testing.T) {
			c := count(t, in)
			// A thread that asks for the lock makes RESUME_CHECK fall back into RESUME.
			c.Exec("import sys; sys.setswitchinterval(1e-6)")
			c.CallThreads("plain", 5000, 4)
			c.CallThreads("Shapes.method", 5000, 4)
			c.wantStarts("in 4 threads", map[string]uint64{"plain": 20000, "Shapes.method": 20000})
		})
		t.Run("from C", func(t *testing.T) {
			c := count(t, in)
			c.Exec("list(map(plain, range(300))); sorted(range(200), key=Shapes().method)")
			c.wantStarts("called by map and sorted", map[string]uint64{"plain": 300, "Shapes.method": 200})
		})
		t.Run("forked child", func(t *testing.T) {
			c := count(t, in)
			c.Call("plain", 3)
			c.Exec("import os\npid = os.fork()\nif not pid:\n list(map(plain, range(100)))\n os._exit(0)\nos.waitpid(pid, 0)")
			c.wantStarts("the child's starts are not the process's", map[string]uint64{"plain": 3})
		})
		t.Run("tracing", func(t *testing.T) {
			c := count(t, in)
			want := map[string]uint64{}
			callAll := func(when string) {
				t.Helper()
				for _, target := range called {
					c.Call(target, 20)
					want[target] += 20
				}
				c.CallThreads("plain", 20, 2)
				want["plain"] += 40
				c.wantStarts(when, want)
			}
			for _, way := range waysOf(in) {
				for range 2 {
					c.Exec(way.on)
					callAll(way.name + " on")
					c.Exec(way.off)
					callAll(way.name + " off")
				}
			}
		})
		t.Run("address used again", func(t *testing.T) {
			p := startProbed(t, in)
			code := p.codeOf("plain.__code__")
			// What has the address but another name or line is another code object.
			others := []Code{{code.Addr, code.Name + 16, code.FirstLine}, {code.Addr, code.Name, code.FirstLine + 1}}
			counter := p.probe(others...)
			p.Call("plain", 10)
			for other, n := range counts(t, counter) {
				if n != 0 {
					t.Errorf("%d starts counted for %+v; %+v was called", n, other, code)
				}
			}
		})
		t.Run("later", func(t *testing.T) {
			p := startProbed(t, in)
			counter := p.probe()
			p.Exec("def added(x): return x")
			code := p.codeOf("added.__code__")
			p.Exec("for i in range(5): added(i)")
			for range 2 { // the second changes nothing
				if err := counter.Watch(code); err != nil {
					t.Fatal(err)
				}
				p.Exec("for i in range(7): added(i)")
			}
			if n := counts(t, counter)[code]; n != 14 {
				t.Errorf("%d starts since it is watched, want 14", n)
			}
		})
	})
}

// TestEvalLoopCounterOnEveryCallShape calls in every way that there is, with tracing of every kind on,
// off and in between.
func TestEvalLoopCounterOnEveryCallShape(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		p := startProbed(t, in)
		p.Exec("import calls, sys")
		names := p.Eval("list(calls.SHAPES)").([]any)
		if len(names) < 80 {
			t.Fatalf("%d shapes, want every one", len(names))
		}
		each := p.numbers("[calls.SHAPES[name][2] for name in calls.SHAPES]")
		var codes []Code
		for _, name := range names {
			codes = append(codes, p.codeOf(fmt.Sprintf("calls.SHAPES[%q][0]", name)))
		}
		counter := p.probe(codes...)
		called := uint64(0)
		run := func(when, between string) {
			t.Helper()
			p.Exec("calls.run(2, " + between + ")")
			called += 2
			got := counts(t, counter)
			for i, name := range names {
				if want := called * each[i]; got[codes[i]] != want {
					t.Errorf("%s, %s: %d starts, want %d", when, name, got[codes[i]], want)
				}
			}
		}
		const nothing = "lambda: None"
		run("cold", nothing)
		run("warm", nothing)
		for _, way := range waysOf(in) {
			for range 2 {
				p.Exec(way.on)
				run(way.name+" on", nothing)
				p.Exec(way.off)
				run(way.name+" off", nothing)
			}
		}
		toggles := []string{"settrace", "setprofile"}
		p.Exec("import itertools\ndef cycle(*states): return itertools.cycle(states).__next__")
		for _, toggle := range toggles {
			p.Exec("next_state = cycle(lambda *args: None, None)")
			run(toggle+" toggled before each call", "lambda: sys."+toggle+"(next_state())")
			p.Exec("sys." + toggle + "(None)")
		}
		if in.Minor >= 12 {
			p.Exec(`sys.monitoring.use_tool_id(3, "test"); next_state = cycle(sys.monitoring.events.LINE, 0)`)
			run("monitoring toggled before each call", "lambda: sys.monitoring.set_events(3, next_state())")
		}
	})
}

// TestEvalLoopCounterOnOlderKernels covers what kernels before 6.6, and before 5.15, do.
func TestEvalLoopCounterOnOlderKernels(t *testing.T) {
	for _, kernel := range []struct {
		name    string
		without []*func() bool
	}{
		{"without uprobe_multi", []*func() bool{&multiSupported}},
		{"without attach cookies", []*func() bool{&multiSupported, &cookiesSupported}},
	} {
		t.Run(kernel.name, func(t *testing.T) {
			without(t, kernel.without...)
			testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
				c := count(t, in)
				c.Call("plain", 1000)
				c.CallThreads("Shapes.method", 1000, 3)
				c.wantStarts("after calls", map[string]uint64{"plain": 1000, "Shapes.method": 3000})
				c.Exec("import os\npid = os.fork()\nif not pid:\n list(map(plain, range(100)))\n os._exit(0)\nos.waitpid(pid, 0)")
				c.wantStarts("the child's starts are not the process's", map[string]uint64{"plain": 1000, "Shapes.method": 3000})
			})
		})
	}
}

// without takes features from the kernel for the time of a test.
func without(t *testing.T, features ...*func() bool) {
	t.Helper()
	for _, feature := range features {
		real := *feature
		*feature = func() bool { return false }
		t.Cleanup(func() { *feature = real })
	}
}

// TestEvalLoopCounterCountsLosses starts more code objects than the map has room for.
func TestEvalLoopCounterCountsLosses(t *testing.T) {
	const functions, calls = 1000, 3
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		p := startProbed(t, in)
		p.MakeFunctions(functions)
		counter, err := NewEvalLoopCounterOfAll(p.PID(), p.binary, p.table, p.layout, functions/2)
		if err != nil {
			t.Fatal(err)
		}
		p.closeAtEnd(counter)
		p.Exec(fmt.Sprintf("for f in made * %d: f()", calls))
		starts, err := counter.Starts()
		if err != nil {
			t.Fatal(err)
		}
		lost, err := counter.Losses()
		if err != nil {
			t.Fatal(err)
		}
		codes := p.numbers("[n for f in made for n in (id(f.__code__), id(f.__code__.co_name), f.__code__.co_firstlineno)]")
		counted := uint64(0)
		for ; len(codes) > 0; codes = codes[3:] {
			n := starts[Code{codes[0], codes[1], uint32(codes[2])}]
			if n != 0 && n != calls {
				t.Errorf("a function that has room is counted %d times, want %d", n, calls)
			}
			counted += n
		}
		// Few others start: the subject's own.
		if all := counted + lost.Full; counted == 0 || all < functions*calls || all > functions*calls+200 || lost != (Losses{Full: lost.Full}) {
			t.Errorf("%d of %d starts counted; %+v lost", counted, functions*calls, lost)
		}
	})
}

// TestEvalLoopCounterLeavesNothing looks at the process's code: a uprobe is a breakpoint in it.
func TestEvalLoopCounterLeavesNothing(t *testing.T) {
	testenv.NobodyFollows(t)
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		p := startProbed(t, in)
		before := codeAt(t, p.PID(), p.binary, p.table)
		counter, err := NewEvalLoopCounter(p.PID(), p.binary, p.table, p.layout, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range codeAt(t, p.PID(), p.binary, p.table) {
			if b != 0xcc {
				t.Errorf("site %d has the byte %#x while it is probed, want a breakpoint", i, b)
			}
		}
		if err := counter.Close(); err != nil {
			t.Fatal(err)
		}
		if after := codeAt(t, p.PID(), p.binary, p.table); !bytes.Equal(after, before) {
			t.Errorf("the sites' bytes are % x, were % x", after, before)
		}
		if got := fmt.Sprint(p.Call("plain", 1)); got != "[2]" {
			t.Errorf("plain gives %s", got)
		}
	})
}

// codeAt reads the first byte of each site in the process.
func codeAt(t *testing.T, pid int, binary string, table *evalloop.Table) []byte {
	t.Helper()
	want, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	code := make([]byte, len(table.Sites))
	read := 0
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.Contains(fields[1], "x") {
			continue
		}
		if got, err := os.Stat(fields[5]); err != nil || !os.SameFile(got, want) {
			continue
		}
		var from, to, offset uint64
		if _, err := fmt.Sscanf(fields[0]+" "+fields[2], "%x-%x %x", &from, &to, &offset); err != nil {
			t.Fatal(err)
		}
		for i, site := range table.Sites {
			if site.Offset < offset || site.Offset-offset >= to-from {
				continue
			}
			if _, err := memory.ReadAt(code[i:i+1], int64(from+site.Offset-offset)); err != nil {
				t.Fatal(err)
			}
			read++
		}
	}
	if read != len(table.Sites) {
		t.Fatalf("%d of %d sites are mapped", read, len(table.Sites))
	}
	return code
}

func TestEvalLoopCounterRefuses(t *testing.T) {
	table := &evalloop.Table{Sites: []evalloop.Site{{Offset: 4096}}}
	missing := filepath.Join(t.TempDir(), "gone")
	if _, err := NewEvalLoopCounter(os.Getpid(), missing, table, CodeLayout{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := NewEvalLoopCounter(0, "/bin/true", table, CodeLayout{}, nil); err == nil {
		t.Error("process 0, which would be every process, is probed")
	}
	if _, err := NewEvalLoopCounter(1<<22+1, "/bin/true", table, CodeLayout{}, nil); err == nil {
		t.Error("a process that does not exist is probed")
	}
	if _, err := NewEvalLoopCounter(os.Getpid(), "/bin/true", &evalloop.Table{Sites: make([]evalloop.Site, 2000)}, CodeLayout{}, nil); err == nil {
		t.Error("more sites than the program has room for are taken")
	}
}
