package loader

import (
	"errors"
	"fmt"
	"testing"

	"sca-probe/testenv"
)

// resumeOf asks Python where a code object's first RESUME is.
const resumeOf = `
def _resume(code):
    import ctypes, dis, sys
    at = next(i.offset for i in dis.get_instructions(code) if i.opname == "RESUME")
    # The instructions end the object.
    raw = ctypes.string_at(id(code), sys.getsizeof(code))
    return id(code) + raw.rindex(code._co_code_adaptive) + at
`

func (p *probed) watchpoint(expr string) Watchpoint {
	p.t.Helper()
	p.Exec(resumeOf)
	return Watchpoint{p.codeOf(expr), p.numbers("[_resume(" + expr + ")]")[0]}
}

func eachWatchable(t *testing.T, f func(t *testing.T, p *probed)) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		p := startProbed(t, in)
		if in.Minor == 12 {
			f(t, p)
			return
		}
		if _, err := NewWatchpoints(p.PID(), p.table, p.layout, nil); !errors.Is(err, ErrWatchpoints) {
			t.Errorf("%v, want ErrWatchpoints", err)
		}
	})
}

func (p *probed) watch(points ...Watchpoint) *Watchpoints {
	p.t.Helper()
	w, err := NewWatchpoints(p.PID(), p.table, p.layout, points)
	if err != nil {
		p.t.Fatal(err)
	}
	p.closeAtEnd(w)
	return w
}

func (p *probed) wantTouched(when string, w *Watchpoints, want map[Code]uint64) {
	p.t.Helper()
	got, err := w.Starts()
	if err != nil {
		p.t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		p.t.Errorf("%s: %v, want %v", when, got, want)
	}
	lost, err := w.Losses()
	if err != nil {
		p.t.Fatal(err)
	}
	if lost.Any() {
		p.t.Errorf("%s: of the starts, %s", when, lost)
	}
}

func TestWatchpoints(t *testing.T) {
	eachWatchable(t, func(t *testing.T, p *probed) {
		p.Exec("def recursive(n): return n and recursive(n - 1)")
		points := []Watchpoint{
			p.watchpoint("plain.__code__"), p.watchpoint("ORIGINALS['generator']"),
			p.watchpoint("ORIGINALS['closure']"), p.watchpoint("recursive.__code__"),
		}
		plain, generator, closure, recursive := points[0].Code, points[1].Code, points[2].Code, points[3].Code
		w := p.watch(points...)
		want := map[Code]uint64{plain: 0, generator: 0, closure: 0, recursive: 0}
		p.wantTouched("before any call", w, want)
		for _, times := range []int{1, 2, 1000} {
			p.Call("plain", times)
			p.Call("generator", times)
			p.Call("closure", times)
			p.Create("generator", times)
			p.Exec("recursive(50)")
			want[plain] += uint64(times)
			want[generator] += uint64(times)
			want[closure] += uint64(times)
			want[recursive] += 51
			p.wantTouched(fmt.Sprintf("%d calls more", times), w, want)
		}
		p.CallThreads("plain", 500, 4)
		want[plain] += 2000
		p.wantTouched("in threads that started later", w, want)

		// Reading the bytecode is not running it.
		p.Exec(`import dis, copy
for _ in range(5):
    list(dis.get_instructions(plain)), plain.__code__.co_code, plain.__code__._co_code_adaptive
    plain.__code__.replace(co_name="x"), hash(plain.__code__), plain.__code__ == never.__code__`)
		p.wantTouched("read as bytecode", w, want)

		p.Exec("import os\npid = os.fork()\nif not pid:\n plain(1)\n os._exit(0)\nos.waitpid(pid, 0)")
		p.wantTouched("a forked child's starts", w, want)

		for range 3 {
			for _, way := range append(tracing[:len(tracing):len(tracing)], monitoring...) {
				p.Exec(way.on)
				p.Call("plain", 20)
				p.Exec(way.off)
				p.Call("plain", 20)
				want[plain] += 40
				p.wantTouched(way.name, w, want)
			}
		}
	})
}

// TestWatchpointsInRunningThreads watches a process whose threads were there before.
func TestWatchpointsInRunningThreads(t *testing.T) {
	eachWatchable(t, func(t *testing.T, p *probed) {
		p.Exec(`import threading
go = threading.Event()
def work():
    go.wait()
    for i in range(500): plain(i)
workers = [threading.Thread(target=work) for _ in range(8)]
for worker in workers: worker.start()`)
		point := p.watchpoint("plain.__code__")
		w := p.watch(point)
		p.Exec("go.set()\nfor worker in workers: worker.join()")
		p.wantTouched("in 8 threads", w, map[Code]uint64{point.Code: 4000})
	})
}

func TestWatchpointsOnEveryCallShape(t *testing.T) {
	eachWatchable(t, func(t *testing.T, p *probed) {
		p.Exec("import calls")
		names := p.Eval("list(calls.SHAPES)").([]any)
		each := p.numbers("[calls.SHAPES[name][2] for name in calls.SHAPES]")
		for first := 0; first < len(names); first += MaxWatchpoints {
			var points []Watchpoint
			last := min(first+MaxWatchpoints, len(names))
			for _, name := range names[first:last] {
				points = append(points, p.watchpoint(fmt.Sprintf("calls.SHAPES[%q][0]", name)))
			}
			w := p.watch(points...)
			want := map[Code]uint64{}
			for i, point := range points {
				p.Exec(fmt.Sprintf("for _ in range(3): calls.SHAPES[%q][1]()", names[first+i]))
				want[point.Code] = 3 * each[first+i]
			}
			p.wantTouched(fmt.Sprint(names[first:last]), w, want)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestWatchpointsOnOlderKernels covers what kernels before 5.13 do.
func TestWatchpointsOnOlderKernels(t *testing.T) {
	without(t, &threadsInherit)
	eachWatchable(t, func(t *testing.T, p *probed) {
		point := p.watchpoint("plain.__code__")
		w := p.watch(point)
		p.Call("plain", 100)
		p.wantTouched("in a thread that was there", w, map[Code]uint64{point.Code: 100})
		p.Exec(`import threading
go = threading.Event()
def work():
    go.wait()
    plain(1)
worker = threading.Thread(target=work)
worker.start()`)
		if lost, err := w.Losses(); err != nil || lost != (Losses{Threads: 1}) {
			t.Errorf("%+v lost, %v; one thread started since", lost, err)
		}
		p.Exec("go.set(); worker.join()")
		if starts, err := w.Starts(); err != nil || starts[point.Code] != 101 {
			t.Errorf("%v, %v; want 101 starts: the thread is watched once it was looked for", starts, err)
		}
	})
}

func TestWatchpointsRefuse(t *testing.T) {
	eachWatchable(t, func(t *testing.T, p *probed) {
		point := p.watchpoint("plain.__code__")
		if _, err := NewWatchpoints(p.PID(), p.table, p.layout, []Watchpoint{point, point, point, point, point}); err == nil {
			t.Error("five are taken")
		}
		if _, err := NewWatchpoints(p.PID(), p.table, p.layout, []Watchpoint{point, point}); err == nil {
			t.Error("one instruction twice is taken")
		}
		if _, err := NewWatchpoints(1<<22+1, p.table, p.layout, []Watchpoint{point}); err == nil {
			t.Error("a process that does not exist is watched")
		}
		// What has the address but another name is another code object.
		other := point
		other.Code.Name += 16
		w := p.watch(other)
		p.Call("plain", 10)
		p.wantTouched("watched as another code object", w, map[Code]uint64{other.Code: 0})
	})
}
