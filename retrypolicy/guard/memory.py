"""The ledger in memory: for tests, and for one process that may forget when it ends."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlsplit

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import RETENTION, Filter, Phase, Record, Refused, Take, Taken


class MemoryLedger:
    """Keeps records in this process; other processes and later starts know nothing of them.

    `retention` is how many seconds a settled record is kept.
    """

    durable = False

    def __init__(self, *, clock: Clock | None = None, retention: float = RETENTION) -> None:
        self._clock = clock or SystemClock()
        self._retention = retention
        self._records: dict[bytes, Record] = {}
        self._lock = threading.Lock()
        _alive.add(self)

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> MemoryLedger:
        """`memory:` or `memory:name`: one ledger for each name in this process, whoever asks for it.

        A ledger asked for with a clock or options of its own is not shared.
        """
        parts = urlsplit(url)
        if parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(f"ledger {url!r} is not allowed; must be memory: or memory:name")
        if clock is not None or options:
            return cls(clock=clock, **options)
        with _sharing:
            return _shared.setdefault(parts.path, cls())

    def arm(self, take: Take) -> Taken | Refused:
        key = take.key
        with self._lock:
            after, answer = transitions.arm(self._records.get(key), take, self._clock.now(), self._retention)
            if after is not None:
                self._records[key] = after
            return answer

    def claim(self, take: Take) -> Taken | Refused:
        with self._lock:
            before = self._records.get(take.key)
            after, answer = transitions.claim(before, take, self._clock.now(), self._retention)
            self._keep(take.key, after)
            return answer

    def read(self, key: bytes) -> tuple[Record | None, float]:
        with self._lock:
            now = self._clock.now()
            return transitions.live(self._records.get(key), now), now

    def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        with self._lock:
            before = self._records.get(key)
            now = self._clock.now()
            after = transitions.park(before, owner, fence, now, self._retention, lease=lease, not_before=not_before)
            return self._changed(key, before, after)

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        with self._lock:
            before = self._records.get(key)
            after = transitions.done(before, key, result, self._clock.now(), self._retention, provider=provider)
            self._records[key] = after
            return after is not before

    def reject(self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0) -> bool:
        with self._lock:
            before = self._records.get(key)
            now = self._clock.now()
            after = transitions.reject(before, owner, fence, now, self._retention, sure=sure, not_before=not_before)
            return self._changed(key, before, after)

    def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        with self._lock:
            before = self._records.get(key)
            return self._changed(key, before, transitions.unknown(before, owner, fence, not_before=not_before))

    def expire(self, key: bytes, fence: int) -> bool:
        with self._lock:
            before = self._records.get(key)
            return self._changed(key, before, transitions.expire(before, fence, self._clock.now()))

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        with self._lock:
            before = self._records.get(key)
            now = self._clock.now()
            after = transitions.resolve(before, fence, verdict, now, self._retention, quiet=quiet, result=result)
            return self._changed(key, before, after)

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008 - an immutable value
        with self._lock:
            now = self._clock.now()
            found = [record for record in self._records.values() if transitions.matches(record, where, now)]
        return iter(found)

    def counts(self) -> Mapping[Phase, int]:
        return Counter(record.phase for record in self.records())

    def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        with self._lock:
            now = self._clock.now()
            over = (key for key, record in self._records.items() if transitions.live(record, now) is None)
            keys = list(over if dry_run else islice(over, limit))  # the oldest stand first: it ends soon
            if not dry_run:
                for key in keys:
                    del self._records[key]
            return len(keys)

    def problems(self) -> list[str]:
        return ["a ledger in memory forgets everything when its process ends"]

    def close(self) -> None:
        """Nothing to release: the records live as long as the object."""

    def _changed(self, key: bytes, before: Record | None, after: Record | None) -> bool:
        self._keep(key, after)
        return after is not before

    def _keep(self, key: bytes, after: Record | None) -> None:
        if after is not None:
            self._records[key] = after

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it


_alive: weakref.WeakSet[MemoryLedger] = weakref.WeakSet()
_shared: dict[str, MemoryLedger] = {}
_sharing = threading.Lock()


def _start_anew() -> None:
    global _sharing
    _sharing = threading.Lock()
    for ledger in list(_alive):
        ledger._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
