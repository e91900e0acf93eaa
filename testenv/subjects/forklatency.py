"""Measure what os.fork() takes with the engine, without it, and with an idle thread instead, in one run.

Run under `sca-probe run` with the engine on. Prints a JSON object: median microseconds until os.fork() returns in the
parent, and until the child runs its next line. The three processes take turns, so that a noisy machine disturbs
all of them alike.
"""

import json
import os
import subprocess
import sys
import threading
import time

ROUNDS = 20
FORKS = 10  # a round
GATE = "DD_SCA_DETECTION_ENABLED"


def fork():
    """Microseconds until os.fork() returned in the parent and in the child."""
    reader, writer = os.pipe()
    began = time.perf_counter_ns()
    pid = os.fork()
    returned = time.perf_counter_ns()
    if pid == 0:
        os.write(writer, b"%d" % (returned - began))
        os._exit(0)
    os.waitpid(pid, 0)
    in_child = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    return (returned - began) / 1000, in_child / 1000


def be(way):
    """Be one of the processes: fork whenever a line comes."""
    if way == "engine":
        import sca_probe

        if sca_probe.stats()["engine"] != "running":
            sys.exit("no engine")
    if way == "thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps([fork() for _ in range(FORKS)]), flush=True)


def main():
    processes, times = {}, {}
    for way in ("bare", "thread", "engine"):
        environ = dict(os.environ)
        if way != "engine":
            environ[GATE] = "0"
        command = [sys.executable, "-W", "ignore", __file__, sys.argv[1], way]
        processes[way] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, universal_newlines=True
        )
        times[way] = []
    for _ in range(ROUNDS):
        for way, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            times[way] += json.loads(process.stdout.readline())
    result = {}
    for way, process in processes.items():
        process.stdin.close()
        if process.wait():
            sys.exit("the process %s failed" % way)
        for place, values in zip(("parent", "child"), zip(*times[way])):
            result[way + "_" + place] = sorted(values)[len(values) // 2]
    print(json.dumps(result))


if len(sys.argv) > 2:
    be(sys.argv[2])
else:
    main()
