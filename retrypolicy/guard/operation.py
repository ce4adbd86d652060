"""operation(): names a call from outside the code that makes the request.

It is a ContextVar: threads of a pool do not inherit it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

from retrypolicy.errors import ConfigurationError, KeyReused, PolicyError
from retrypolicy.guard.key import Key, check_key, check_label
from retrypolicy.policy import RetryPolicy


class Operation:
    """What `operation` says, and what was bound to it so far."""

    def __init__(
        self,
        *,
        key: str | None,
        scope: str | None,
        policy: RetryPolicy | None,
        label: str,
        not_after: float | None,
    ) -> None:
        self.key = key
        self.scope = scope
        self.policy = policy
        self.label = label
        self.not_after = not_after
        self.yields = False  # to a key that stands in the request itself
        self.defers = True  # False: nobody comes back later, so that what would be a Defer ends the call
        self._bound: bytes | None = None
        self._seen: dict[bytes, int] = {}

    def key_for(self, content: bytes) -> Key | None:
        """The key of an unsafe request with this content. Raises `KeyReused` for a second request under one key."""
        if self.key is not None:
            if self._bound is None:
                self._bound = content
            elif self._bound != content:
                raise KeyReused(
                    "a second request was made inside one operation(key=...); nothing of it was sent. "
                    "Give each request an operation of its own, or use scope= in place of key="
                )
            return Key(value=self.key, label=self.label)
        if self.scope is not None:
            occurrence = self._seen.get(content, 0)
            self._seen[content] = occurrence + 1
            return Key.derived(self.scope, content, occurrence, self.label)
        return None


_current: ContextVar[Operation | None] = ContextVar("retrypolicy_operation", default=None)


def current_operation() -> Operation | None:
    """The innermost operation of this thread or task."""
    return _current.get()


@contextlib.contextmanager
def operation(
    key: str | None = None,
    *,
    policy: RetryPolicy | None = None,
    scope: str | None = None,
    label: str = "",
    not_after: float | None = None,
) -> Iterator[Operation]:
    """Name the call that is made inside, and give it a policy of its own.

    key: names the one unsafe request made inside (and what requests re-sends for it). The same call made again later,
        in another process or after a crash, must get the same key.
    scope: in place of a key, for code that makes several requests: one key per content and occurrence.
    label: for people, in lists of held keys; keep it free of addresses.
    not_after: wall-clock seconds since the epoch after which the call must not be sent any more.

    Raises `ConfigurationError` for a key that can't be one, or for both key and scope; `PolicyError` for the others.
    """
    if key is not None and scope is not None:
        raise ConfigurationError("operation: key and scope are not allowed together; give one of them")
    if key is not None:
        check_key(key)
    if scope is not None:
        check_key(scope)
    if policy is not None and not isinstance(policy, RetryPolicy):
        raise PolicyError.of("operation.policy", policy, "a RetryPolicy, or None")
    if not_after is not None and not _is_time(not_after):
        raise PolicyError.of("operation.not_after", not_after, "seconds since the epoch, or None")
    op = Operation(key=key, scope=scope, policy=policy, label=check_label(label), not_after=not_after)
    token = _current.set(op)
    try:
        yield op
    finally:
        _current.reset(token)


def _is_time(given: object) -> bool:
    return isinstance(given, (int, float)) and not math.isnan(given)
