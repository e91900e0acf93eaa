"""Close every descriptor while the engine runs: what is the program's closes, and nothing else.

With "shared", under a sandbox that refuses the engine a table of descriptors of its own. It halts then, and
says so to this program and to the observer.
"""

import ctypes
import json
import os
import select
import socket
import struct
import subprocess
import sys

from common import await_patched, check, configure, make_functions, sca_probe, states, wait

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CLOSE_RANGE, UNSHARE = 436, 272  # x86-64


def refuse_own_descriptors():
    """Make close_range() and unshare() fail with EPERM in threads that start from now on, and this one."""
    filters = (
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 2, 0, CLOSE_RANGE),
        (0x15, 1, 0, UNSHARE),
        (0x06, 0, 0, 0x7FFF0000),  # allow
        (0x06, 0, 0, 0x00050001),  # EPERM
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filters), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs", ctypes.get_errno())
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0) == 0, "seccomp", ctypes.get_errno())


def descriptors():
    listed = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            listed.add((int(fd), os.readlink("/proc/self/fd/" + fd)))
        except FileNotFoundError:  # of the listing itself
            pass
    return listed


table, observer = sys.argv[1:]
shared = table == "shared"
if shared:
    refuse_own_descriptors()
functions = make_functions("functions", 2)
configure("functions:f0")
read_end, write_end = os.pipe()
before = descriptors()
sca_probe.start()
await_patched(1)
if not shared:
    check(descriptors() == before, descriptors() - before)

os.closerange(write_end, 1000)
os.set_blocking(read_end, False)
check(os.read(read_end, 1) == b"", "the pipe is open still")
if shared:
    reuse = [select.epoll() for _ in range(8)]  # by the numbers that the engine's had
    busy, peer = socket.socketpair()
    for epoll in reuse:
        epoll.register(busy, select.EPOLLOUT)
    wait(lambda: sca_probe.stats()["engine"] == "halted", "the engine has halted")
    check("descriptors" in sca_probe.stats()["reason"], sca_probe.stats())
    check(not select.select([peer], [], [], 0)[0], "the engine wrote to the program's socket")
    try:
        check(False, "a halted engine answers", sca_probe.targets())
    except RuntimeError as error:
        check(str(error) == sca_probe.stats()["reason"], error)
    check(not sca_probe.start(), "a halted engine starts")
    functions.f0()
    (hook,) = sca_probe.hooks()
    check(hook.hits == 1, hook.hits)
    child = os.fork()
    if child == 0:
        wait(lambda: sca_probe.stats()["engine"] == "running", "a child has an engine")
        check(sca_probe.stats()["reason"] == "", sca_probe.stats())
        await_patched(1)
        os._exit(0)
    check(os.waitpid(child, 0)[1] == 0, "the child failed")
    processes = json.loads(subprocess.check_output([observer, "ps", "--json"]))
    (seen,) = (p["engine"] for p in processes if p["pid"] == os.getpid())
    check(seen["state"] == "halted", seen)
else:
    configure("functions:f0", "functions:f1")
    await_patched(2)
    for _ in range(1000):
        functions.f1()
    check(states()["functions:f1"]["hits"] == 1000, states())
functions.f0()
