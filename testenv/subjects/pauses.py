"""Measure what threads of the application notice while the engine applies and withdraws 1,000 targets.

Run under `sca-probe run` with the engine on and the Remote Configuration file as first argument. One
thread does nothing but look at the clock; a gap between two looks that no interpreter needs is a pause. As
much time without a change tells what the machine does by itself. Prints a JSON object.
"""

import json
import os
import sys
import threading
import time

TARGETS = 1000
ROUNDS = 40
PAUSE_NS = 50_000

for number in range(TARGETS):
    exec("def f%d(a, b=2, *c, d=3, **e):\n    for f in c: a += f\n    return a + b + d" % number)
LAST = globals()["f%d" % (TARGETS - 1)]
NAMES = ["__main__:f%d" % number for number in range(TARGETS)]


class Clock(threading.Thread):
    """Looks at the clock all the time, and keeps the pauses between two looks, in ns."""

    def __init__(self):
        super().__init__(daemon=True)
        self.pauses = []

    def run(self):
        now = time.perf_counter_ns
        last = now()
        while True:
            at = now()
            if at - last >= PAUSE_NS:
                self.pauses.append(at - last)
            last = at

    def since(self):
        """Return the pauses since the last time it was asked."""
        pauses, self.pauses = self.pauses, []
        return pauses


def configure(targets):
    with open(sys.argv[1] + ".next", "w") as out:
        json.dump({"sca_instrumentation": {"targets": targets}}, out)
    os.replace(sys.argv[1] + ".next", sys.argv[1])


def await_patched(count):
    import sca_probe

    deadline = time.monotonic() + 30
    while sca_probe.stats()["patched"] != count:
        if time.monotonic() > deadline:
            sys.exit("the engine did not act within 30 s")
        time.sleep(0.005)


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))] / 1e6 if values else 0


def main():
    import sca_probe

    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # what else runs on the machine is not what is measured
    except PermissionError:  # then it is
        pass
    clock = Clock()
    clock.start()
    pauses, quiet, apply_work, withdraw_work, walls = [], [], [], [], []
    for _ in range(ROUNDS):
        for targets, work in ((NAMES, apply_work), ([], withdraw_work)):
            before = sca_probe.stats()["turn_ns"]
            began = time.monotonic()
            clock.since()
            configure(targets)
            await_patched(len(targets))
            pauses += clock.since()
            wall = time.monotonic() - began
            work.append(sca_probe.stats()["turn_ns"] - before)
            if targets:
                walls.append(wall)
            end = time.monotonic() + wall
            while time.monotonic() < end:  # what this thread does while it waits, without a change
                sca_probe.stats(), sca_probe.stats()
                time.sleep(0.005)
            quiet += clock.since()
    print(
        json.dumps(
            {
                "pause_p50_ms": percentile(pauses, 50),
                "pause_p99_ms": percentile(pauses, 99),
                "pause_max_ms": percentile(pauses, 100),
                "pauses": len(pauses),
                "quiet_p50_ms": percentile(quiet, 50),
                "quiet_p99_ms": percentile(quiet, 99),
                "quiet_max_ms": percentile(quiet, 100),
                "quiet_pauses": len(quiet),
                "apply_work_ms": percentile(apply_work, 50),
                "withdraw_work_ms": percentile(withdraw_work, 50),
                "apply_wall_ms": 1000 * sorted(walls)[len(walls) // 2],
                "turn_max_ms": sca_probe.stats()["turn_max_ns"] / 1e6,
            }
        )
    )


main()
