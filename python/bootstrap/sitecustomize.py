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

    # The program's own sitecustomize comes first: it may set what the engine is gated on.
    import importlib.machinery
    import importlib.util

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)

    # Spelled out rather than asked of sca_probe, which is not even imported while it is off.
    gates = ("DD_SCA_DETECTION_ENABLED", "DD_APPSEC_ENABLED", "DD_APPSEC_SCA_ENABLED")
    if all(os.environ.get(name, "").strip().lower() in ("1", "true") for name in gates):
        sys.path.append(os.path.dirname(here))
        try:
            import sca_probe
        finally:
            sys.path.remove(os.path.dirname(here))
        sca_probe.start()


_bootstrap()
