"""What the tests of forks name as targets."""


def old(x):
    """Be a target before Remote Configuration changes."""
    return x + 1


def new(x):
    """Be a target after it."""
    return x + 2


ORIGINALS = {"old": old.__code__, "new": new.__code__}


def patched(name):
    """Whether a function's code is another than the one that it was made with."""
    return globals()[name].__code__ is not ORIGINALS[name]


def hits(name):
    """How often the engine says that a function was started in this process."""
    import sca_probe

    return sum(t["hits"] for t in sca_probe.targets() if t["target"] == "work:" + name)
