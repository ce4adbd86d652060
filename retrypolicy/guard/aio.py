"""Ledgers for asyncio, and any sync ledger in worker threads for asyncio and trio."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from retrypolicy.clock import Clock
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record, Refused, Take, Taken
from retrypolicy.guard.opening import open_ledger

if TYPE_CHECKING:
    from retrypolicy.guard.aio_postgres import AsyncPostgresLedger as AsyncPostgresLedger
    from retrypolicy.guard.aio_redis import AsyncRedisLedger as AsyncRedisLedger

T = TypeVar("T")

_PAGE = 500
_HOMES = {
    "AsyncPostgresLedger": "retrypolicy.guard.aio_postgres",
    "AsyncRedisLedger": "retrypolicy.guard.aio_redis",
}
_SCHEMES = {
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), "AsyncRedisLedger"),
    **dict.fromkeys(("postgres", "postgresql"), "AsyncPostgresLedger"),
}


class AsyncLedger(Protocol):
    """`retrypolicy.guard.ledger.Ledger` with coroutines. A cancelled arm may have happened: nothing is sent on it."""

    durable: bool

    async def arm(self, take: Take) -> Taken | Refused: ...
    async def claim(self, take: Take) -> Taken | Refused: ...
    async def read(self, key: bytes) -> tuple[Record | None, float]: ...
    async def park(
        self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0
    ) -> bool: ...
    async def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool: ...
    async def reject(
        self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0
    ) -> bool: ...
    async def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool: ...
    async def expire(self, key: bytes, fence: int) -> bool: ...
    async def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool: ...
    def records(self, where: Filter = Filter()) -> AsyncIterator[Record]: ...  # noqa: B008 - an immutable value
    async def counts(self) -> Mapping[Phase, int]: ...
    async def purge(self, limit: int = 500, *, dry_run: bool = False) -> int: ...
    async def problems(self) -> list[str]: ...
    async def close(self) -> None: ...


def open_async_ledger(url: str | Ledger, *, clock: Clock | None = None, **options: Any) -> AsyncLedger:
    """As `open_ledger`: Redis and PostgreSQL spoken to by asyncio, everything else in worker threads.

    Under trio use `to_async(open_ledger(url))` for those two as well.
    """
    name = _SCHEMES.get(url.partition(":")[0].lower()) if isinstance(url, str) else None
    if name is None:
        return to_async(open_ledger(url, clock=clock, **options))
    kind = getattr(import_module(_HOMES[name]), name)
    ledger: AsyncLedger = kind.from_url(url, clock=clock, **options)
    return ledger


def to_async(ledger: Ledger) -> AsyncLedger:
    """Any sync ledger, each operation in a worker thread (asyncio, or trio by way of anyio)."""
    return _ThreadedLedger(ledger)


class _ThreadedLedger:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.durable = ledger.durable

    async def arm(self, take: Take) -> Taken | Refused:
        return await _in_thread(self._ledger.arm, take)

    async def claim(self, take: Take) -> Taken | Refused:
        return await _in_thread(self._ledger.claim, take)

    async def read(self, key: bytes) -> tuple[Record | None, float]:
        return await _in_thread(self._ledger.read, key)

    async def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        return await _in_thread(self._ledger.park, key, owner, fence, lease=lease, not_before=not_before)

    async def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        return await _in_thread(self._ledger.done, key, result, provider=provider)

    async def reject(
        self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0
    ) -> bool:
        return await _in_thread(self._ledger.reject, key, owner, fence, sure=sure, not_before=not_before)

    async def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        return await _in_thread(self._ledger.unknown, key, owner, fence, not_before=not_before)

    async def expire(self, key: bytes, fence: int) -> bool:
        return await _in_thread(self._ledger.expire, key, fence)

    async def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return await _in_thread(self._ledger.resolve, key, fence, verdict, quiet=quiet, result=result)

    async def records(self, where: Filter = Filter()) -> AsyncIterator[Record]:  # noqa: B008 - an immutable value
        found = self._ledger.records(where)
        while page := await _in_thread(_next_page, found):
            for record in page:
                yield record

    async def counts(self) -> Mapping[Phase, int]:
        return await _in_thread(self._ledger.counts)

    async def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        return await _in_thread(self._ledger.purge, limit, dry_run=dry_run)

    async def problems(self) -> list[str]:
        return await _in_thread(self._ledger.problems)

    async def close(self) -> None:
        await _in_thread(self._ledger.close)


def _next_page(records: Iterator[Record]) -> list[Record]:
    return list(islice(records, _PAGE))


async def _in_thread(work: Callable[..., T], *args: Any, **options: Any) -> T:
    call = functools.partial(work, *args, **options)
    # anyio is the bridge to trio; an asyncio program need not have it installed.
    if "trio" in sys.modules:
        import anyio

        return await anyio.to_thread.run_sync(call)
    return await asyncio.to_thread(call)


def __getattr__(name: str) -> Any:
    # Lazily: a store's client library is loaded only where that store is used.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
