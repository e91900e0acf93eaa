"""Ends in many ways while the engine is busy. What the exit code must be, the test knows."""

import atexit
import os
import signal
import sys
import threading
import time

from common import await_patched, check, configure, make_functions, sca_probe, wait

how = sys.argv[1]

if how == "atexit":

    @atexit.register  # before the engine's, and so after it: the engine has stopped
    def _():
        functions.f0()
        if os.environ.get("DD_APPSEC_ENABLED"):
            check(sca_probe.stats()["engine"] == "stopped")
            check(len(sca_probe.targets()) == 0)
        print("last")


sca_probe.start()
functions = make_functions("functions", 1000)


def toggle():
    i = 0
    while True:
        i += 1
        configure(*("functions:f%d" % j for j in range(1000 * (i % 2))))
        time.sleep(0.005)


def call():
    while True:
        functions.f0()
        functions.f999()


for target in (toggle, call, call):
    threading.Thread(target=target, daemon=True).start()
if os.environ.get("DD_APPSEC_ENABLED"):
    wait(lambda: sca_probe.stats()["patches"] > 0, "patching has begun")
time.sleep(float(os.environ.get("EXIT_AFTER", "0.05")))


def wait_for_import():
    configure("late:f", *("functions:f%d" % j for j in range(1000)))
    time.sleep(0.01)
    sys.path.insert(0, os.getcwd())
    with open("late.py", "w") as f:
        f.write("def f(): pass\n")
    import late

    late.f()


class Graceless:
    def __del__(self):
        functions.f0()


if how == "end":
    pass
elif how == "exit":
    sys.exit(3)
elif how == "exception":
    raise ValueError("at the end")
elif how == "os-exit":
    os._exit(5)
elif how == "atexit":

    @atexit.register
    def _():
        functions.f0()
        if os.environ.get("DD_APPSEC_ENABLED"):
            check(sca_probe.stats()["engine"] == "running")
        print("first")

elif how == "atexit-raises":
    atexit.register(lambda: 1 / 0)
elif how == "thread-exits":  # ends that thread alone
    thread = threading.Thread(target=sys.exit, args=(7,))
    thread.start()
    thread.join()
elif how == "thread-outlives":
    threading.Thread(target=lambda: (time.sleep(0.2), functions.f0())).start()
elif how == "import":
    threading.Thread(target=wait_for_import, daemon=True).start()
    time.sleep(0.012)
elif how == "atexit-cleared":  # and the engine's with it
    atexit._clear()
elif how == "finalizers":
    sys.graceless = Graceless()
    functions.graceless = Graceless()
elif how == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
elif how == "terminate":
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
elif how == "at-once":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    raise SystemExit("unknown: " + how)
