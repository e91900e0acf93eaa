"""Ask the engine to instrument functions, besides what Remote Configuration asks for."""

import json
from typing import Iterable
from typing import NamedTuple
from typing import Tuple

import sca_probe


COUNT = "count"
FIRST_HIT = "first_hit"


class Instrumentation(NamedTuple):
    """A function to be instrumented, and why: docs/remote-configuration.md has the meaning of each."""

    target: str
    package: str = ""
    advisories: Tuple[str, ...] = ()
    mode: str = COUNT


def payload(instrumentations: Iterable[Instrumentation]) -> bytes:
    """The payload of Remote Configuration that asks for them."""
    targets = []
    for wanted in instrumentations:
        target = {"target": wanted.target, "mode": wanted.mode, "advisories": list(wanted.advisories)}
        if wanted.package:
            target["package"] = wanted.package
        targets.append(target)
    return json.dumps({"sca_instrumentation": {"targets": targets}}).encode()


def instrument(path: str, instrumentations: Iterable[Instrumentation]) -> None:
    """Ask for functions, under a path that stands beside those of Remote Configuration's configurations.

    The same path again replaces what it asked for. Returns at once: what becomes of each function is in
    registry, and what becomes of the whole in sca_probe.states(). Raises ValueError where it is too much.
    """
    sca_probe.push({path: payload(instrumentations)})


def revert(path: str) -> None:
    """Ask for them no longer: functions that nothing else asks for get their original code back."""
    sca_probe.push({path: None})
