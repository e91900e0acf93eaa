"""Forks while the engine is at work, until enough children were born at that moment. Each checks its engine.

Run as ``python moments.py MOMENT``. Every such child writes an answer: whether it was born at the moment, and what
is wrong in it. The targets are all functions of many.py.
"""

import json
import os
import sys
import threading
import time
import traceback

import answers

WANTED = 5  # children that are born at the moment
ATTEMPTS = 100
PATIENCE = 25  # seconds


def engine():
    """The engine's state and numbers, also while sca_probe.start() is under way."""
    module = sys.modules.get("sca_probe._engine")
    return module.numbers() if module else {"engine": "off"}


def until(condition, what):
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("not within %d s: %s; %s" % (PATIENCE, what, engine()))
        time.sleep(0.001)


def check(desired):
    """Raise unless this process's engine comes to patch as many targets as are desired, and counts each call once."""
    import many
    import sca_probe

    until(lambda: sca_probe.stats()["engine"] == "running", "an engine of its own")
    until(lambda: many.patched() == desired, "%d functions patched" % desired)
    for number, function in enumerate(many.FUNCTIONS):
        if function(1) != 1 + number:
            raise AssertionError("f%d returns %r" % (number, function(1)))
    hits = dict.fromkeys(("many:f%d" % number for number in range(many.COUNT)), 0)
    for hook in sca_probe.hooks():
        if hook.target in hits:
            hits[hook.target] += hook.hits
    wrong = {name: n for name, n in hits.items() if n != (1 if desired else 0)}
    if wrong:
        raise AssertionError("%d targets have other counts than one: %s" % (len(wrong), sorted(wrong.items())[:5]))


def report(during, desired):
    """Be the child: check, and write the result down."""
    problem = ""
    try:
        check(desired)
    except BaseException:
        problem = traceback.format_exc()
    answers.write({"during": bool(during), "problem": problem})


def born():
    """How many children were born at the moment."""
    return sum(answer["during"] for answer in answers.read())


def wait(pid):
    """Wait for a child, which must end with 0."""
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit("a child ended with status %#x" % status)


def attempts(attempt):
    """Run attempt(i) in children of this process, which end as any program does, until enough were born."""
    for i in range(ATTEMPTS):
        if born() >= WANTED:
            return
        pid = os.fork()
        if pid == 0:
            attempt(i)
            return
        wait(pid)


def fork_beside(work, begun, delay, at_moment):
    """Fork a while after a thread has begun to work, and wait for the child."""
    done = threading.Event()

    def run():
        work()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not begun() and not done.is_set():
        pass
    time.sleep(delay)
    during = at_moment() and not done.is_set()
    pid = os.fork()
    if pid == 0:
        report(during, 1000)
        return
    wait(pid)
    thread.join()


def importing(delay, state):
    """Fork while a thread waits for its import's targets to be patched, by an engine in a state."""

    def work():
        import many  # noqa: F401

    before = engine()["imports"]
    fork_beside(work, lambda: engine()["imports"] > before, delay, lambda: engine()["engine"] == state)


def moment_importing():
    """Fork while a thread waits in an import."""

    def attempt(i):
        until(lambda: engine()["engine"] == "running", "an engine of its own")
        importing(i % 10 * 0.001, "running")

    attempts(attempt)


def moment_loading():
    """Fork while a child's engine is loading, which an import does not wait for the grace with."""
    attempts(lambda i: importing(i % 10 * 0.001, "starting"))


def moment_starting():
    """Fork while sca_probe.start() loads the engine."""
    import sca_probe

    if engine()["engine"] != "off":  # by `sca-probe run`; not without the module site
        top = os.path.dirname(os.path.dirname(sca_probe.__file__))
        os.environ["PYTHONPATH"] += os.pathsep + top
        os.execv(sys.executable, [sys.executable, "-S"] + sys.argv)
    import many  # noqa: F401

    def attempt(i):
        fork_beside(sca_probe.start, lambda: engine()["engine"] != "off", i % 10 * 0.001, lambda: True)

    attempts(attempt)


def moment_applying():
    """Fork while 1,000 targets are being applied, or withdrawn."""
    import many

    names = ["many:f%d" % number for number in range(many.COUNT)]
    source = os.environ["SCA_PROBE_RC_SOURCE"]
    until(lambda: many.patched() == many.COUNT, "the functions patched")
    for i in range(ATTEMPTS):
        if born() >= 2 * WANTED:
            return
        desired = names if i % 2 else []
        with open(source + ".next", "w") as out:
            json.dump({"sca_instrumentation": {"targets": desired}}, out)
        os.replace(source + ".next", source)
        while many.patched() in (many.COUNT - len(desired), len(desired)) and many.patched() != len(desired):
            pass
        pid = os.fork()
        if pid == 0:
            report(0 < many.patched() < many.COUNT, len(desired))
            return
        wait(pid)
        until(lambda: many.patched() == len(desired), "the change")


if __name__ == "__main__":
    globals()["moment_" + sys.argv[1]]()
