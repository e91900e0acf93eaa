"""A WSGI service whose processes each say what became of the targets in them.

The answer has what the process itself counted since it first answered beside what the engine counted.
"""

import json
import os
import threading

import work

for _ in range(3):  # in a preloaded service these are calls in the parent: no child may count them
    work.old(1)

_lock = threading.Lock()  # counts are compared: nobody may call in between
_pid = None
_calls = {}


def state():
    """Call each function once, and say what became of it in this process."""
    global _pid, _calls
    import sca_probe

    with _lock:
        if _pid != os.getpid():
            _pid = os.getpid()
            _calls = {name: work.hits(name) for name in ("old", "new")}
            _calls["inherited"] = _calls["old"]
        for name in ("old", "new"):
            before = work.patched(name)
            getattr(work, name)(1)
            if before != work.patched(name):  # patched or reverted just now: before the call or after?
                _calls[name] = work.hits(name)
            elif before:
                _calls[name] += 1
        return {
            "pid": _pid,
            "engine": sca_probe.stats()["engine"],
            "old": work.patched("old"),
            "new": work.patched("new"),
            "inherited": _calls["inherited"],
            "late": sca_probe.stats().get("imports_late", 0),
            "calls": [_calls[name] for name in ("old", "new")],
            "hits": [work.hits(name) for name in ("old", "new")],
        }


def app(environ, start_response):
    """Answer every request with the state."""
    body = json.dumps(state()).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
