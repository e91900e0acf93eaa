"""Measure what each way of watching a function adds to a call, in one run of one process.

Run under `sca-probe run` with the engine on, with the Remote Configuration file as first argument and,
where there is one, a folder with ddtrace as second. Prints a JSON object: ns per call of the plain
function and of each way, and milliseconds to instrument 100 functions. The ways take turns and the best
round of each counts, so that a noisy machine disturbs all of them alike.
"""

import functools
import itertools
import json
import os
import sys
import time

CALLS = 100_000
ROUNDS = 15
DDTRACE_CALLS = 2_000  # a thousand times slower

FUNCTIONS = 100


def bare(x):
    return x + 1


def hooked(x):
    return x + 1


def hit_once(x):
    return x + 1


def monitored(x):
    return x + 1


def traced(x):
    return x + 1


def inner(x):
    return x + 1


COUNT = itertools.count()


@functools.wraps(inner)
def wrapped(*args, **kwargs):
    next(COUNT)
    return inner(*args, **kwargs)


for number in range(FUNCTIONS):
    exec("def ours_%d(a, b=2, *c, d, **e):\n    for f in c: a += f\n    return a + b + d" % number)
    exec("def theirs_%d(a, b=2, *c, d, **e):\n    for f in c: a += f\n    return a + b + d" % number)


def configure(targets):
    path = sys.argv[1]
    with open(path + ".next", "w") as out:
        json.dump({"sca_instrumentation": {"targets": targets}}, out)
    os.replace(path + ".next", path)


def await_code(function, original, patched):
    """Seconds until the engine has acted on what configure() wrote."""
    began = time.perf_counter()
    while (function.__code__ is not original) != patched:
        if time.perf_counter() - began > 20:
            sys.exit("the engine did not act within 20 s")
        time.sleep(0)
    return time.perf_counter() - began


def monitor(function):
    events = sys.monitoring.events
    sys.monitoring.use_tool_id(4, "overhead")
    sys.monitoring.register_callback(4, events.PY_START, lambda code, offset: next(COUNT) and None)
    sys.monitoring.set_local_events(4, function.__code__, events.PY_START)


def ns_per_call(function, calls):
    began = time.perf_counter_ns()
    for _ in itertools.repeat(None, calls):
        function(1)
    return (time.perf_counter_ns() - began) / calls


def instrument_by_engine():
    """Milliseconds that the engine works with the GIL to patch the functions."""
    import sca_probe

    names = ["__main__:ours_%d" % number for number in range(FUNCTIONS)]
    last = globals()["ours_%d" % (FUNCTIONS - 1)]
    times = []
    for _ in range(5):
        before = sca_probe.stats()["turn_ns"]
        original = last.__code__
        configure(names)
        await_code(last, original, True)
        sca_probe.targets()  # once it answers, the turn is over
        times.append((sca_probe.stats()["turn_ns"] - before) / 1e6)
        configure([])
        await_code(last, original, False)
    return min(times)


def instrument_by_ddtrace():
    """Milliseconds that ddtrace's own SCA instrumentation takes for as many; and it watches traced()."""
    from ddtrace.appsec.sca._instrumenter import Instrumenter
    from ddtrace.appsec.sca._registry import get_global_registry

    registry = get_global_registry()
    instrumenter = Instrumenter(registry)
    began = time.perf_counter()
    for number in range(FUNCTIONS):
        name = "theirs_%d" % number
        if not instrumenter.instrument("__main__:" + name, globals()[name]):
            sys.exit("ddtrace did not instrument " + name)
    took = time.perf_counter() - began
    # With an advisory, as every entry of ddtrace's list has: without one its hook has nothing to report.
    registry.add_target("__main__:traced", package_name="requests", cve_ids=["GHSA-652x-xj99-gmcc"])
    instrumenter.instrument("__main__:traced", traced)
    return 1000 * took


def main():
    original = hooked.__code__
    apply_times = []
    for _ in range(20):
        configure(["__main__:hooked"])
        apply_times.append(await_code(hooked, original, True))
        configure([])
        await_code(hooked, original, False)
    result = {"apply_ms": 1000 * sorted(apply_times)[len(apply_times) // 2]}
    result["engine_100_ms"] = instrument_by_engine()

    original_once = hit_once.__code__
    configure(["__main__:hooked", {"target": "__main__:hit_once", "mode": "first_hit"}])
    await_code(hooked, original, True)
    await_code(hit_once, original_once, True)
    hit_once(1)
    if hit_once.__code__ is not original_once:
        sys.exit("the first hit did not remove the patch")

    ways = {"bare": bare, "hook": hooked, "first_hit": hit_once, "wrapper": wrapped}
    if hasattr(sys, "monitoring"):
        monitor(monitored)
        ways["monitoring"] = monitored
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
        result["ddtrace_100_ms"] = instrument_by_ddtrace()
        ways["ddtrace"] = traced
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for way, function in ways.items():
            best[way] = min(best[way], ns_per_call(function, DDTRACE_CALLS if way == "ddtrace" else CALLS))

    import sca_probe

    if [t["hits"] for t in sca_probe.targets() if t["state"] == "patched"] != [CALLS * ROUNDS]:
        sys.exit("the hook did not count every call")
    result.update(best)
    print(json.dumps(result))


main()
