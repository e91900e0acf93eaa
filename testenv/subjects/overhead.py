"""Measure what each way of watching a function adds to a call, in one run of one process.

Run under `sca-probe run` with the engine on and the Remote Configuration file as first argument.
Prints a JSON object: ns per call of the plain function, and of each way. The ways take turns and
the best round of each counts, so that a noisy machine disturbs all of them alike.
"""

import functools
import itertools
import json
import os
import sys
import time

CALLS = 200_000
ROUNDS = 15


def bare(x):
    return x + 1


def hooked(x):
    return x + 1


def monitored(x):
    return x + 1


def inner(x):
    return x + 1


COUNT = itertools.count()


@functools.wraps(inner)
def wrapped(*args, **kwargs):
    next(COUNT)
    return inner(*args, **kwargs)


def configure(targets):
    path = sys.argv[1]
    with open(path + ".next", "w") as out:
        json.dump({"sca_instrumentation": {"targets": targets}}, out)
    os.replace(path + ".next", path)


def await_code(original, patched):
    """Seconds until the engine has acted on what configure() wrote."""
    began = time.perf_counter()
    while (hooked.__code__ is not original) != patched:
        if time.perf_counter() - began > 20:
            sys.exit("the engine did not act within 20 s")
        time.sleep(0)
    return time.perf_counter() - began


def monitor(function):
    events = sys.monitoring.events
    sys.monitoring.use_tool_id(4, "overhead")
    sys.monitoring.register_callback(4, events.PY_START, lambda code, offset: next(COUNT) and None)
    sys.monitoring.set_local_events(4, function.__code__, events.PY_START)


def ns_per_call(function):
    began = time.perf_counter_ns()
    for _ in itertools.repeat(None, CALLS):
        function(1)
    return (time.perf_counter_ns() - began) / CALLS


def main():
    original = hooked.__code__
    apply_times = []
    for _ in range(20):
        configure(["__main__:hooked"])
        apply_times.append(await_code(original, True))
        configure([])
        await_code(original, False)
    configure(["__main__:hooked"])
    await_code(original, True)

    ways = {"bare": bare, "hook": hooked, "wrapper": wrapped}
    if hasattr(sys, "monitoring"):
        monitor(monitored)
        ways["monitoring"] = monitored
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for way, function in ways.items():
            best[way] = min(best[way], ns_per_call(function))

    import sca_probe

    if sca_probe.stats()["__main__:hooked"]["hits"] != CALLS * ROUNDS:
        sys.exit("the hook did not count every call")
    best["apply_ms"] = 1000 * sorted(apply_times)[len(apply_times) // 2]
    print(json.dumps(best))


main()
