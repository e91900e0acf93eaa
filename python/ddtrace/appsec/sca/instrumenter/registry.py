"""What the engine has made of each target, in this process."""

from typing import Dict
from typing import List
from typing import NamedTuple
from typing import Optional
from typing import Tuple

import sca_probe


#: What can become of a target.
PENDING, UNRESOLVED, PATCHED, HIT, REVERTED = "pending", "unresolved", "patched", "hit", "reverted"


class Caller(NamedTuple):
    """Where a target was called from."""

    path: str
    line: int
    symbol: str


class Target(NamedTuple):
    """A target's state."""

    target: str
    state: str
    reason: str  # why it is pending or unresolved
    mode: str
    package: str
    advisories: Tuple[str, ...]
    hits: int  # the starts of the function while it was patched
    callers: Tuple[Caller, ...]  # the first ones


def targets() -> List[Target]:
    """Every target that is asked for, or was."""
    return [
        Target(
            t["target"],
            t["state"],
            t.get("reason", ""),
            t.get("mode", ""),
            t.get("package", ""),
            tuple(t.get("advisories", ())),
            t["hits"],
            tuple(Caller(c["path"], c["line"], c["symbol"]) for c in t["callers"]),
        )
        for t in sca_probe.targets()
    ]


def get(target: str) -> Optional[Target]:
    """One target, None where nothing ever asked for it."""
    return by_target().get(target)


def by_target() -> Dict[str, Target]:
    """Every target by its name."""
    return {t.target: t for t in targets()}


def is_instrumented(target: str) -> bool:
    """Whether the function counts its calls now."""
    found = get(target)
    return found is not None and found.state == PATCHED
