"""What the programs of this folder share: starting the engine and telling it what to patch."""

import json
import os
import sys
import threading
import time
import types

import sca_probe

RC_FILE = os.environ["SCA_PROBE_RC_SOURCE"]


def configure(*targets):
    """Make these the desired targets: strings, or dicts with a mode."""
    following = "%s.%d" % (RC_FILE, threading.get_ident())
    with open(following, "w") as f:
        json.dump({"sca_instrumentation": {"targets": list(targets)}}, f)
    os.rename(following, RC_FILE)


def states():
    return {target["target"]: target for target in sca_probe.targets()}


def wait(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("not so after %d s: %s; %r" % (seconds, what, sca_probe.stats()))
        time.sleep(0.002)


def await_patched(n):
    wait(lambda: sca_probe.stats()["patched"] == n, "%d targets are patched" % n)


def make_functions(name, n):
    """Make a module of n functions f0, f1, … that return their number; return it."""
    module = types.ModuleType(name)
    source = "".join("def f%d():\n    return %d\n" % (i, i) for i in range(n))
    exec(compile(source, "<%s>" % name, "exec"), module.__dict__)
    sys.modules[name] = module
    return module


def check(condition, *what):
    if not condition:
        raise AssertionError(" ".join(map(str, what)))
