package pyframes_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// held is Python's own account of its functions: the code objects of those that the collector
// knows, and of those in their constants.
const held = `
import gc, types
def __held():
    gc.collect()
    found, todo = {}, [f.__code__ for f in gc.get_objects() if type(f) is types.FunctionType]
    while todo:
        code = todo.pop()
        if id(code) in found: continue
        found[id(code)] = code
        todo.extend(c for c in code.co_consts if type(c) is types.CodeType)
    return {i: c for i, c in found.items() if c.co_flags & 1 and c.co_filename != "<string>"}
`

func functions(t *testing.T, p *pyframes.Process, scan *pyframes.FunctionScan) map[uint64]pyframes.FunctionState {
	t.Helper()
	all := make(map[uint64]pyframes.FunctionState)
	for f, err := range p.Functions(context.Background(), scan) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[f.Addr]; twice {
			t.Errorf("%s comes twice", f.QualName)
		}
		all[f.Addr] = f
	}
	return all
}

func TestFunctionsAreThoseThatPythonKnows(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		s.Exec(held)
		s.Exec("import json, decimal, unittest, asyncio, random, email.mime.text")
		want := map[uint64]string{}
		for id, name := range s.Eval("{str(i): c.co_name for i, c in __held().items()}").(map[string]any) {
			var addr uint64
			fmt.Sscan(id, &addr)
			want[addr] = name.(string)
		}
		var scan pyframes.FunctionScan
		var last float64
		scan.Progress = func(done float64) {
			if done < last || done > 1 {
				t.Errorf("progress went from %v to %v", last, done)
			}
			last = done
		}
		got := functions(t, p, &scan)
		missing, wrong := 0, 0
		for addr, name := range want {
			if f, ok := got[addr]; !ok {
				if missing++; missing < 5 {
					t.Errorf("%s at %#x is missing", name, addr)
				}
			} else if f.Name != name {
				t.Errorf("%s at %#x is called %s", name, addr, f.Name)
			}
		}
		for addr, f := range got {
			// What evaluating the question made is not held any more, or only just.
			if want[addr] == "" && !strings.HasPrefix(f.Filename, "<string>") && f.Filename != "<frozen importlib._bootstrap_external>" {
				if wrong++; wrong < 5 {
					t.Errorf("%s:%d %s at %#x is not held", f.Filename, f.FirstLine, f.QualName, addr)
				}
			}
		}
		t.Logf("%d functions, %d missing, %d too many, %d rejected, %d MiB", len(got), missing, wrong, scan.Rejected, scan.Bytes>>20)
		if len(want) < 2000 {
			t.Errorf("Python knows only %d functions", len(want))
		}
		if last != 1 {
			t.Errorf("progress ended at %v", last)
		}
		// The modules and names are Python's.
		for target, module := range map[string]string{"shapes:Shapes.method": "shapes", "shapes:keywords": "shapes38"} {
			f := got[resolve(t, p, target).Code.Addr]
			if f.Module != module && !(module == "shapes38" && in.Minor < 8) {
				t.Errorf("%s is of module %q", target, f.Module)
			}
		}
		inner := resolve(t, p, "shapes:_make_closure.<locals>.inner").Code
		if f := got[inner.Addr]; f.QualName != "_make_closure.<locals>.inner" || f.Function == 0 {
			t.Errorf("the closure's code reads %+v", f)
		}
	})
}

func TestFunctionsSayWhatRan(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		s.Call("keywords", 1)
		s.Exec("it = generator(3); next(it)\nunstarted = closure_generator(3)\n")
		ours := &pyframes.FunctionScan{Match: func(module string, c pyframes.Code) bool { return strings.HasPrefix(module, "shapes") }}
		got := functions(t, p, ours)
		for target, want := range map[string]string{
			"keywords": ran, "never": neverRan, "plain": neverRan, "closure_generator": neverRan,
			"generator":                    ran, // suspended, so that no finished frame of it is kept
			"main":                         ran, // never finished
			"_make_closure.<locals>.inner": neverRan,
		} {
			f, ok := got[resolve(t, p, "shapes:"+target).Code.Addr]
			verdict := neverRan
			switch {
			case !ok:
				verdict = "not found"
			case f.Evidence.Executed:
				verdict = ran
			case f.Unclear != nil || f.Evidence.Misses != "":
				verdict = maybeRan
			}
			if verdict != want && !(verdict == maybeRan && want == neverRan && in.Minor != 11) {
				t.Errorf("%s is %s, want %s: %+v, %v", target, verdict, want, f.Evidence, f.Unclear)
			}
		}
		for _, f := range got {
			if !strings.HasPrefix(f.Module, "shapes") {
				t.Errorf("%s of %q does not match", f.QualName, f.Module)
			}
		}
	})
}

func TestFunctionsAreNotMadeUp(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p := open(t, s)
		// Copies of a function and its code, with their collector's heads; functions that were freed;
		// types' addresses all over.
		s.Exec(`
import ctypes, gc
head = 32 if sys.version_info < (3, 8) else 16
copies = [ctypes.string_at(id(f) - head, head + sys.getsizeof(f) + 100) for f in (plain, never) for _ in range(50)]
copies += [ctypes.string_at(id(f.__code__), 250) for f in (plain, never) for _ in range(50)]
for i in range(2000): exec("def freed_%d(): return %d" % (i, i), {})
gc.collect()
forged = (ctypes.c_uint64 * 100000)(*([1, id(type(plain))] * 50000))
`)
		names := map[string]int{}
		scan := pyframes.FunctionScan{Match: func(module string, _ pyframes.Code) bool { return module != "__main__" }}
		for _, f := range functions(t, p, &scan) {
			names[f.Name]++
			if strings.HasPrefix(f.Name, "freed_") {
				t.Errorf("%s was freed", f.Name)
			}
		}
		if names["plain"] != 1 || names["never"] != 1 {
			t.Errorf("plain comes %d times and never %d times", names["plain"], names["never"])
		}
		if scan.Rejected < 50000 {
			t.Errorf("only %d forged objects were rejected", scan.Rejected)
		}
	})
}

func TestFunctionsOfAProcessThatEnds(t *testing.T) {
	in := testenv.Interpreters(testenv.Observer)[0]
	s := testenv.StartSubject(t, in)
	p := open(t, s)
	var last error
	n := 0
	for _, err := range p.Functions(context.Background(), &pyframes.FunctionScan{Progress: func(done float64) {
		if done > 0.5 {
			s.Kill()
		}
	}}) {
		if last = err; err == nil {
			n++
		}
	}
	if last == nil || !strings.Contains(last.Error(), "no such process") {
		t.Errorf("%v after %d functions", last, n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, err := range open(t, testenv.StartSubject(t, in)).Functions(ctx, nil) {
		if err == nil || !strings.Contains(err.Error(), "canceled") {
			t.Errorf("after a cancel: %v", err)
		}
	}
}
