"""The engine's life in a program under ddtrace: started when the gate opens, and its hits reported.

start() is called once ddtrace has started (sca_probe.bootstrap). Nothing here is on a hit's path: the
engine counts, and a periodic service of ddtrace's looks at the counts.
"""

import atexit
import os
from typing import Any
from typing import Dict
from typing import Optional
from typing import Set
from typing import Tuple

import sca_probe

from ddtrace.appsec.sca import config
from ddtrace.appsec.sca import remote_config
from ddtrace.appsec.sca.instrumenter import registry
from ddtrace.internal.logger import get_logger
from ddtrace.internal.periodic import ForksafeAwakeablePeriodicService
from ddtrace.internal.telemetry import telemetry_writer
from ddtrace.internal.telemetry.constants import TELEMETRY_NAMESPACE


log = get_logger(__name__)

#: Seconds between two looks at gate, apply states and hits.
INTERVAL = 1.0

_runtime: Optional["Runtime"] = None


def subscribe() -> None:
    """Subscribe to ddtrace's Remote Configuration, where the gate is open or may open. ddtrace's client is about to
    poll for the first time. Never raises."""
    try:
        runtime = _prepared()
        if runtime is not None:
            runtime.subscribe()
    except Exception as error:
        log.debug("sca-probe: the subscription waits for ddtrace to have started: %s", error)


def start() -> bool:
    """Start the engine, or wait for AppSec to be enabled where that can be. Returns whether it runs.

    Never raises: ddtrace and the application start as if it was not there.
    """
    try:
        runtime = _prepared()
        if runtime is not None and runtime.waits():
            log.warning("sca-probe: the engine waits for ddtrace's Remote Configuration, which has not started")
            return False
        return runtime is not None and runtime.begin()
    except Exception as error:
        log.warning("sca-probe: the engine stays off: %s", error)
        return False


def _prepared() -> Optional["Runtime"]:
    """The runtime of this process, None where the gate is closed for good."""
    global _runtime
    if _runtime is None:
        gate = config.gate()
        if not gate.open and not gate.may_open:
            log.debug("sca-probe: the engine stays off: %s", gate.reason)
            return None
        _runtime = Runtime()
    return _runtime


class Runtime(ForksafeAwakeablePeriodicService):
    """The engine in this process, and in those that it forks."""

    def __init__(self) -> None:
        super().__init__(INTERVAL)
        self.running = False
        self._configurations = remote_config.Configurations()
        self._subscription: Optional[remote_config.Subscription] = None
        self._source = sca_probe.source() or config.source()
        self._reports = Reports()
        self._begun = False

    def subscribe(self) -> None:
        """Choose the source, which is a subscription unless something else is set. Does it once."""
        if self._source is None:
            self._source = self._subscribe()

    def waits(self) -> bool:
        """Whether the subscription is still to come: in uWSGI's master ddtrace starts its client in the workers."""
        return self._source is None and remote_config.starts_later()

    def begin(self) -> bool:
        """Subscribe, load the engine if the gate is open, and look after it from then on. Returns whether it runs."""
        if self._begun:
            return self.running
        self._begun = True
        self.subscribe()
        if config.gate().open and not self._load():
            return False
        self.start()
        atexit.register(self.periodic)  # before ddtrace's own last report: it registered earlier
        return self.running

    def _subscribe(self) -> str:
        """Returns the source that the engine is to have."""
        bundled = remote_config.bundled_targets() if config.bundled_targets() else None
        if bundled is not None:
            self._configurations.change({remote_config.BUNDLED_PATH: bundled})
        try:
            self._subscription = remote_config.subscribe(self._configurations)
        except remote_config.Unavailable as error:
            if bundled is not None:
                log.warning("sca-probe: no Remote Configuration by ddtrace, the bundled targets only: %s", error)
                return sca_probe.PUSH
            log.warning("sca-probe: no Remote Configuration by ddtrace, the engine polls the Agent: %s", error)
            return sca_probe.AGENT
        return sca_probe.PUSH

    def _load(self) -> bool:
        self.running = sca_probe.load(self._source)
        self._configurations.set_open(self.running)
        return self.running

    def periodic(self) -> None:
        """One look."""
        try:
            is_open = config.appsec_enabled()
            if not self.running:
                if is_open and not self._load():
                    self.stop()
                return
            self._configurations.set_open(is_open)
            if self._subscription is not None:
                self._subscription.report()
            self._reports.report()
        except Exception:
            log.debug("sca-probe: a look at the engine failed", exc_info=True)

    def reset(self) -> None:
        """In a forked child nothing has been reported."""
        self._reports = Reports()


class Reports:
    """What ddtrace has been told of this process's engine."""

    #: What the engine's numbers are called in ddtrace's telemetry.
    GAUGES = {"targets": "sca_probe.targets", "patched": "sca_probe.targets.patched"}

    def __init__(self) -> None:
        self._updates = -1
        self._hit: Set[int] = set()
        self._registered: Set[Tuple[str, str]] = set()
        self._reached: Set[Tuple[str, str]] = set()
        self._logged: Set[str] = set()
        self._hits = 0
        self._numbers: Dict[str, int] = {}

    def report(self) -> None:
        """Tell what is new. Asks the engine for its targets only when a function was hit for the first
        time, or Remote Configuration changed."""
        hits, hit = 0, set()
        for hook in sca_probe.hooks():
            count = hook.hits
            if count:
                hits += count
                hit.add(id(hook))
        numbers: Dict[str, Any] = sca_probe.stats()
        self._measure(numbers, hits)
        if hit - self._hit or numbers.get("updates") != self._updates:
            for target in registry.targets():
                self._report_target(target)
            self._hit, self._updates = hit, numbers.get("updates", -1)

    def _measure(self, numbers: Dict[str, Any], hits: int) -> None:
        if hits > self._hits:
            telemetry_writer.add_count_metric(TELEMETRY_NAMESPACE.APPSEC, "sca_probe.hits", hits - self._hits)
        self._hits = hits  # those of hooks that are gone are not in it
        for number, name in self.GAUGES.items():
            value = numbers.get(number, 0)
            if self._numbers.get(number) != value:
                telemetry_writer.add_gauge_metric(TELEMETRY_NAMESPACE.APPSEC, name, value)
                self._numbers[number] = value

    def _report_target(self, target: registry.Target) -> None:
        reached = target.hits > 0
        if reached and target.target not in self._logged:
            log.info("sca-probe: %s was called, first from %s", target.target, target.callers[:1])
            self._logged.add(target.target)
        if not target.package or not hasattr(telemetry_writer, "attach_dependency_metadata"):
            return  # before 4.x ddtrace has no such report
        path, symbol, line = _reached_from(target)
        for advisory in target.advisories:
            key = (target.package, advisory)
            if target.state != registry.REVERTED and key not in self._registered:
                telemetry_writer.register_cve_metadata(target.package, advisory)
                self._registered.add(key)
            if reached and key not in self._reached:
                telemetry_writer.attach_dependency_metadata(target.package, advisory, path, symbol, line)
                self._reached.add(key)


def _reached_from(target: registry.Target) -> Tuple[str, str, int]:
    """The first caller that is the application's own, as ddtrace's own SCA tells it, or else the first."""
    if not target.callers:
        module, _, qualname = target.target.partition(":")
        return module, qualname, 0
    own = [c for c in target.callers if "/site-packages/" not in c.path and "/dist-packages/" not in c.path]
    caller = (own or target.callers)[0]
    path = os.path.relpath(caller.path) if os.path.isabs(caller.path) else caller.path
    return (caller.path if path.startswith("..") else path), caller.symbol, caller.line
