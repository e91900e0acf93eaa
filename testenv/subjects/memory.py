"""Measure the memory that 10,000 targets take, in one process, with the Remote Configuration file as first argument.

Prints a JSON object: MiB of resident memory that was added, by the engine itself and by the targets.
"""

import gc
import json
import os
import sys
import time

TARGETS = 10_000

for number in range(TARGETS):
    exec("def f%d(a, b=2, *c, d=3, **e):\n    for f in c: a += f\n    return a + b + d" % number)


def private():
    """MiB of memory that is this process's alone."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main():
    gc.collect()
    bare = private()
    import sca_probe

    if not sca_probe.start(sys.argv[1]):
        sys.exit("the engine did not start")
    started = private()
    with open(sys.argv[1] + ".next", "w") as out:
        json.dump({"sca_instrumentation": {"targets": ["__main__:f%d" % n for n in range(TARGETS)]}}, out)
    os.replace(sys.argv[1] + ".next", sys.argv[1])
    deadline = time.monotonic() + 60
    while sca_probe.stats()["patched"] != TARGETS:
        if time.monotonic() > deadline:
            sys.exit("the engine did not patch all targets within 60 s")
        time.sleep(0.05)
    time.sleep(5)  # what an update took besides is given back after 3 s
    gc.collect()
    patched = private()
    print(json.dumps({"engine_mib": started - bare, "targets_mib": patched - started}))


main()
