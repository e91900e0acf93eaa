"""Starts the engine in a Python program that `sca-probe run` started.

`sca-probe run` puts this folder first on PYTHONPATH, so that Python imports this file as
sitecustomize while it starts. It hides its folder from the program and then lets the
sitecustomize that it stood in front of, if there is one, run as it would have.
"""


def _bootstrap():
    import os
    import sys

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]

    import importlib.machinery
    import importlib.util

    def begin():
        # Spelled out rather than asked of sca_probe, which is not even imported while it is off. Beside
        # ddtrace, AppSec and SCA are for ddtrace to know.
        on = [
            os.environ.get(name, "").strip().lower() in ("1", "true")
            for name in ("DD_SCA_DETECTION_ENABLED", "DD_APPSEC_ENABLED", "DD_APPSEC_SCA_ENABLED")
        ]
        if not (all(on) or on[0] and importlib.util.find_spec("ddtrace")):
            return False
        sys.path.append(os.path.dirname(here))
        try:
            from sca_probe import bootstrap
        finally:
            sys.path.remove(os.path.dirname(here))
        bootstrap.begin(explicit=True)
        return True

    begun = False
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        # ddtrace's starts ddtrace, which is waited for. The program's own comes first: it may set what the engine
        # is gated on.
        if str(spec.origin).endswith(os.path.join("ddtrace", "bootstrap", "sitecustomize.py")):
            begun = begin()
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)
    if not begun:
        begin()


_bootstrap()
