package loop

import (
	"fmt"
	"testing"
	"time"

	"sca-probe/testenv"
)

// lifecycle is a module, made in the subject, whose functions come, go and change.
const lifecycle = `
import types, textwrap
def make_module(name, source):
    module = types.ModuleType(name)
    module.__file__ = "<" + name + ">"
    sys.modules[name] = module
    exec(compile(textwrap.dedent(source), module.__file__, "exec"), module.__dict__)
    return module
m = make_module("lifecycle", '''
    def f(): return 1
    def g(): return 2
    alias = f
    class C:
        def method(self): return 3
    def factory(x):
        def closure(): return x
        return closure
    def outer():
        def middle():
            def inner(): return 4
            return inner
        return middle
    def shared(a):
        def first(): return a
        def second(): return a
        return first, second
''')
`

// TestLifecycle takes functions through what programs do to them while they are patched.
func TestLifecycle(t *testing.T) {
	type object = map[string]any
	cases := map[string]func(t *testing.T, s *service){
		"redefined": func(t *testing.T, s *service) {
			s.patch("lifecycle:f")
			s.Exec("old = m.f; original = m.alias.__code__.co_consts[-1].original\nexec('def f(): return 5', m.__dict__)")
			s.eventually("m.f() == 5 and hits('lifecycle:f') > 0")
			s.must("old.__code__ is original")
		},
		"deleted and defined again": func(t *testing.T, s *service) {
			s.patch("lifecycle:g")
			s.Exec("old = m.g; del m.g")
			s.await("lifecycle:g", "unresolved")
			s.must("old() == 2 and type(old.__code__.co_consts[-1]).__name__ != 'Hook'")
			s.Exec("m.g = old")
			s.await("lifecycle:g", "patched")
			s.must("m.g() == 2 and hits('lifecycle:g') == 1")
		},
		"module removed": func(t *testing.T, s *service) {
			s.patch("lifecycle:f")
			s.Exec("del sys.modules['lifecycle']")
			s.await("lifecycle:f", "pending")
			s.Exec("sys.modules['lifecycle'] = m")
			s.await("lifecycle:f", "patched")
		},
		"monkeypatched with a wrapper that wraps it": func(t *testing.T, s *service) {
			s.patch("lifecycle:f")
			s.Exec("import functools\ninner = m.f\n@functools.wraps(inner)\ndef wrapper(): return inner()\nm.f = wrapper")
			s.Exec("for i in range(4): m.f()")
			s.must("hits('lifecycle:f') == 4")
			time.Sleep(1500 * time.Millisecond) // over a recheck: the innermost function is the same
			s.Exec("m.f()")
			s.must("hits('lifecycle:f') == 5")
		},
		"code assigned over it": func(t *testing.T, s *service) {
			s.patch("lifecycle:f")
			s.Exec("m.f.__code__ = (lambda: 6).__code__")
			s.eventually("m.f() == 6 and hits('lifecycle:f') > 0")
			s.configure()
			s.await("lifecycle:f", "reverted")
			s.must("m.f() == 6")
		},
		"code rewritten by something else": func(t *testing.T, s *service) {
			s.patch("lifecycle:f")
			s.Exec("m.f.__code__ = m.f.__code__.replace(co_name='renamed')")
			s.Exec("for i in range(4): m.f()")
			s.must("hits('lifecycle:f') == 4")
			time.Sleep(1500 * time.Millisecond) // over a recheck: it counts still, and once
			s.Exec("for i in range(4): m.f()")
			s.must("hits('lifecycle:f') == 8")
			s.Exec("m.f.__code__ = m.f.__code__.replace(co_name='renamed again')")
			s.configure()
			s.await("lifecycle:f", "reverted")
			s.must("m.f.__code__.co_name == 'renamed again' and 'Hook' not in str(m.f.__code__.co_consts) and m.f() == 1")
			s.must("hits('lifecycle:f') == 8")
		},
		"code rewritten in first-hit mode": func(t *testing.T, s *service) {
			s.configureAll(object{"target": "lifecycle:f", "mode": "first_hit"})
			s.await("lifecycle:f", "patched")
			s.Exec("m.f.__code__ = m.f.__code__.replace(co_name='renamed')")
			s.Exec("for i in range(4): m.f()")
			s.must("hits('lifecycle:f') == 1 and 'Hook' not in str(m.f.__code__.co_consts) and m.f.__code__.co_name == 'renamed'")
		},
		"a wrapper's code assigned over it": func(t *testing.T, s *service) { // as ddtrace wraps functions
			s.Exec("original = m.f.__code__")
			s.patch("lifecycle:f")
			s.Exec("inner = types.FunctionType(m.f.__code__, m.f.__globals__)\nm.f.__code__ = eval('lambda: inner()').__code__\nm.inner = inner")
			s.eventually("m.f() == 1 and inner.__code__ is original")
			s.Exec("before = hits('lifecycle:f'); m.f(); m.f()")
			s.must("hits('lifecycle:f') == before + 2")
			s.configure()
			s.await("lifecycle:f", "reverted")
			s.must("m.f() == 1 and 'Hook' not in str(m.f.__code__.co_consts)")
		},
		"two names for one function": func(t *testing.T, s *service) {
			s.patch("lifecycle:f", "lifecycle:alias")
			s.Exec("for i in range(3): m.f()")
			s.must("hits('lifecycle:f') == 3 and hits('lifecycle:alias') == 3")
			s.configure("lifecycle:alias")
			s.eventually("not state('lifecycle:f')")
			s.Exec("m.f()")
			s.must("hits('lifecycle:alias') == 4")
			s.configure()
			s.await("lifecycle:alias", "reverted")
			s.must("type(m.f.__code__.co_consts[-1]).__name__ != 'Hook'")
		},
		"withdrawn and matched again": func(t *testing.T, s *service) {
			s.Exec("original = m.f.__code__")
			for range 3 {
				s.patch("lifecycle:f")
				s.Exec("m.f()")
				s.must("hits('lifecycle:f') == 1")
				s.configure()
				s.await("lifecycle:f", "reverted")
				s.must("m.f.__code__ is original and hits('lifecycle:f') == 1")
			}
		},
		"first hit": func(t *testing.T, s *service) {
			s.Exec("original = m.f.__code__\ndef caller(): return m.f()")
			s.configureAll(object{"target": "lifecycle:f", "mode": "first_hit"})
			s.await("lifecycle:f", "patched")
			s.Exec("for i in range(5): caller()")
			s.must("m.f.__code__ is original and hits('lifecycle:f') == 1 and state('lifecycle:f') == 'hit'")
			s.must("[c['symbol'] for c in of('lifecycle:f')['callers']] == ['caller']")
			time.Sleep(1500 * time.Millisecond)
			s.must("m.f.__code__ is original") // it has its answer
			s.configureAll(object{"target": "lifecycle:f", "mode": "count"})
			s.await("lifecycle:f", "patched")
			s.Exec("for i in range(5): m.f()")
			s.must("hits('lifecycle:f') == 5")
			s.configureAll(object{"target": "lifecycle:f", "mode": "first_hit"})
			s.eventually("of('lifecycle:f')['mode'] == 'first_hit' and hits('lifecycle:f') == 0")
			s.Exec("for i in range(5): m.f()")
			s.must("hits('lifecycle:f') == 1 and m.f.__code__ is original")
		},
		"a mode each for one function": func(t *testing.T, s *service) {
			s.configureAll(object{"target": "lifecycle:f", "mode": "first_hit"}, "lifecycle:alias")
			s.await("lifecycle:f", "patched")
			s.await("lifecycle:alias", "patched")
			s.Exec("for i in range(5): m.f()")
			s.must("hits('lifecycle:alias') == 5") // counting says more
		},
		"closures made before and after": func(t *testing.T, s *service) {
			s.Exec("before = [m.factory(i) for i in range(3)]; original, factory = before[0].__code__, m.factory.__code__")
			s.patch("lifecycle:factory.<locals>.closure")
			s.Exec("after = [m.factory(i) for i in range(2)]")
			s.must("[c() for c in before + after] == [0, 1, 2, 0, 1] and hits('lifecycle:factory.<locals>.closure') == 5")
			s.configure()
			s.await("lifecycle:factory.<locals>.closure", "reverted")
			s.must("all(c.__code__ is original for c in before + after) and m.factory.__code__ is factory")
			s.must("m.factory(7).__code__ is original and [c() for c in after] == [0, 1]")
		},
		"a closure and its factory": func(t *testing.T, s *service) {
			closure := "lifecycle:outer.<locals>.middle.<locals>.inner"
			s.Exec("original = m.outer.__code__; made = m.outer()()")
			for _, order := range [][]string{{"lifecycle:outer", closure}, {closure, "lifecycle:outer"}} {
				s.configure(order...)
				s.await(closure, "patched")
				s.await("lifecycle:outer", "patched")
				s.must("m.outer()()() == 4 and made() == 4")
				s.must(fmt.Sprintf("hits('lifecycle:outer') == 1 and hits(%q) == 2", closure))
				s.configure(order[1])
				s.await(order[0], "reverted")
				s.must("m.outer()()() == 4")
				s.configure()
				s.await(order[1], "reverted")
				s.must("m.outer.__code__ is original and m.outer()().__code__ is made.__code__ and made() == 4")
			}
		},
		"two closures of one factory, in first-hit mode": func(t *testing.T, s *service) {
			first, second := "lifecycle:shared.<locals>.first", "lifecycle:shared.<locals>.second"
			s.Exec("original = m.shared.__code__; a, b = m.shared(1); codes = a.__code__, b.__code__")
			s.configureAll(object{"target": first, "mode": "first_hit"}, object{"target": second, "mode": "first_hit"})
			s.await(first, "patched")
			s.await(second, "patched")
			s.Exec("a()")
			s.await(first, "hit")
			s.eventually("a.__code__ is codes[0] and m.shared.__code__ is not original")
			s.Exec("m.shared(2)[1]()")
			s.await(second, "hit")
			s.eventually("b.__code__ is codes[1] and m.shared.__code__ is original")
		},
	}
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		for name, play := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := startService(t, in, testenv.Gates...)
				s.Exec(lifecycle)
				s.Exec(`
def of(target): return next((t for t in __import__("sca_probe").targets() if t["target"] == target), {})
def hits(target): return of(target).get("hits")
def state(target): return of(target).get("state")
`)
				play(t, s)
				if failures := s.Eval(`__import__("sca_probe").stats()["failures"]`); fmt.Sprint(failures) != "0" {
					t.Errorf("the engine counts %v failures", failures)
				}
			})
		}
	})
}
