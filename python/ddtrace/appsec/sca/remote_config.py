"""Where the engine's configurations come from: ddtrace's Remote Configuration, and its bundled list.

One poller, ddtrace's, serves both. What it delivers is handed to the engine, which decides what it means;
what became of it goes back the same way.
"""

import json
import mmap
import os
import struct
from typing import Any
from typing import Dict
from typing import List
from typing import Optional
from typing import Tuple

import sca_probe

from ddtrace.appsec.sca import config
from ddtrace.internal import forksafe
from ddtrace.internal.logger import get_logger


log = get_logger(__name__)

#: A payload by the path of its configuration; None for one that was withdrawn.
Changes = Dict[str, Optional[bytes]]

BUNDLED_PATH = "ddtrace/bundled-targets"


class Unavailable(Exception):
    """ddtrace's Remote Configuration cannot be subscribed to safely. Its text is the reason."""


class Configurations:
    """All configurations that there are, which the engine has while the gate is open."""

    def __init__(self) -> None:
        self._lock = forksafe.Lock()
        self._payloads: Dict[str, bytes] = {}
        self._refused: Dict[str, str] = {}  # those that the engine would not take at all
        self._open = False

    def change(self, changes: Changes) -> None:
        """Take changes, as one update."""
        with self._lock:
            for path, payload in changes.items():
                if payload is None:
                    self._payloads.pop(path, None)
                else:
                    self._payloads[path] = payload
            if self._open:
                self._push(changes)

    def set_open(self, is_open: bool) -> None:
        """Hand everything to the engine, or withdraw it, as the gate opens or closes."""
        with self._lock:
            if is_open == self._open:
                return
            self._open = is_open
            if is_open:
                self._push(dict(self._payloads))
            else:
                self._push(dict.fromkeys(self._payloads))

    def _push(self, changes: Changes) -> None:
        for path in changes:
            self._refused.pop(path, None)
        try:
            sca_probe.push(changes)
        except ValueError as error:
            log.warning("sca-probe: Remote Configuration was refused: %s", error)
            self._refused.update((path, str(error)) for path, payload in changes.items() if payload is not None)

    def states(self) -> Dict[str, Tuple[int, str]]:
        """What became of each configuration: its apply state and the error."""
        states = dict(sca_probe.states())
        states.update((path, (sca_probe.ERROR, error)) for path, error in self._refused.items())
        return states


class Subscription:
    """A subscription to ddtrace's Remote Configuration, for this process and those that it forks."""

    def __init__(self, configurations: Configurations) -> None:
        self._configurations = configurations
        self._told: Dict[str, Tuple[int, str]] = {}

    def report(self) -> None:
        """Tell the Agent what became of the configurations, where this process is the one that polls."""
        if not _poller()._enable:  # ddtrace clears it in forked children
            return
        states = self._configurations.states()
        for path, (state, error) in states.items():
            if state != sca_probe.UNACKNOWLEDGED and self._told.get(path) != (state, error):
                self._tell(path, state, error)
                self._told[path] = (state, error)
        for path in set(self._told) - set(states):
            del self._told[path]

    def _tell(self, path: str, state: int, error: str) -> None:
        raise NotImplementedError


def subscribe(configurations: Configurations) -> Subscription:
    """Subscribe to the product. Raises Unavailable, and then leaves ddtrace as it was."""
    import ddtrace

    if not ddtrace.config._remote_config_enabled:
        raise Unavailable("DD_REMOTE_CONFIGURATION_ENABLED switches it off")
    try:
        poller = _poller()
        if not poller._enable:
            raise Unavailable("this process was forked before the subscription, so ddtrace does not poll for it")
        subscription = (_native if config.line() >= 4 else _publishing)(configurations, config.product())
    except (ImportError, AttributeError, TypeError) as error:
        raise Unavailable("this ddtrace's Remote Configuration is not as known: %s" % error)
    return subscription


def starts_later() -> bool:
    """Whether ddtrace's client is still to start. By subscribing before, it would start here and not where ddtrace wants it."""
    import ddtrace
    from ddtrace.internal.service import ServiceStatus

    poller = _poller()
    return bool(ddtrace.config._remote_config_enabled and poller._enable and poller.status is not ServiceStatus.RUNNING)


def _poller() -> Any:
    from ddtrace.internal.remoteconfig.worker import remoteconfig_poller

    return remoteconfig_poller


def _native(configurations: Configurations, name: str) -> Subscription:
    """ddtrace 4.x: a native client with a closed list of products, and one callback for each."""
    from ddtrace.internal.native import RemoteConfigProduct
    from ddtrace.internal.remoteconfig import RCCallback

    products = {str(product): product for product in vars(RemoteConfigProduct).values() if type(product) is RemoteConfigProduct}
    if name not in products:
        raise Unavailable("its list of products has no %s, only %s" % (name, ", ".join(sorted(products))))
    product, poller = products[name], _poller()
    if poller.get_registered(product) is not None:
        raise Unavailable("something else has subscribed to %s" % name)

    class Callback(RCCallback):
        def __call__(self, payloads: Any) -> None:
            configurations.change({p.path: _payload(p.content) for p in payloads})

    class NativeSubscription(Subscription):
        def _tell(self, path: str, state: int, error: str) -> None:
            native = poller._client._native
            if native is not None:
                native.set_config_state(path, error or None)

    callback = Callback()
    poller.register_callback(product, callback)
    if poller.get_registered(product) is not callback:  # errors of the registration are ddtrace's to log
        raise Unavailable("subscribing to %s failed" % name)
    poller.enable_product(product)
    return NativeSubscription(configurations)


def _payload(content: Any) -> Optional[bytes]:
    """ddtrace hands over parsed JSON: None, or False in 2.x, for a configuration that was withdrawn."""
    return None if content is None or content is False else json.dumps(content).encode()


class _Shared:
    """All configurations, in memory that forked children share with the process that polls.

    ddtrace's own connector holds the last changes only, up to 1 MiB.
    """

    SIZE = 8 << 20
    HEADER = struct.Struct("QQ")  # a number that is odd while the text is written; the text's length

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.SIZE)
        self._seen = 0
        self._pid = os.getpid()

    def write(self, payloads: Dict[str, bytes]) -> None:
        """Raises ValueError when it is too much."""
        text = json.dumps({path: payload.decode() for path, payload in payloads.items()}).encode()
        if len(text) > self.SIZE - self.HEADER.size:
            raise ValueError("%d bytes of configurations are more than the limit of %d" % (len(text), self.SIZE))
        turn, length = self.HEADER.unpack_from(self._memory)
        self.HEADER.pack_into(self._memory, 0, turn + 1, length)
        self._memory[self.HEADER.size : self.HEADER.size + len(text)] = text
        self.HEADER.pack_into(self._memory, 0, turn + 2, len(text))

    def read(self) -> Optional[Dict[str, bytes]]:
        """Everything, or None when that is what the last read in this process returned."""
        if self._pid != os.getpid():
            self._pid, self._seen = os.getpid(), 0
        turn, length = self.HEADER.unpack_from(self._memory)
        if turn == self._seen or turn % 2:
            return None
        text = self._memory[self.HEADER.size : self.HEADER.size + length]
        if self.HEADER.unpack_from(self._memory)[0] != turn:
            return None  # overtaken: at the next look
        self._seen = turn
        return {path: payload.encode() for path, payload in json.loads(text.decode()).items()}


def _publishing(configurations: Configurations, name: str) -> Subscription:
    """ddtrace 2.x and 3.x: the process that polls publishes, and a thread in each process subscribes."""
    from ddtrace.internal.remoteconfig._pubsub import PubSub
    from ddtrace.internal.remoteconfig._subscribers import RemoteConfigSubscriber

    poller = _poller()
    if poller.get_registered(name) is not None:
        raise Unavailable("something else has subscribed to %s" % name)

    class Subscriber(RemoteConfigSubscriber):
        known: List[str] = []

        def _get_data_from_connector_and_exec(self, *_: Any, **__: Any) -> None:
            payloads = self._data_connector.read()
            if payloads is not None:
                changes: Changes = dict.fromkeys(self.known)
                changes.update(payloads)
                self.known = list(payloads)
                configurations.change(changes)

    class Publishing(PubSub):
        def __init__(self) -> None:
            self.shared = _Shared()
            self.payloads: Dict[str, bytes] = {}
            self.metadata: Dict[str, Any] = {}
            self._subscriber = Subscriber(self.shared, configurations.change, "sca-probe")

        def append(self, config_content: Any, target: str, config_metadata: Any) -> None:
            payload = _payload(config_content)
            if payload is None:
                self.payloads.pop(target, None)
                self.metadata.pop(target, None)
            else:
                self.payloads[target] = payload
                self.metadata[target] = config_metadata

        def publish(self) -> None:
            try:
                self.shared.write(self.payloads)
            except ValueError as error:
                for path in self.metadata:
                    self.set_state(path, sca_probe.ERROR, str(error))

        def set_state(self, path: str, state: int, error: str) -> None:
            # What ddtrace sends with its next request. It has called it acknowledged already.
            metadata = self.metadata.get(path)
            if metadata is not None:
                metadata.apply_state, metadata.apply_error = state, error or None

    class PublishingSubscription(Subscription):
        def _tell(self, path: str, state: int, error: str) -> None:
            publishing.set_state(path, state, error)

    publishing = Publishing()
    poller.register(name, publishing, skip_enabled=True, restart_on_fork=True)  # it starts by itself, or has
    if poller.get_registered(name) is not publishing:
        raise Unavailable("subscribing to %s failed" % name)
    return PublishingSubscription(configurations)


def bundled_targets() -> Optional[bytes]:
    """A payload of those functions in ddtrace's bundled list that the installed versions have, if any.

    The list and the judgement of versions are ddtrace's own, as they are on this machine.
    """
    try:
        from importlib.metadata import distributions

        from ddtrace.appsec.sca._cve_loader import load_cve_targets
    except ImportError:
        log.warning("sca-probe: %s is set, and this ddtrace has no bundled list of targets", config.BUNDLED_VARIABLE)
        return None
    installed = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
    targets = [
        {"target": target, "package": entry["dependency_name"], "advisories": [entry["id"]], "mode": "first_hit"}
        for entry in load_cve_targets(installed)
        for target in entry["targets"]
    ]
    return json.dumps({"sca_instrumentation": {"targets": targets}}).encode() if targets else None
