"""Prints what 10,000 targets cost in memory, and how much there is of it each of argv[1] times that 500 were patched and
reverted: in KiB, and in blocks of Python's own allocator."""

import array
import ctypes
import gc
import json
import sys

from common import await_patched, check, configure, make_functions, sca_probe, wait


class Mallinfo(ctypes.Structure):  # mallinfo(3)
    _fields_ = [
        (name, ctypes.c_int)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Mallinfo


def resident():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def malloced():
    info = mallinfo()
    return (info.uordblks + info.hblkhd) // 1024


functions = make_functions("functions", 10001)
everything = ["functions:f%d" % i for i in range(10000)]
before = resident()
check(sca_probe.start())
started = resident()
configure(*everything)
await_patched(10000)
applied = resident()
configure(*everything, "functions:f10000")
wait(lambda: sca_probe.stats()["updates_refused"] == 1, "one target too many is refused")
check(sca_probe.stats()["patched"] == 10000, "the last good targets stay")
configure()
await_patched(0)
some = everything[:500]


sizes = [array.array("q") for _ in range(3)]  # no objects of this program's own
for _ in range(5 + int(sys.argv[1])):
    configure(*some)
    await_patched(len(some))
    configure()
    await_patched(0)
    gc.collect()
    for kept, size in zip(sizes, (resident(), malloced(), sys.getallocatedblocks())):
        kept.append(size)
resident, malloced, blocks = (kept.tolist()[5:] for kept in sizes)
json.dump(
    {
        "Engine": started - before,
        "Targets": applied - started,
        "Resident": resident,
        "Malloced": malloced,
        "Blocks": blocks,
    },
    sys.stdout,
)
