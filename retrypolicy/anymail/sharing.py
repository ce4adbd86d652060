"""One adapter for all backends of a process that are configured alike: its engine, and its connections to the provider.

Django makes a backend for each message. An adapter for each would cost as much as the rest of the message, and a new
TLS handshake on top.
"""

from __future__ import annotations

import os
from typing import Any

from retrypolicy.engine import mode
from retrypolicy.requests.adapter import RetryAdapter

_MOST = 64  # adapters, where configurations are made anew all the time
_CONNECTIONS = 64  # kept for each host: threads that send at once


class SharedAdapter(RetryAdapter):
    """An adapter that outlives its sessions: a connection waits `max_idle` seconds for the next message."""

    def close(self) -> None:
        """Nothing is closed: other sessions have it, too."""


def shared_adapter(options: dict[str, Any]) -> RetryAdapter:
    """The adapter for these options (`policy`, `ledger`, `provider`, `hosts`, `secret`). Raises what they deserve."""
    # Values without a hash count by identity: the adapter keeps them alive, so that no others get their ids.
    key = (mode(), *(_name(value) for value in options.values()))
    found = _shared.get(key)
    if found is None:
        if len(_shared) >= _MOST:
            _shared.clear()  # not closed: somebody may be sending
        found = _shared[key] = SharedAdapter(**options, pool_maxsize=_CONNECTIONS)
    return found


def _name(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value if value is None or isinstance(value, (str, bytes, tuple)) else id(value)


_shared: dict[tuple[Any, ...], SharedAdapter] = {}
_inherited: list[object] = []


def _after_fork() -> None:
    global _shared
    _inherited.append(_shared)  # not even freed: their connections are the parent's, and their locks may be held
    _shared = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
