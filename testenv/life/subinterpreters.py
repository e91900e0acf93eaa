"""Subinterpreters beside the engine: one that shares the GIL, and from 3.12 on one with its own."""

import sys
import threading

from common import await_patched, check, configure, make_functions, sca_probe, states

try:
    import _interpreters as interpreters  # from 3.13 on
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = """
import sys
sys.path[:] = %r
import sca_probe
assert not sca_probe.start()
assert sca_probe.stats()["engine"] == "off", sca_probe.stats()
def f(): return 1
for _ in range(1000): f()
""" % (sys.path,)

sca_probe.start()
functions = make_functions("functions", 100)
configure(*("functions:f%d" % i for i in range(100)))
await_patched(100)


def run(*config, **kwargs):
    interpreter = interpreters.create(*config, **kwargs)
    if isinstance(interpreter, tuple):
        interpreter = interpreter[0]
    failure = interpreters.run_string(interpreter, CODE)
    check(not failure, failure)
    interpreters.destroy(interpreter)


stop = threading.Event()
calls = [0]


def work():
    # A subinterpreter's start releases the GIL at each of a thousand system calls; beside a thread that
    # computes without pause it would take longest to have it back.
    while not stop.wait(0.001):
        for _ in range(100):
            functions.f0()
            calls[0] += 1


thread = threading.Thread(target=work, daemon=True)
thread.start()
if sys.version_info >= (3, 13):
    run("legacy")
    run("isolated")
    print("one with its own GIL")
elif sys.version_info >= (3, 12):
    run(isolated=False)
    run(isolated=True)
    print("one with its own GIL")
else:
    run()
configure("functions:f0")
await_patched(1)
stop.set()
thread.join()
check(states()["functions:f0"]["hits"] == calls[0], states()["functions:f0"], calls)
