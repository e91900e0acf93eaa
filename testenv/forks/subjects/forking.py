"""Makes processes in each way that Python has, and each says what became of the targets in it.

Run as ``python forking.py WAY``. Every process that WAY makes writes two answers: one when it is born, and one when Remote Configuration has changed in it.
"""

import os
import resource
import sys
import threading
import time

import answers
import work

PATIENCE = 25  # seconds


def left_behind():
    """What the process holds: memory in KiB, and numbers of mappings, threads and descriptors."""
    with open("/proc/self/smaps_rollup") as f:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in f if line.endswith("kB\n")}
    with open("/proc/self/maps") as f:
        mappings = f.readlines()
    return {
        "reconcilers": len({line.split()[4] for line in mappings if "sca-probe-" in line and "(deleted)" in line}),
        "rss": sizes["Rss"],
        "pss": sizes["Pss"],
        "private_dirty": sizes["Private_Dirty"],
        "mappings": len(mappings),
        "threads": len(os.listdir("/proc/self/task")),
        "fds": len(os.listdir("/proc/self/fd")),
    }


def live(make_child=None):
    """Be a process that a way made: call, wait for the change, call."""
    import sca_probe

    born = {"patched": work.patched("old"), "inherited": work.hits("old")}
    for _ in range(7):
        work.old(1)
    forks = sca_probe.stats()["forks"]
    answers.write(dict(born, stage="born", pid=os.getpid(), forks=forks, hits=work.hits("old")))
    if make_child:
        make_child()
    deadline = time.monotonic() + PATIENCE
    while not work.patched("new") or work.patched("old"):
        if time.monotonic() > deadline:
            answers.write({"stage": "late", "pid": os.getpid(), "stats": sca_probe.stats()})
            return
        time.sleep(0.01)
    for _ in range(5):
        work.new(1)
        work.old(1)
    answers.write(
        {"stage": "changed", "pid": os.getpid(), "hits": work.hits("new"), "old": work.hits("old"), "left": left_behind()}
    )


def fork(then=live):
    """Fork, let the child run then, and return its ID."""
    pid = os.fork()
    if pid == 0:
        try:
            then()
        finally:
            os._exit(0)
    return pid


def way_fork():
    """Fork three children."""
    for pid in [fork() for _ in range(3)]:
        os.waitpid(pid, 0)


def way_grace():
    """Fork a child that executes another program within the engine's grace, and one that lives on.

    The first says what it holds then, and what its parent did. On a machine that is too busy it is too late for that,
    and there is another.
    """
    import sca_probe

    if sca_probe.stats()["engine"] != "running":
        sys.exit("no engine")

    for _ in range(20):
        began = time.monotonic()
        before = left_behind()
        pid = os.fork()
        if pid == 0:
            now = left_behind()
            took = time.monotonic() - began
            if took < 0.15:
                answers.write({"stage": "grace", "before": before, "left": now})
                os.execv(sys.executable, [sys.executable, "-c", "pass"])
            os._exit(1)
        if os.waitpid(pid, 0)[1] == 0:
            break
    os.waitpid(fork(), 0)


def way_thread():
    """Fork from a thread other than the main one, while another runs."""
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            work.old(1)

    def forks():
        os.waitpid(fork(), 0)

    threads = [threading.Thread(target=busy), threading.Thread(target=forks)]
    for thread in threads:
        thread.start()
    threads[1].join()
    stop.set()


def way_generations():
    """Fork a child that forks a child, to 20 generations, each alive until the last has ended."""

    def generation(left):
        pids = []

        def next_one():
            if left > 1:
                pids.append(fork(lambda: generation(left - 1)))

        live(next_one)
        for pid in pids:
            os.waitpid(pid, 0)

    os.waitpid(fork(lambda: generation(20)), 0)


def _multiprocessing(method):
    import multiprocessing

    context = multiprocessing.get_context(method)
    children = [context.Process(target=live) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()


def way_multiprocessing_fork():
    """Use multiprocessing's method fork."""
    _multiprocessing("fork")


def way_multiprocessing_forkserver():
    """Use multiprocessing's method forkserver."""
    _multiprocessing("forkserver")


def way_multiprocessing_spawn():
    """Use multiprocessing's method spawn."""
    _multiprocessing("spawn")


def way_pool():
    """Use concurrent.futures' pool of processes."""
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        for future in [pool.submit(live) for _ in range(2)]:
            future.result()


def _again(way):
    return [sys.executable, os.path.abspath(__file__), way]


def way_live():
    """Be the one process."""
    live()


def way_subprocess():
    """Run a Python program."""
    import subprocess

    subprocess.check_call(_again("live"))


def way_subprocess_preexec():
    """Run a Python program after running Python code in the forked child."""
    import subprocess

    subprocess.check_call(_again("live"), preexec_fn=lambda: work.old(1))


def way_exec():
    """Become another program, in this process."""
    os.execv(sys.executable, _again("live"))


def way_fork_exec():
    """Become another program in a child that has an engine of its own by then."""

    def become():
        time.sleep(0.5)
        os.execv(sys.executable, _again("live"))

    os.waitpid(fork(become), 0)


def way_daemon():
    """Fork twice and close every descriptor, as daemons do."""

    def first():
        os.setsid()
        fork(second)

    def second():
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.closerange(0, soft)
        os.open(os.devnull, os.O_RDWR)
        os.dup2(0, 1)
        os.dup2(0, 2)
        live()

    os.waitpid(fork(first), 0)


def way_daemon_late():
    """Do the same once the engine runs in the parent and the child: descriptors of its own close too."""

    def become():
        time.sleep(0.5)
        way_daemon()

    os.waitpid(fork(become), 0)


def way_close():
    """Close every descriptor while the engine runs, and fork."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(3, soft)
    os.waitpid(fork(), 0)


if __name__ == "__main__":
    globals()["way_" + sys.argv[1]]()
