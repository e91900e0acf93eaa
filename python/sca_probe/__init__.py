"""The engine of sca-probe, as Python sees it.

Off by default: importing this package loads nothing else. start() loads the engine, and only when
the environment asks for it (see enabled()).
"""

import os

#: The environment variables that must all be true before the engine is loaded.
GATES = ("DD_SCA_DETECTION_ENABLED", "DD_APPSEC_ENABLED", "DD_APPSEC_SCA_ENABLED")

#: The environment variable that names the Remote Configuration file, and the file without it.
RC_FILE_VARIABLE = "SCA_PROBE_RC_FILE"
DEFAULT_RC_FILE = "/etc/sca-probe/targets.json"

_loaded = None  # the module sca_probe._engine, once started


def enabled(environ=os.environ):
    """Whether the environment turns the engine on."""
    return all(environ.get(name, "").strip().lower() in ("1", "true") for name in GATES)


def _unsupported():
    """Why this interpreter cannot host the engine, or None."""
    import sys
    import sysconfig

    version = "%s %d.%d" % ((sys.implementation.name,) + tuple(sys.version_info[:2]))
    if sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info[:2] <= (3, 14):
        return "%s is not supported; CPython 3.11 to 3.14 are" % version
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "free-threaded builds are not supported"
    if hasattr(sys, "gettotalrefcount"):
        return "debug builds are not supported"
    return None


def start(rc_file=None):
    """Load the engine and let it follow the Remote Configuration file.

    Returns True when the engine runs. Never raises: an application must start whether or not the
    engine can; why it did not is logged to the logger "sca_probe".
    """
    global _loaded
    if not enabled():
        return False
    try:
        import atexit
        import sys

        reason = _unsupported()
        if reason:
            _log("the engine stays off: %s", reason)
            return False
        from . import _engine as engine

        path = rc_file or os.environ.get(RC_FILE_VARIABLE) or DEFAULT_RC_FILE
        engine.start(os.path.abspath(path), sys.version_info[0], sys.version_info[1])
        atexit.register(engine.stop)
        _loaded = engine
        return True
    except Exception as error:
        _log("the engine stays off: %s", error)
        return False


def _log(message, *args):
    import logging

    logging.getLogger("sca_probe").warning("sca-probe: " + message, *args)


def targets():
    """The state of every target: a list of dicts with target, state, reason and hits."""
    import json

    return json.loads(_loaded.targets()) if _loaded else []


def stats():
    """Hits and first callers of the hooks in this process, by target.

    Also answers in a forked child, where hits go on being counted.
    """
    result = {}
    for hook in _loaded.hooks() if _loaded else ():
        entry = result.setdefault(hook.target, {"hits": 0, "callers": []})
        entry["hits"] += hook.hits
        entry["callers"] += [
            {"path": path, "line": line, "symbol": symbol} for path, line, symbol in hook.callers
        ]
    return result
