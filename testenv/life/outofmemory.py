"""Let the engine run out of memory at each of its allocations in turn, while it patches and while it reverts.

The argument says whose allocations: "python" fails those of CPython's allocators in the whole process (by
_testcapi.set_nomemory, which builds for testing have), "engine" those that the engine makes of libc (by
testdata/failing.c, preloaded), while it starts and while a module is imported too. Where the source of Remote
Configuration is "push", the targets are handed over. Prints how often an allocation was refused.
"""

import ctypes
import importlib
import os
import sys
import time

from common import RC_FILE, check, configure, json, sca_probe, types, wait

SOURCE = """
def plain(x):
    return x + 1
class C:
    def method(self, x):
        return x + 2
def factory(x):
    def closure():
        return x + 3
    return closure
"""
module = types.ModuleType("subject")
exec(compile(SOURCE, "<subject>", "exec"), module.__dict__)
sys.modules["subject"] = module
made = module.factory(0)

with open("late.py", "w") as file:
    file.write("def f(x):\n    return x + 5\n")
sys.path.insert(0, os.getcwd())
import late

TARGETS = ["subject:plain", "subject:C.method", "subject:factory.<locals>.closure", "late:f"]
FUNCTIONS = [module.plain, module.C.method, module.factory, made]
ORIGINALS = [f.__code__ for f in FUNCTIONS]


class Python:
    """Refuses the n-th allocation of CPython's and all after it, until it is disarmed."""

    def __init__(self):
        import _testcapi

        self.arm, self.disarm = _testcapi.set_nomemory, _testcapi.remove_mem_hooks
        self.refused = None

    def during(self, n, work):
        try:
            self.arm(n)
            work()
        except MemoryError:
            pass
        finally:
            self.disarm()


class Engine:
    """Refuses the n-th allocation that the engine makes of libc."""

    def __init__(self):
        self.library = ctypes.CDLL(None)
        self.refused = 0

    def during(self, n, work):
        self.library.sca_fail_at(n)
        try:
            work()
        except MemoryError:  # says sca_probe.push()
            pass
        self.refused += self.library.sca_failed()


def tell(targets):
    if RC_FILE == "push":
        sca_probe.push({"all": json.dumps({"sca_instrumentation": {"targets": targets}}).encode()})
    else:
        configure(*targets)


def import_late():
    """Import the module anew, so that its function is another one."""
    del sys.modules["late"]
    sys.modules["late"] = importlib.import_module("late")
    check(sys.modules["late"].f(1) == 6, "an imported function answers wrongly")


def whole():
    """Each function is what it was or patched, and does what it did."""
    for function, original in zip(FUNCTIONS, ORIGINALS):
        code = function.__code__
        hook = code.co_consts[-1]
        check(
            code is original or type(hook).__name__ == "Hook" and hook.original is original,
            function.__qualname__,
            "runs neither its code nor a patched one",
        )
    check(module.plain(1) == 2 and module.C().method(1) == 3, "a patched function answers wrongly")
    check(made() == 3 and module.factory(1)() == 4, "a patched closure answers wrongly")


def settle(targets, number):
    """Configure once more, with memory, and wait until that is done."""
    tell(targets + ["nowhere:again_%d" % number])
    wait(lambda: sca_probe.stats()["patched"] == len(targets), "%d targets are patched" % len(targets), 10)
    if not targets:
        wait(lambda: [f.__code__ for f in FUNCTIONS] == ORIGINALS, "all is reverted", 10)


def main():
    how, rounds = sys.argv[1], int(sys.argv[2])
    failing = {"python": Python, "engine": Engine, "start": Engine}[how]()
    if how == "start":  # with the allocation of that number refused
        failing.during(rounds, sca_probe.start)
        rounds = 0
        whole()
    else:
        check(sca_probe.start(), "the engine did not start")
    for number in range(rounds):
        for targets in (TARGETS, []):
            if how == "python":  # which would refuse memory for the file too
                tell(targets + ["nowhere:first_%d" % number])
                failing.during(number + 1, lambda: time.sleep(0.03))
            else:
                failing.during(number + 1, lambda: (tell(targets + ["nowhere:first_%d" % number]), time.sleep(0.03)))
                whole()
                failing.during(number + 1, import_late)
            whole()
            settle(targets, number)
            whole()
    if sca_probe.source():
        settle(TARGETS, rounds)
        check(sca_probe.stats()["engine"] == "running", "the engine is not running")
    print(json.dumps({"refused": failing.refused, "failures": sca_probe.stats().get("failures", 0)}))


main()
