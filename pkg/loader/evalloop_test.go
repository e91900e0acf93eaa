package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A counted is a subject whose starts are counted, of every target in shapes.TARGETS.
type counted struct {
	t *testing.T
	*testenv.Subject
	counter *EvalLoopCounter
	code    map[string]uint64 // by target
}

func count(t *testing.T, in testenv.Interpreter) *counted {
	t.Helper()
	c := &counted{t: t, Subject: testenv.StartSubject(t, in), code: map[string]uint64{}}
	process, err := pyframes.OpenProcess(c.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	version := process.Interpreter().Version
	table, err := evalloop.Find(process.BinaryPath(), version.Major, version.Minor)
	if err != nil {
		t.Fatal(err)
	}
	var codes []Code
	for target := range c.Eval("dict.fromkeys(ORIGINALS)").(map[string]any) {
		if target == "Child.method" { // inherited: the code object is that of Shapes.method
			continue
		}
		code := c.codeOf(fmt.Sprintf("ORIGINALS[%q]", target))
		c.code[target] = code.Addr
		codes = append(codes, code)
	}
	name, firstLine := process.CodeIdentity()
	c.counter, err = NewEvalLoopCounter(c.PID(), process.BinaryPath(), table, CodeLayout{name, firstLine}, codes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.counter.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// codeOf asks Python about a code object.
func (c *counted) codeOf(expr string) Code {
	c.t.Helper()
	number := func(format string) uint64 {
		n, err := strconv.ParseUint(c.Eval(fmt.Sprintf(format, expr)).(json.Number).String(), 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		return n
	}
	return Code{number("id(%s)"), number("id(%s.co_name)"), uint32(number("%s.co_firstlineno"))}
}

// starts returns what was counted by target, without those that did not start.
func (c *counted) starts() map[string]uint64 {
	c.t.Helper()
	counts, err := c.counter.Counts()
	if err != nil {
		c.t.Fatal(err)
	}
	faults, err := c.counter.Faults()
	if err != nil {
		c.t.Fatal(err)
	}
	if faults != 0 {
		c.t.Errorf("%d starts could not be looked at", faults)
	}
	starts := map[string]uint64{}
	for target, code := range c.code {
		if counts[code] != 0 {
			starts[target] = counts[code]
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
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
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
			ways := tracing
			if c.Eval("__import__('sys').version_info >= (3, 12)") == true {
				ways = append(ways[:len(ways):len(ways)], monitoring...)
			}
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
			for _, way := range ways {
				for range 2 {
					c.Exec(way.on)
					callAll(way.name + " on")
					c.Exec(way.off)
					callAll(way.name + " off")
				}
			}
		})
		t.Run("address used again", func(t *testing.T) {
			c := count(t, in)
			code := c.codeOf("plain.__code__")
			// What has the address but another name or line is another code object.
			for _, other := range []Code{{code.Addr, code.Name + 16, code.FirstLine}, {code.Addr, code.Name, code.FirstLine + 1}} {
				if err := c.counter.objects.Starts.Delete(code.Addr); err != nil {
					t.Fatal(err)
				}
				if err := c.counter.Watch(other); err != nil {
					t.Fatal(err)
				}
				c.Call("plain", 10)
				c.wantStarts("watched as another code object", map[string]uint64{})
			}
		})
		t.Run("later", func(t *testing.T) {
			c := count(t, in)
			c.Exec("def added(x): return x")
			code := c.codeOf("added.__code__")
			c.Exec("for i in range(5): added(i)")
			for range 2 { // the second changes nothing
				if err := c.counter.Watch(code); err != nil {
					t.Fatal(err)
				}
				c.Exec("for i in range(7): added(i)")
			}
			counts, err := c.counter.Counts()
			if err != nil {
				t.Fatal(err)
			}
			if counts[code.Addr] != 14 {
				t.Errorf("%d starts since it is watched, want 14", counts[code.Addr])
			}
		})
	})
}

// TestEvalLoopCounterWithPerfEvents covers what kernels before 6.6 do.
func TestEvalLoopCounterWithPerfEvents(t *testing.T) {
	withoutMulti(t)
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		c := count(t, in)
		c.Call("plain", 1000)
		c.CallThreads("Shapes.method", 1000, 3)
		c.wantStarts("without uprobe_multi", map[string]uint64{"plain": 1000, "Shapes.method": 3000})
		c.Exec("import os\npid = os.fork()\nif not pid:\n list(map(plain, range(100)))\n os._exit(0)\nos.waitpid(pid, 0)")
		c.wantStarts("the child's starts are not the process's", map[string]uint64{"plain": 1000, "Shapes.method": 3000})
	})
}

func withoutMulti(t *testing.T) {
	t.Helper()
	real := multiSupported
	multiSupported = func() bool { return false }
	t.Cleanup(func() { multiSupported = real })
}

// TestEvalLoopCounterLeavesNothing looks at the process's code: a uprobe is a breakpoint in it.
func TestEvalLoopCounterLeavesNothing(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		process, err := pyframes.OpenProcess(s.PID())
		if err != nil {
			t.Fatal(err)
		}
		defer process.Close()
		version := process.Interpreter().Version
		table, err := evalloop.Find(process.BinaryPath(), version.Major, version.Minor)
		if err != nil {
			t.Fatal(err)
		}
		before := codeAt(t, s.PID(), process.BinaryPath(), table)
		counter, err := NewEvalLoopCounter(s.PID(), process.BinaryPath(), table, CodeLayout{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range codeAt(t, s.PID(), process.BinaryPath(), table) {
			if b != 0xcc {
				t.Errorf("site %d has the byte %#x while it is probed, want a breakpoint", i, b)
			}
		}
		if err := counter.Close(); err != nil {
			t.Fatal(err)
		}
		if after := codeAt(t, s.PID(), process.BinaryPath(), table); !bytes.Equal(after, before) {
			t.Errorf("the sites' bytes are % x, were % x", after, before)
		}
		if got := fmt.Sprint(s.Call("plain", 1)); got != "[2]" {
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
	if _, err := NewEvalLoopCounter(1<<22+1, "/bin/true", table, CodeLayout{}, nil); err == nil {
		t.Error("a process that does not exist is probed")
	}
	if _, err := NewEvalLoopCounter(os.Getpid(), "/bin/true", &evalloop.Table{Sites: make([]evalloop.Site, 1000)}, CodeLayout{}, nil); err == nil {
		t.Error("more sites than the program has room for are taken")
	}
}
