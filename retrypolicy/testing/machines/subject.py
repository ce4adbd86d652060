"""A ledger under test, and what can be done to it from outside."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from retrypolicy.guard.ledger import RETENTION, Ledger


@frozen(kw_only=True)
class Subject:
    """A ledger under test: fresh and empty.

    advance: moves the time that the ledger reads by so many seconds, forward or back. None where it can't be moved (a
        server's clock): then only what is over at once, or not within the test, is tried.
    reopen: opens the same store again, as another process does while the first still has it open, or has died.
    close: called at the end.
    retention: seconds that the ledger keeps settled records.
    tolerance: seconds by which its times may differ from the model's, where its clock is not ours.
    threads: it may be called from several threads at once.
    """

    ledger: Ledger
    advance: Callable[[float], None] | None = None
    reopen: Callable[[], Ledger] | None = None
    close: Callable[[], None] = field(default=lambda: None)
    retention: float = RETENTION
    tolerance: float = 0.0
    threads: bool = True
