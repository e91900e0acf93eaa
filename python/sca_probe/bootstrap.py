"""What happens when an interpreter starts: begin(), called where DD_SCA_DETECTION_ENABLED is on.

Where ddtrace is the host, its start is waited for. ddtrace takes product plug-ins from its own distribution
only. It does call back whoever registers with ddtrace.bootstrap.preload before it has finished starting, by
ddtrace-run or by `import ddtrace.auto`: so the import of that module is waited for, with an entry in
sys.meta_path that is gone after it. By then ddtrace's client of Remote Configuration polls. An Agent sends
nothing to who has the newest version already, whatever products he asks for: so the subscription comes before,
when the client is about to start.
"""

import os
import sys
from importlib.util import find_spec

import sca_probe

PRELOAD = "ddtrace.bootstrap.preload"
WORKER = "ddtrace.internal.remoteconfig.worker"
COMMAND = "ddtrace.commands.ddtrace_run"

#: The source that is ddtrace's own Remote Configuration.
DDTRACE = "ddtrace"

_armed = False
_started = False  # ddtrace has
_refused = False  # this ddtrace cannot be the host, which was logged


def begin(explicit=False):
    """Start the engine, or have ddtrace's start do it. Never raises.

    Beside ddtrace the engine starts when ddtrace does, by ddtrace's gate, whatever the source. Without it the
    environment decides, now: see sca_probe.enabled(). explicit is for a program that was started with the
    engine by name (`sca-probe run`): it need not run ddtrace to follow a source that is not ddtrace's.
    """
    try:
        source, installed = os.environ.get(sca_probe.SOURCE_VARIABLE), _ddtrace_is_installed()
        if installed and (not explicit or source in (None, "", DDTRACE)):
            arm()
        elif source == DDTRACE:
            sca_probe._log("the engine stays off: %s is ddtrace, which is not installed", sca_probe.SOURCE_VARIABLE)
        # Without ddtrace there is nothing to wait for, and every import would go by the entry: a debugger sees it.
        elif sca_probe.start() and installed:
            arm()  # hits are told to ddtrace whatever the source
    except Exception as error:
        sca_probe._log("the engine stays off: %s", error)


def _ddtrace_is_installed():
    # Where it is not, but the wheel is, the wheel's modules make a namespace package of its name.
    if DDTRACE in sys.modules:
        return getattr(sys.modules[DDTRACE], "__file__", None) is not None
    spec = find_spec(DDTRACE)
    return spec is not None and spec.origin is not None


def arm():
    """Start the integration when the installed ddtrace starts, or now if it has. Idempotent; imports nothing of it."""
    global _armed
    if _armed:
        return
    _armed = True
    preload = sys.modules.get(PRELOAD)
    if preload is not None:
        if getattr(sys.modules.get("ddtrace.bootstrap.sitecustomize"), "loaded", False):
            start()
        else:
            _register(preload)
    elif _has_preload():
        if WORKER in sys.modules:
            _subscribe_before_polls(sys.modules[WORKER])
        sys.meta_path.insert(0, _Finder())
    elif any(entry.endswith("ddtrace/bootstrap") for entry in sys.path):  # where ddtrace-run puts it
        from importlib.metadata import version

        sca_probe._log("the engine stays off: ddtrace %s is not supported; 2.x, 3.x and 4.x are", version(DDTRACE))


def _has_preload():
    spec = find_spec(DDTRACE)
    return any(os.path.exists(os.path.join(p, "bootstrap", "preload.py")) for p in spec.submodule_search_locations)


def _register(preload):
    try:
        preload.register_post_preload(start)
    except AttributeError as error:
        sca_probe._log("the engine stays off: this ddtrace is not as known: %s", error)


def _subscribe_before_polls(worker):
    """Have the client of Remote Configuration subscribe for us as the first thing that its start does."""
    poller = getattr(worker, "remoteconfig_poller", None)
    begin = getattr(poller, "start", None)
    if begin is None:
        return  # not as known: start() finds out, and says so

    def subscribe_and_begin(*args, **kwargs):
        del poller.start  # the class's again
        runtime = _integration()
        if runtime is not None:
            runtime.subscribe()
        begin(*args, **kwargs)
        if runtime is not None and _started:  # before its client: in uWSGI's master, and this is a worker
            runtime.start()

    poller.start = subscribe_and_begin


def _stay_first(command):
    """Have ddtrace-run put its folder on PYTHONPATH behind ours, where `sca-probe run` started it: the program's
    sitecustomize is then ours, which has ddtrace's follow, and not the other way round."""
    add = getattr(command, "_add_bootstrap_to_pythonpath", None)
    first, _, rest = os.environ.get("PYTHONPATH", "").partition(os.pathsep)
    if add is None or os.path.abspath(first) != os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bootstrap"):
        return

    def add_behind(folder):
        os.environ["PYTHONPATH"] = rest
        add(folder)
        os.environ["PYTHONPATH"] = first + os.pathsep + os.environ["PYTHONPATH"]

    command._add_bootstrap_to_pythonpath = add_behind


def start():
    """Start the integration: ddtrace has started. Never raises."""
    global _started
    _started = True
    runtime = _integration()
    if runtime is not None:
        runtime.start()


def _integration():
    """ddtrace.appsec.sca.runtime, or None where this ddtrace cannot be the host, for which there is one log line."""
    global _refused
    if _refused:
        return None
    try:
        try:
            from ddtrace.appsec.sca import config
        except ImportError:
            _extend_ddtrace()
            from ddtrace.appsec.sca import config
        config.line()  # before anything is imported of a ddtrace that is not known
        from ddtrace.appsec.sca import runtime

        return runtime
    except ImportError as error:
        sca_probe._log("the engine stays off: this ddtrace is not as known: %s", error)
    except Exception as error:
        sca_probe._log("the engine stays off: %s", error)
    _refused = True
    return None


def _extend_ddtrace():
    """Make ddtrace.appsec.sca find what lies beside this package, where the wheel is not installed."""
    import ddtrace.appsec

    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "ddtrace", "appsec")
    try:
        from ddtrace.appsec import sca

        sca.__path__.append(os.path.join(folder, "sca"))
    except ImportError:  # before 4.x
        ddtrace.appsec.__path__.append(folder)


class _Finder:
    """Finds modules of ddtrace's whose import is waited for, each once, and does what is to be done after it.

    It is gone when the last one has been found, which ddtrace imports when it starts.
    """

    def __init__(self):
        self._waits = {PRELOAD: _register, WORKER: _subscribe_before_polls, COMMAND: _stay_first}

    def find_spec(self, name, path=None, target=None):
        then = self._waits.pop(name, None)
        if then is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            try:
                run(module)
            finally:
                if name == PRELOAD:
                    sys.meta_path.remove(self)
            then(module)

        spec.loader.exec_module = exec_module
        return spec
