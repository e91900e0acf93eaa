"""What the engine leaves of a process's signals: all of them."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time

from common import await_patched, check, configure, make_functions, sca_probe, wait


def status(tid):
    with open("/proc/self/task/%d/status" % tid) as f:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    return {name: int(lines[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")}


def tids():
    return {int(tid) for tid in os.listdir("/proc/self/task")}


def signals_in(mask):
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def process_state():
    return {
        "umask": [os.umask(0o022), os.umask(0o022)],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "directory": os.getcwd(),
    }


def dispositions():
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    application = tids()
    before, others = {tid: status(tid) for tid in application}, process_state()
    check(sca_probe.start(), "the engine runs")
    make_functions("functions", 1)
    configure("functions:f0")
    await_patched(1)
    after = {tid: status(tid) for tid in application}
    for tid in application:
        for name in ("SigBlk", "SigIgn", "SigCgt"):
            changed = signals_in(before[tid][name] ^ after[tid][name])
            # The one handler of the extension's own (signals.h).
            expected = {int(signal.SIGSEGV)} if name == "SigCgt" else set()
            check(changed <= expected, "thread", tid, name, "changed in", changed)
    check(process_state() == others, process_state(), others)
    # Those that an instruction causes, and those that the C library needs every thread to take.
    open_ = {4, 5, 7, 8, 11, 32, 33, 34} | {9, 19}
    engine = tids() - application
    check(engine, "the engine has threads")
    for tid in engine:
        taken = set(range(1, 65)) - signals_in(status(tid)["SigBlk"])
        check(taken <= open_, "an engine's thread takes", taken - open_)
    stop.set()


def storm():
    """Signals at a high rate, at threads that run patched functions, while patches come and go."""
    functions = make_functions("functions", 200)
    counts = dict.fromkeys(("SIGPROF", "SIGVTALRM", "SIGALRM"), 0)

    def count(number, _):
        counts[signal.Signals(number).name] += 1

    for name in counts:
        signal.signal(getattr(signal, name), count)
    sca_probe.start()
    # A handler that is installed later, as by a profiler that is switched on.
    for name in counts:
        signal.signal(getattr(signal, name), count)
    always = ["functions:f0"]
    configure(*always)
    await_patched(1)
    calls = [0] * 3
    stop = threading.Event()

    def work(i):
        while not stop.is_set():
            check(functions.f0() == 0 and functions.f7() == 7)
            calls[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_PROF, 0.0005, 0.0005)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0007, 0.0007)
    signal.setitimer(signal.ITIMER_REAL, 0.0011, 0.0011)

    def send():  # far more often than the kernel's timers, which tick at 100 Hz to 1 kHz
        while not stop.is_set():
            os.kill(os.getpid(), signal.SIGPROF)
            time.sleep(0.0001)

    threads.append(threading.Thread(target=send))
    threads[-1].start()
    end, on = time.monotonic() + float(sys.argv[2]), False
    while time.monotonic() < end:
        on = not on
        configure(*always, *(["functions:f%d" % i for i in range(1, 200)] if on else []))
        time.sleep(0.03)
    for timer in (signal.ITIMER_PROF, signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)
    stop.set()
    for thread in threads:
        thread.join()
    hits = {t["target"]: t["hits"] for t in sca_probe.targets()}["functions:f0"]
    check(hits == sum(calls), hits, "hits of", sum(calls))
    check(sca_probe.stats()["patches"] > 200, sca_probe.stats())
    for name, n in counts.items():
        check(n > 0, name, "was never handled")
    print(counts)


def handled():
    """Signals to the process reach the program's handlers, each of them."""
    sca_probe.start()
    make_functions("functions", 100)
    got = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGURG, signal.SIGPROF, signal.SIGHUP):
        signal.signal(number, lambda number, _: got.append(number))
        for i in range(50):
            configure(*("functions:f%d" % j for j in range(100 * (i % 2))))
            del got[:]
            os.kill(os.getpid(), number)
            wait(lambda: got, "signal %d is handled" % number, 10)
            check(got == [number], got)
    signal.signal(signal.SIGURG, lambda number, _: got.append(number))
    del got[:]
    time.sleep(0.3)
    check(not got, "the engine's own signals reached the program:", got)
    for _ in range(100):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
            raise AssertionError("no KeyboardInterrupt")
        except KeyboardInterrupt:
            pass
    # A child's end interrupts a read, which goes on (PEP 475).
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    threading.Timer(1, os.write, (writer, b"x")).start()
    check(os.read(reader, 1) == b"x")
    child.wait()
    check(got == [] or set(got) == {signal.SIGCHLD}, got)
    # The C library stops every thread to change the user: none may be deaf to that.
    os.setgid(os.getgid())
    os.setuid(os.getuid())


def broken_stderr():
    """A broken pipe as stderr is the program's to notice, also where it wants SIGPIPE to end it."""
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    os.close(reader)
    if sys.argv[2] == "default":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sca_probe.start()
    make_functions("functions", 10)
    for i in range(20):
        configure(*("functions:f%d" % j for j in range(10 * (i % 2))))
        time.sleep(0.02)
    configure("functions:f0")
    await_patched(1)
    os.write(1, b'{"alive": true}')
    os._exit(0)


def crash():
    """Crash, in a way, with faulthandler enabled before the engine, after it, or never."""
    import ctypes
    import faulthandler

    if sys.argv[3] == "before":
        faulthandler.enable()
    sca_probe.start()
    make_functions("functions", 1)
    if os.environ.get("DD_APPSEC_ENABLED"):
        configure("functions:f0")
        await_patched(1)
    if sys.argv[3] == "after":
        faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    {
        "null": lambda: ctypes.string_at(0),
        "kill": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "abort": os.abort,
        "fpe": lambda: os.kill(os.getpid(), signal.SIGFPE),
        "pipe": lambda: (signal.signal(signal.SIGPIPE, signal.SIG_DFL), os.kill(os.getpid(), signal.SIGPIPE)),
        "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "thread": lambda: threading.Thread(target=ctypes.string_at, args=(0,)).start(),
    }[sys.argv[2]]()
    time.sleep(10)


{
    "dispositions": dispositions,
    "storm": storm,
    "handled": handled,
    "broken-stderr": broken_stderr,
    "crash": crash,
}[sys.argv[1]]()
