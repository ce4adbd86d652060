"""The ledger in PostgreSQL for asyncio: the steps of `postgres_steps`, over psycopg's async connections."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.guard.ledger import Filter, Phase, Record
from retrypolicy.guard.postgres import (
    MOST_IDLE,
    SLOW,
    a_pool,
    connector,
    may_repeat,
    split_options,
    unavailable,
    watched,
)
from retrypolicy.guard.postgres_steps import NotReplicated, PostgresSteps, Statement
from retrypolicy.guard.stepped import AsyncSteppedLedger, Steps

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

_system = SystemClock()


class AsyncPostgresLedger(AsyncSteppedLedger[PostgresSteps]):
    """`PostgresLedger` for asyncio: same arguments, with a connection string or a `psycopg_pool.AsyncConnectionPool`.

    One made from a string has connections of its own in each event loop; `close` ends those of the running one.
    """

    def __init__(self, dsn_or_pool: Any, *, prepare_threshold: int | None = 0, **options: Any) -> None:
        self._steps = PostgresSteps(**options)
        self._pool = None if isinstance(dsn_or_pool, str) else a_pool(dsn_or_pool)
        if self._pool is None:
            self._connect = connector(dsn_or_pool, prepare_threshold, self._steps.timeout, asynchronous=True)
        self._idle: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[psycopg.AsyncConnection[Any]]]
        self._idle = weakref.WeakKeyDictionary()

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> AsyncPostgresLedger:
        """As `PostgresLedger.from_url`."""
        url, found = split_options(url)
        return cls(url, clock=clock, **(found | options))

    async def records(self, where: Filter = Filter()) -> AsyncIterator[Record]:  # noqa: B008 - an immutable value
        last: bytes | None = b""
        while last is not None:
            found, last = await self._run(self._steps.page(where, last), SLOW)
            for record in found:
                yield record

    async def counts(self) -> Mapping[Phase, int]:
        return await self._run(self._steps.counts(), SLOW)

    async def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        return await self._run(self._steps.over() if dry_run else self._steps.purge(limit), SLOW)

    async def close(self) -> None:
        connections = self._idle.pop(asyncio.get_running_loop(), deque())
        while connections:
            await connections.pop().close()

    async def _run(self, steps: Steps[T], patience: float | None = None, /) -> T:
        deadline = _system.monotonic() + (patience or self._steps.timeout)
        try:
            statement = next(steps)
            while True:
                try:
                    rows = await self._exchange(statement, deadline)
                except NotReplicated as error:
                    statement = steps.throw(error)
                else:
                    statement = steps.send(rows)
        except StopIteration as end:
            answer: T = end.value
            return answer
        except NotReplicated as error:
            raise unavailable(error) from error

    async def _exchange(self, statement: Statement, deadline: float) -> list[tuple[Any, ...]]:
        from psycopg.waiting import wait_async

        tries = 0
        while True:
            tries += 1
            try:
                async with self._connection(deadline) as connection:
                    with watched(connection, deadline, wait_async):
                        text = statement.text.encode()
                        cursor = await connection.execute(text, statement.values, prepare=statement.prepare)
                        rows = await cursor.fetchall() if cursor.description else []
            except NotReplicated:
                raise
            except Exception as error:
                if not may_repeat(error, tries, deadline):
                    raise unavailable(error) from error
            else:
                return rows

    @asynccontextmanager
    async def _connection(self, deadline: float) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        if self._pool is not None:
            async with self._pool.connection(timeout=max(0.0, deadline - _system.monotonic())) as connection:
                # One statement is one transaction: without BEGIN and COMMIT it is one round trip.
                before = connection.autocommit
                await connection.set_autocommit(True)
                try:
                    yield connection
                except BaseException:
                    await connection.close()  # nobody knows what it is in the middle of
                    raise
                await connection.set_autocommit(before)
            return
        idle = self._idle.setdefault(asyncio.get_running_loop(), deque())
        connection = idle.pop() if idle else await self._connect()
        try:
            yield connection
        except BaseException:
            await connection.close()
            await self.close()  # the others are as old
            raise
        if len(idle) < MOST_IDLE:
            idle.append(connection)
        else:
            await connection.close()
