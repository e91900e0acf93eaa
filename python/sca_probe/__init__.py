"""The engine of sca-probe, as Python sees it.

Off by default: importing this package loads nothing else. start() loads the engine, and only when
the environment asks for it (see enabled()).
"""

import os

#: The environment variables that must all be true before the engine is loaded.
GATES = ("DD_SCA_DETECTION_ENABLED", "DD_APPSEC_ENABLED", "DD_APPSEC_SCA_ENABLED")

#: The environment variable that says where Remote Configuration comes from, and what it is without.
SOURCE_VARIABLE = "SCA_PROBE_RC_SOURCE"
DEFAULT_SOURCE = "/etc/sca-probe/targets.json"

#: Sources that are no file or folder: the Datadog Agent, polled by the engine; and push().
AGENT = "agent"
PUSH = "push"

#: Apply states, as Remote Configuration's protocol numbers them: nobody has acted on it yet, or it is
#: in force, or it was refused.
UNACKNOWLEDGED, ACKNOWLEDGED, ERROR = 1, 2, 3

_loaded = None  # the module sca_probe._engine, once started
_source = None  # what it follows


def is_on(name, environ=os.environ):
    """Whether a variable is 1 or true."""
    return environ.get(name, "").strip().lower() in ("1", "true")


def enabled(environ=os.environ):
    """Whether the environment turns the engine on."""
    return all(is_on(name, environ) for name in GATES)


def _unsupported():
    """Why this interpreter cannot host the engine, or None."""
    import sys
    import sysconfig

    version = "%s %d.%d" % ((sys.implementation.name,) + tuple(sys.version_info[:2]))
    if sys.implementation.name != "cpython" or not (3, 8) <= sys.version_info[:2] <= (3, 15):
        return "%s is not supported; CPython 3.8 to 3.15 are" % version
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "free-threaded builds are not supported"
    if hasattr(sys, "gettotalrefcount"):
        return "debug builds are not supported"
    if _in_subinterpreter():
        return "subinterpreters are not supported; the main interpreter is"
    return None


def _in_subinterpreter():
    for name in ("_interpreters", "_xxsubinterpreters"):  # from 3.13 on, and before
        try:
            interpreters = __import__(name)
        except ImportError:
            continue
        # 3.13 made what these return a pair of the ID and where it comes from.
        return interpreters.get_current() != interpreters.get_main()
    return False


def start(source=None):
    """Load the engine, where the environment turns it on: load() behind enabled()."""
    return enabled() and load(source)


def load(source=None):
    """Load the engine and let it follow a source of Remote Configuration.

    source is a file or folder, AGENT or PUSH; what SCA_PROBE_RC_SOURCE says unless given. The first
    call chooses it for the process and the children that it forks. This is for hosts with gates of
    their own; others call start().

    Returns True when the engine runs. Never raises: an application must start whether or not the
    engine can; why it did not is logged to the logger "sca_probe".
    """
    global _loaded, _source
    first = False
    try:
        import atexit
        import sys

        reason = _unsupported()
        if reason:
            _log("the engine stays off: %s", reason)
            return False
        from importlib import util

        from . import _engine as engine

        source = source or os.environ.get(SOURCE_VARIABLE) or DEFAULT_SOURCE
        if source not in (AGENT, PUSH):
            source = os.path.abspath(source)
        magic = int.from_bytes(util.MAGIC_NUMBER[:2], "little")
        first = _loaded is None
        if first:
            # Before the engine starts, during which another thread may fork: the child has an engine too.
            _loaded, _source = engine, source
            atexit.register(engine.stop)
            os.register_at_fork(after_in_child=engine.forked)
        engine.start(source, sys.version_info[0], sys.version_info[1], magic)
        return True
    except Exception as error:
        if first:
            _loaded = _source = None
        _log("the engine stays off: %s", error)
        return False


def _log(message, *args):
    import logging

    logging.getLogger("sca_probe").warning("sca-probe: " + message, *args)


def source():
    """What the engine follows: AGENT, PUSH or a path; None unless it is loaded."""
    return _source


def push(changes):
    """Hand configurations over, where the source is PUSH: a dict of payloads by path.

    A payload is bytes as docs/remote-configuration.md describes them, or None for a configuration
    that is withdrawn. All of one call is one update. Returns at once; states() says what becomes of
    each. Raises ValueError when it is more than the engine takes, and then changes nothing.
    """
    if _loaded:
        _loaded.push(list(changes.items()))


def resolve(target):
    """What a target leads to: (state, function or None, reason), with the state "resolved", "pending" or
    "unresolved". Imports nothing, runs no Python code. Raises RuntimeError unless the engine is loaded."""
    if not _loaded:
        raise RuntimeError("the engine is not loaded")
    module, colon, qualname = target.partition(":")
    if not colon:
        return "unresolved", None, "target %r has no colon" % target
    return _loaded.resolve(module, qualname)


def states():
    """What became of each configuration that was pushed: a dict of (state, error) by path."""
    return {path: (state, error) for path, state, error in _loaded.states()} if _loaded else {}


def hooks():
    """All living hooks: objects with target, hits, state, callers and original."""
    return _loaded.hooks() if _loaded else []


def targets():
    """What has become of every target: a list of dicts.

    Each has target, state ("pending", "unresolved", "patched", "hit", "reverted"), reason (why it is
    unresolved or pending), mode, hits (the starts of the function while it was patched, in this
    process) and callers (the first ones, as dicts with path, line and symbol). Raises TimeoutError when
    the engine, which answers from its own thread, has not done so within 10 seconds, and RuntimeError
    when it has halted; hooks() counts on.
    """
    import json

    if not _loaded:
        return []
    hooks = {id(hook): hook for hook in _loaded.hooks()}
    found = json.loads(_loaded.targets())
    for target in found:
        hook = hooks.get(target.pop("hook", 0))
        target["hits"] = hook.hits if hook else 0
        target["callers"] = [
            {"path": path, "line": line, "symbol": symbol}
            for path, line, symbol in (hook.callers if hook else ())
        ]
    return found


def stats():
    """What the engine does in this process, as a dict of numbers.

    The first two are no numbers: engine is "off", "starting", "running", "refused", "stopped" or "halted"
    (it ran, and cannot go on), and reason says why it is refused or halted, "" when it is neither.
    """
    return _loaded.numbers() if _loaded else {"engine": "off", "reason": ""}
