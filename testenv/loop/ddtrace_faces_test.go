package loop

import (
	"fmt"
	"testing"

	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
)

// faces makes a module of functions of the forms that ddtrace's own SCA is tested with, and asks for them by our modules.
const faces = `
import sys, time, types, threading, textwrap, wrapt
from ddtrace.appsec.sca import resolver
from ddtrace.appsec.sca.instrumenter import patcher, registry
def make_module(name, source):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(textwrap.dedent(source), "<" + name + ">", "exec"), module.__dict__)
    return module
m = make_module("faces", '''
    import functools, wrapt
    value = 7
    def function(a, b=2, *c, d=3, **e): return a + b + sum(c) + d + sum(e.values())
    def fails(): raise KeyError("mine")
    def other(): return 8
    class C:
        def method(self): return 1
        @classmethod
        def class_method(cls): return 2
        @staticmethod
        def static_method(): return 3
        class D:
            def deep(self): return 4
    class Child(C): pass
    @wrapt.decorator
    def through(wrapped, instance, args, kwargs): return wrapped(*args, **kwargs)
    @through
    def wrapped(): return 5
    class W:
        @through
        def method(self): return 6
''')
def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, registry.targets()
        time.sleep(0.01)
def ask(*targets, **how):
    patcher.instrument("faces", [patcher.Instrumentation(t, **how) for t in targets])
    until(lambda: all(registry.is_instrumented(t) for t in targets))
def withdraw(*targets):
    patcher.revert("faces")
    until(lambda: not any(registry.is_instrumented(t) for t in targets))
def hits(target):
    return registry.get(target).hits
`

// facesCases are what ddtrace tests its own SCA for, on our modules.
var facesCases = map[string]string{
	"resolver: functions and methods": `
for target, function in {
    "faces:function": m.function, "faces:C.method": m.C.__dict__["method"], "faces:C.D.deep": m.C.D.__dict__["deep"],
    "faces:C.class_method": m.C.__dict__["class_method"].__func__, "faces:C.static_method": m.C.__dict__["static_method"].__func__,
    "faces:Child.method": m.C.__dict__["method"], "faces:wrapped": m.wrapped.__wrapped__,
    "faces:W.method": m.W.__dict__["method"].__wrapped__,
}.items():
    found = resolver.resolve(target)
    assert found.function is function and not found.reason and not found.pending, (target, found)`,
	"resolver: what there is not": `
for target in "faces:absent", "faces:C.absent", "faces:absent.method", "faces:value", "no colon", "faces:C", "time:sleep":
    found = resolver.resolve(target)
    assert found.function is None and found.reason and not found.pending, (target, found)
assert resolver.resolve("not_imported_yet:f").pending and "not_imported_yet" not in sys.modules`,
	"registry: what is known of a target": `
assert registry.get("faces:never_asked_for") is None and not registry.is_instrumented("faces:never_asked_for")
ask("faces:function", package="faces-package", advisories=("CVE-1", "CVE-2"))
found = registry.get("faces:function")
assert (found.package, found.advisories, found.mode, found.state, found.hits) == ("faces-package", ("CVE-1", "CVE-2"), "count", "patched", 0)
m.function(1)
caller = registry.get("faces:function").callers[0]
assert hits("faces:function") == 1 and caller.line > 0 and caller.path, caller
withdraw("faces:function")
m.function(1)
assert registry.get("faces:function").state == "reverted" and hits("faces:function") == 1`,
	"instrumenter: arguments, results and exceptions": `
original = m.function.__code__
ask("faces:function", "faces:fails")
assert m.function(1) == 6 and m.function(1, 1, 1, d=1, e=1) == 5 and m.function(b=0, a=0) == 3
try:
    m.fails()
    raise AssertionError("fails() does not raise")
except KeyError as error:
    assert error.args == ("mine",)
assert hits("faces:function") == 3 and hits("faces:fails") == 1
withdraw("faces:function", "faces:fails")
assert m.function.__code__ is original`,
	"instrumenter: methods and wrapt's wrappers": `
targets = ["faces:C.method", "faces:C.class_method", "faces:C.static_method", "faces:C.D.deep", "faces:wrapped", "faces:W.method"]
wrappers = m.wrapped, m.W.__dict__["method"]
ask(*targets)
assert [m.C().method(), m.C.class_method(), m.C.static_method(), m.C.D().deep(), m.wrapped(), m.W().method()] == [1, 2, 3, 4, 5, 6]
assert m.Child().method() == 1 and m.Child.class_method() == 2
assert [hits(t) for t in targets] == [2, 2, 1, 1, 1, 1], registry.targets()
assert (m.wrapped, m.W.__dict__["method"]) == wrappers and type(m.wrapped).__name__ == "FunctionWrapper"
withdraw(*targets)`,
	"instrumenter: the same again, and by two paths": `
ask("faces:function")
code = m.function.__code__
for _ in range(5):
    ask("faces:function")
assert m.function.__code__ is code
patcher.instrument("another", [patcher.Instrumentation("faces:function", "faces-package", ("CVE-3",))])
until(lambda: registry.get("faces:function").advisories == ("CVE-3",))
assert m.function.__code__ is code
patcher.revert("faces")
time.sleep(0.3)
m.function(1)
assert registry.is_instrumented("faces:function") and hits("faces:function") == 1
patcher.revert("another")
until(lambda: not registry.is_instrumented("faces:function"))`,
	"updates: repeated, each another set": `
originals = m.function.__code__, m.other.__code__
for _ in range(20):
    ask("faces:function")
    m.function(1), m.other()
    assert hits("faces:function") == 1
    ask("faces:other")
    until(lambda: not registry.is_instrumented("faces:function"))
    m.function(1), m.other()
    assert hits("faces:other") == 1
withdraw("faces:other")
assert (m.function.__code__, m.other.__code__) == originals`,
	"updates: a target that is not there does not keep the others out": `
patcher.instrument("faces", [patcher.Instrumentation(t) for t in ("faces:absent", "faces:function", "not_imported_yet:f", "faces:value")])
until(lambda: registry.is_instrumented("faces:function"))
assert {t: registry.get(t).state for t in ("faces:absent", "not_imported_yet:f", "faces:value")} == {
    "faces:absent": "unresolved", "not_imported_yet:f": "pending", "faces:value": "unresolved"}
assert registry.get("faces:absent").reason
withdraw("faces:function")`,
	"imports: a module that is imported late, by two targets": `
import os, tempfile
folder = tempfile.mkdtemp()
with open(os.path.join(folder, "faces_late.py"), "w") as file:
    file.write("def f():\n    return 1\nclass C:\n    def g(self):\n        return 2\n")
patcher.instrument("faces", [patcher.Instrumentation(t) for t in ("faces_late:f", "faces_late:C.g")])
until(lambda: registry.get("faces_late:f") and registry.get("faces_late:f").state == "pending")
sys.path.insert(0, folder)
import faces_late
faces_late.f(), faces_late.C().g()
assert (hits("faces_late:f"), hits("faces_late:C.g")) == (1, 1), registry.targets()
withdraw("faces_late:f", "faces_late:C.g")
sys.path.remove(folder)`,
	"100 targets in one module": `
many = make_module("faces_many", "".join("def f%d(): return %d\n" % (i, i) for i in range(100)))
names = ["faces_many:f%d" % i for i in range(100)]
originals = [getattr(many, "f%d" % i).__code__ for i in range(100)]
ask(*names)
for i in range(100):
    for _ in range(i % 7):
        assert getattr(many, "f%d" % i)() == i
counted = registry.by_target()
assert [counted[n].hits for n in names] == [i % 7 for i in range(100)]
withdraw(*names)
assert all(getattr(many, "f%d" % i).__code__ is originals[i] for i in range(100))`,
	"threads: no call is lost": `
ask("faces:other")
threads = [threading.Thread(target=lambda: [m.other() for _ in range(5000)]) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert hits("faces:other") == 20000
withdraw("faces:other")`,
}

// TestDdtracesOwnCases runs what ddtrace tests its own SCA for on our modules, under real ddtrace.
func TestDdtracesOwnCases(t *testing.T) {
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		s := startUnderDdtrace(t, in, rcserver.New(), "DD_APPSEC_ENABLED=1")
		s.Exec(faces)
		for name, play := range facesCases {
			t.Run(name, func(t *testing.T) {
				s.Exec(fmt.Sprintf("import traceback\ntry:\n  exec(%q, globals())\n  FAILED = ''\nexcept Exception:\n  FAILED = traceback.format_exc()", play))
				if failed := s.Eval("FAILED"); failed != "" {
					t.Error(failed)
				}
			})
		}
	})
}
