"""Short ways to say what a caller wants of a ledger."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from retrypolicy.guard.ledger import Ledger, Phase, Record, Take, Taken

OWNER, OTHER = b"A" * 16, b"B" * 16


def key(name: object = "one") -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def take(name: object = "one", owner: bytes = OWNER, **options: Any) -> Take:
    """A take with a token of its own, unless given."""
    defaults: dict[str, Any] = {"token": os.urandom(16), "fingerprint": b"f" * 32, "lease": 30.0}
    return Take(key=key(name), owner=owner, **(defaults | options))


def arm(ledger: Ledger, name: object = "one", owner: bytes = OWNER, **options: Any) -> Taken:
    taken = ledger.arm(take(name, owner, **options))
    assert isinstance(taken, Taken), taken
    return taken


def standing(ledger: Ledger, name: object = "one") -> Record:
    record, _ = ledger.read(key(name))
    assert record is not None
    return record


def phase(ledger: Ledger, name: object = "one") -> Phase | None:
    record, _ = ledger.read(key(name))
    return None if record is None else record.phase
