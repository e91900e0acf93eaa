"""Modules and classes that run code, lie or raise when they are looked at. The engine must not touch them."""

import functools
import gc
import sys
import threading
import time
import types

from common import await_patched, check, configure, make_functions, sca_probe, states, wait

ran = []  # what user code the engine ran, by thread


def trip(what):
    if threading.current_thread() is not threading.main_thread():
        ran.append(what)
    raise RuntimeError(what)


class Meta(type):
    def __getattribute__(cls, name):
        trip("metaclass __getattribute__ " + name)

    def mro(cls):
        return super().mro()


class Lazy(types.ModuleType):
    def __getattribute__(self, name):
        trip("lazy module " + name)


class Liar:
    @property
    def __class__(self):
        trip("__class__")

    @property
    def attribute(self):
        trip("property")

    def __getattr__(self, name):
        trip("__getattr__ " + name)


class Modules(dict):
    pass


hostile = make_functions("hostile", 3)
exec(
    "class Met(metaclass=Meta):\n    def method(self): return 1\n",
    dict(vars(hostile), Meta=Meta),
    vars(hostile),
)
hostile.liar = Liar()


def circle():
    pass


def other():
    pass


circle.__wrapped__, other.__wrapped__ = other, circle
hostile.circle = circle
lazy = Lazy("lazy")
types.ModuleType.__getattribute__(lazy, "__dict__")["f"] = lambda: 1
sys.modules.update({"lazy": lazy, "none": None, "number": 7, "liar": hostile.liar, "a_dict": Modules(f=1)})

sca_probe.start()
expected = {
    "hostile:f0": "patched",
    "hostile:Met.method": "patched",
    "hostile:liar.attribute": None,
    "hostile:liar.absent": "unresolved",
    "hostile:circle": "unresolved",
    "lazy:f": "patched",
    "lazy:absent": "unresolved",
    "none:f": "unresolved",
    "number:f": "unresolved",
    "liar:attribute": None,
    "liar:absent": "unresolved",
    "a_dict:f": "unresolved",
}
configure(*expected)
wait(lambda: all(target in states() for target in expected), "all targets are known")
await_patched(sum(state == "patched" for state in expected.values()) + sum(
    states()[target]["state"] == "patched" for target, state in expected.items() if state is None))
found = states()
for target, state in expected.items():
    check(state in (None, found[target]["state"]), target, found[target])
check(not ran, "the engine ran", ran)

# A function whose code and name others change all the while, under tracers and callbacks that run code.
def first():
    return 1


def second():
    return 1


codes = first.__code__, second.__code__
hostile.f0 = first
stop = threading.Event()


def hammer():
    i = 0
    while not stop.is_set():
        i += 1
        first.__code__ = codes[i % 2]
        hostile.f1 = second if i % 3 else first
        time.sleep(0)


def look():
    while not stop.is_set():
        sys.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)
        check(hostile.f0() == 1)
        sys.settrace(None)
        sys.setprofile(None)


raising = [False]


def audit(event, args):
    if raising[0] and threading.current_thread() is not threading.main_thread() and event.startswith("object."):
        raise RuntimeError("audit")


sys.addaudithook(audit)
gc.callbacks.append(lambda *_: [i for i in range(10)])
gc.set_threshold(7)
threads = [threading.Thread(target=target) for target in (hammer, look)]
for thread in threads:
    thread.start()
end, i = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    i += 1
    configure(*(["hostile:f0", "hostile:f1", "hostile:f2"] if i % 2 else []))
    check(hostile.f0() == 1 and hostile.f1() == 1 and hostile.f2() == 2)
    time.sleep(0.01)
stop.set()
for thread in threads:
    thread.join()
raising[0] = True
before = sca_probe.stats()["failures"]
configure("hostile:f2", "hostile:Met.method")
wait(lambda: sca_probe.stats()["failures"] > before, "what an audit hook raises is counted")
check(hostile.f2() == 2)
raising[0] = False
configure("hostile:f2")
wait(lambda: states().get("hostile:f2", {}).get("state") == "patched", "tried again")
hits = states()["hostile:f2"]["hits"]
check(hostile.f2() == 2 and states()["hostile:f2"]["hits"] == hits + 1, states())
