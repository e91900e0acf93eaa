"""What a target's name leads to, by the engine's resolution: it imports nothing and runs no Python code."""

from types import FunctionType
from typing import NamedTuple
from typing import Optional

import sca_probe


class Resolution(NamedTuple):
    """A target and what it leads to."""

    target: str
    #: The function that would be patched: behind wrappers, descriptors and inheritance. Of a function
    #: in a function ("outer.<locals>.inner") it is the outermost one, whose constants hold the code.
    function: Optional[FunctionType]
    #: Why there is none, "" where there is.
    reason: str
    #: Whether the module is not imported yet: the target is waited for.
    pending: bool


def resolve(target: str) -> Resolution:
    """Resolve "module:qualname". Needs the engine to be loaded; raises RuntimeError otherwise."""
    state, function, reason = sca_probe.resolve(target)
    return Resolution(target, function, reason, state == "pending")
