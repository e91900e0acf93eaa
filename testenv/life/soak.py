"""Patches and reverts 200 targets without pause under hot threads, asyncio and gevent, for argv[1] seconds and until
argv[2] patches and as many reverts are made.

Half of the targets stay patched, so that each call must be counted; the other half comes and goes, in count and in
first-hit mode. Every call's result is checked, and each worker counts its own calls. At the end each target is patched
once more, and called a known number of times.
"""

import asyncio
import collections
import gc
import json
import sys
import threading
import time
import types

import gevent
import gevent.hub

from common import check, configure, sca_probe, states, wait

SECONDS, ENOUGH, WORKERS = float(sys.argv[1]), int(sys.argv[2]), 8
PATIENCE = 120  # how much longer it may take until enough was patched, on a busy machine
SOURCE = """
def plain%(i)d(x): return x + %(i)d
async def coroutine%(i)d(x):
    await asyncio.sleep(0)
    return x * %(i)d
def greenlet%(i)d(x):
    gevent.sleep(0)
    return x - %(i)d
def generator%(i)d(x):
    yield x
    yield %(i)d
def factory%(i)d(a):
    def closure(x): return a + x
    return closure
"""
KINDS = ("plain%d", "coroutine%d", "greenlet%d", "generator%d", "factory%d.<locals>.closure")
N = 40
module = types.ModuleType("soaked")
module.asyncio, module.gevent = asyncio, gevent
exec(compile("".join(SOURCE % {"i": i} for i in range(N)), "<soaked>", "exec"), module.__dict__)
sys.modules["soaked"] = module
closures = [getattr(module, "factory%d" % i)(i) for i in range(N)]  # made before any patch


def target(kind, i):
    return "soaked:" + kind % i


STAY = [target(kind, i) for kind in KINDS for i in range(0, N, 2)]
COUNT = [target(kind, i) for kind in KINDS for i in range(1, N, 4)]
FIRST_HIT = [target(kind, i) for kind in KINDS for i in range(3, N, 4)]
GO = COUNT + [{"target": t, "mode": "first_hit"} for t in FIRST_HIT]


def call(name, *args):
    return getattr(module, name)(*args)


def round_of_calls(loop):
    """Calls all functions, the coroutines and the greenlets one among another. Returns how often: each once, but
    closures twice."""

    async def coroutine(i):
        check(await call("coroutine%d" % i, 3) == 3 * i)

    async def coroutines():
        await asyncio.gather(*[coroutine(i) for i in range(N)])

    def greenlet(i):
        check(call("greenlet%d" % i, 1) == 1 - i)

    for i in range(N):
        check(call("plain%d" % i, 1) == 1 + i)
        check(list(call("generator%d" % i, 1)) == [1, i])
        check(closures[i](1) == i + 1)
        check(call("factory%d" % i, 7)(1) == 8)
    loop.run_until_complete(coroutines())
    gevent.joinall([gevent.spawn(greenlet, i) for i in range(N)], raise_error=True)


stop = threading.Event()
rounds, failures = collections.Counter(), []


def work(worker):
    try:
        loop = asyncio.new_event_loop()
        while not stop.is_set():
            round_of_calls(loop)
            rounds[worker] += 1
        loop.close()
        gevent.hub.get_hub().destroy(destroy_loop=True)
    except BaseException as failure:
        failures.append(repr(failure))
        raise


def check_hits(targets, rounds):
    found = states()
    for t in targets:
        state = found[t]
        calls = rounds * (2 if "<locals>" in t else 1)
        check(state["hits"] == calls, t, state, "after", calls, "calls")


check(sca_probe.start())
configure(*STAY)
wait(lambda: sca_probe.stats()["patched"] == len(STAY), "what stays is patched")
threads = [threading.Thread(target=work, args=(i,)) for i in range(WORKERS)]
for thread in threads:
    thread.start()
began, toggles = time.monotonic(), 0


def going_on():
    took, stats = time.monotonic() - began, sca_probe.stats()
    enough = stats["patches"] >= ENOUGH and stats["reverts"] >= ENOUGH and len(rounds) == WORKERS
    check(enough or took < SECONDS + PATIENCE, "too little in", took, "s:", stats, rounds)
    return took < SECONDS or not enough


try:
    while going_on() and not failures:
        toggles += 1
        configure(*STAY, *(GO if toggles % 2 else []))
        time.sleep(0.02)
        if toggles % 50 == 0:
            gc.collect()
finally:
    stop.set()
    for thread in threads:
        thread.join()
check(not failures, failures)
stats, all_rounds = sca_probe.stats(), sum(rounds.values())
check_hits(STAY, all_rounds)


def hooked(functions):
    return [f for f in functions if type(f.__code__.co_consts[-1]).__name__ == "Hook"]


functions = closures + [value for value in vars(module).values() if isinstance(value, types.FunctionType)]
check(hooked(functions))
configure()
wait(lambda: not hooked(functions), "everything is reverted")

configure(*STAY, *GO)
wait(lambda: sca_probe.stats()["patched"] == len(STAY) + len(GO), "everything is patched once more")
loop = asyncio.new_event_loop()
round_of_calls(loop)
first_hit = [module.__dict__[kind.partition(".")[0] % i] for kind in KINDS for i in range(3, N, 4)] + closures[3::4]
wait(lambda: not hooked(first_hit), "what was hit once is taken out")
answered = states()
for _ in range(2):
    round_of_calls(loop)
loop.close()
check_hits(STAY + COUNT, 3)
found = states()
for t in FIRST_HIT:
    state = found[t]
    # A function in a function is taken out by the engine's thread, a little later than it was hit.
    hits = answered[t]["hits"] if "<locals>" in t else 1
    check(state["state"] == "hit" and state["hits"] == hits > 0, t, state, answered[t])
check(sca_probe.stats()["failures"] == 0, sca_probe.stats())
json.dump(
    {
        "targets": len(STAY) + len(GO),
        "calls": all_rounds * 6 * N,
        "patches": stats["patches"],
        "reverts": stats["reverts"],
        "toggles": toggles,
        "gevent": gevent.__version__,
    },
    sys.stdout,
)
