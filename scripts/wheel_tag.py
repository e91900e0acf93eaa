"""Gives the wheel its tag: the stable ABI, this machine's architecture, and the glibc that the engine needs."""

from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The extension, and the reconcilers that are data in it: it loads one of them at run time.
ENGINE = "build/lib/sca-probe/python/sca_probe/_engine.abi3.so"
RECONCILERS = ("build/reconciler.so", "build/reconciler-agent.so")


def glibc(path):
    """The newest glibc whose symbols a shared library needs, as (major, minor)."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        names = [
            version.name
            for section in elf.iter_sections()
            if isinstance(section, GNUVerNeedSection)
            for _, versions in section.iter_versions()
            for version in versions
        ]
    numbers = [name.split("_", 1)[1] for name in names if name.startswith("GLIBC_") and name[6:7].isdigit()]
    if not numbers:
        raise SystemExit("%s names no version of glibc: it is not for a system that this wheel is for" % path)
    return max(tuple(int(part) for part in number.split(".")[:2]) for number in numbers)


class TagHook(BuildHookInterface):
    def initialize(self, version, build_data):
        files = [Path(self.root, name) for name in (ENGINE,) + RECONCILERS]
        missing = [str(file) for file in files if not file.exists()]
        if missing:
            raise SystemExit("%s is not built: run 'make wheel'" % missing[0])
        with open(files[0], "rb") as file:
            machine = ELFFile(file)["e_machine"]
        if machine != "EM_X86_64":
            raise SystemExit("%s is for %s, the wheel is for x86-64" % (files[0], machine))
        build_data["pure_python"] = False
        build_data["tag"] = "cp38-abi3-manylinux_%d_%d_x86_64" % max(glibc(file) for file in files)
