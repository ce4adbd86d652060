"""The ledger: what is kept of a key, and every operation that a store must offer.

Any object with these methods is a ledger. The meaning of each operation is the pure function of the same
name in `retrypolicy.guard.transitions`; a store makes it atomic and durable, and adds nothing to it.

Times are seconds since the epoch by the store's own clock. Keys and fingerprints are keyed digests, never the
caller's words; `label` is the caller's to keep clean; `result` holds a status and what the provider's profile
names (a message id), never a body.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from attrs import field, frozen

RETENTION = 14 * 86400.0
"""Seconds that a settled record is kept: longer than the longest redelivery of the queues in front."""

ARM_TIMEOUT = 2.0
"""Seconds that an operation may take before the ledger counts as unreachable (`LedgerUnavailable`)."""


class Phase(enum.IntEnum):
    """Where a key stands. The numbers are what stores write; they never change."""

    CLAIMED = 1  # a call between attempts; nothing unknown
    ARMED = 2  # an attempt is on the wire, or its owner died
    DONE = 3  # applied
    FAILED = 4  # the server refused, or it was resolved as not applied
    HELD = 5  # outcome unknown


COLLECTABLE = frozenset({Phase.CLAIMED, Phase.DONE, Phase.FAILED})
"""Phases whose records expire. Armed and held records are never collected."""


@frozen(kw_only=True, slots=False)  # a dict inside: a send copies its record twice, and this copies fastest
class Record:
    """What the ledger keeps of one key."""

    key: bytes
    phase: Phase
    taint: bool = False  # an earlier attempt's outcome is unknown
    fence: int = 1  # +1 at every arm and takeover
    generation: int = 1  # which outgoing key: +1 when a refused call comes again with other content
    owner: bytes | None = field(default=None, repr=False)  # the call that holds it
    token: bytes | None = field(default=None, repr=False)  # names the arm: tells its repeat from the next one
    lease: float = 0.0  # until when its owner is believed alive
    first_seen: float = 0.0
    first_armed: float | None = None
    last_armed: float | None = None
    attempts: int = 0
    not_before: float = 0.0
    fingerprint: bytes = field(default=b"", repr=False)
    result: Mapping[str, Any] | None = None
    label: str = ""
    provider: str = ""
    expires: float = 0.0


@frozen(kw_only=True)
class Take:
    """What a caller wants of a key: to put an attempt on the wire (`arm`), or to keep it for later (`claim`)."""

    key: bytes
    owner: bytes = field(repr=False)
    token: bytes = field(repr=False)
    fingerprint: bytes = field(repr=False)
    lease: float  # seconds
    generation: int = 1
    attempts: int = 1  # how many attempts to add (those that never reached an arm are added by the next one)
    window: float | None = None  # a held key may be armed while now < first_armed + window; None: never; inf: always
    not_before: float = 0.0  # claim only
    label: str = ""
    provider: str = ""


@frozen(kw_only=True, slots=False)  # made faster
class Taken:
    """The key is ours under this fence."""

    fence: int
    attempts: int  # over the whole call, this one included
    first_seen: float
    first_armed: float | None
    tainted: bool


@frozen(kw_only=True)
class Refused:
    """The key is not ours to take. `record` is what stood in the way, as of `now` (the store's clock)."""

    record: Record
    now: float


@frozen(kw_only=True)
class Filter:
    """Which records to list. Empty fields match everything; `older_than` is in seconds since first seen."""

    phases: frozenset[Phase] = frozenset()
    provider: str | None = None
    label: str | None = None  # a part of it
    older_than: float | None = None


class Ledger(Protocol):
    """A durable idempotency store on our side. Thread-safe; every operation is one atomic step.

    Every operation may be repeated after a lost reply without changing anything. Each raises
    `LedgerUnavailable` when the store can't be reached or refuses within `ARM_TIMEOUT`, and no other error.
    """

    durable: bool  # False: forgets when the process ends (memory)

    def arm(self, take: Take) -> Taken | Refused:
        """Before the first byte: returns `Taken` only when the record is on stable storage."""
        ...

    def claim(self, take: Take) -> Taken | Refused:
        """Keep the key between attempts (or, with lease 0, until `not_before`) without arming it."""
        ...

    def read(self, key: bytes) -> tuple[Record | None, float]:
        """The record (None: absent or expired), and the store's time."""
        ...

    def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        """The armed attempt is proven not applied and will be repeated. Lease 0 gives the key up."""
        ...

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        """Applied: believed from anyone, final. False if it was done already."""
        ...

    def reject(self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0) -> bool:
        """The server refused. On a tainted record it proves nothing unless `sure`."""
        ...

    def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        """The armed attempt may have been applied: held."""
        ...

    def expire(self, key: bytes, fence: int) -> bool:
        """An armed record whose lease is over becomes held."""
        ...

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Evidence for a held key. "not_applied" counts only `quiet` seconds after the last arm."""
        ...

    def records(self, where: Filter = Filter()) -> Iterator[Record]:
        """Records that match, in no particular order."""
        ...

    def counts(self) -> Mapping[Phase, int]:
        """How many records stand in each phase."""
        ...

    def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        """Delete up to `limit` expired records; returns how many. `dry_run`: only count all that there are."""
        ...

    def problems(self) -> list[str]:
        """Why this store can't promise durability, in words; empty when it can."""
        ...

    def close(self) -> None:
        """Release connections and files. A closed ledger opens again when used."""
        ...
