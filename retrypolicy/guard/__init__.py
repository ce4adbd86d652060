"""The guard: a durable record of sends, so that none whose outcome is unknown is repeated."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrypolicy.guard.key import Key as Key
    from retrypolicy.guard.ledger import Ledger as Ledger
    from retrypolicy.guard.ledger import Phase as Phase
    from retrypolicy.guard.ledger import Record as Record
    from retrypolicy.guard.memory import MemoryLedger as MemoryLedger
    from retrypolicy.guard.opening import open_ledger as open_ledger
    from retrypolicy.guard.postgres import PostgresLedger as PostgresLedger
    from retrypolicy.guard.redis import RedisLedger as RedisLedger
    from retrypolicy.guard.sqlite import SQLiteLedger as SQLiteLedger

__all__ = [
    "Key",
    "Ledger",
    "MemoryLedger",
    "Phase",
    "PostgresLedger",
    "Record",
    "RedisLedger",
    "SQLiteLedger",
    "open_ledger",
]

_HOMES = {
    "Key": "key",
    "Ledger": "ledger",
    "MemoryLedger": "memory",
    "Phase": "ledger",
    "PostgresLedger": "postgres",
    "Record": "ledger",
    "RedisLedger": "redis",
    "SQLiteLedger": "sqlite",
    "open_ledger": "opening",
}


def __getattr__(name: str) -> Any:
    # Lazily: a store's client library is loaded only where that store is used.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
