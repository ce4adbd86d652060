"""The ledger in Redis or Valkey for asyncio: the steps of `redis_steps`, over the clients' async side."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import Filter, Phase, Record
from retrypolicy.guard.redis import a_client, connect, split_options
from retrypolicy.guard.redis_steps import Batch, RedisSteps, is_a, is_current, record_of, text_of, unavailable
from retrypolicy.guard.stepped import AsyncSteppedLedger, Steps

T = TypeVar("T")

_PAGE = 500
_system = SystemClock()


class AsyncRedisLedger(AsyncSteppedLedger[RedisSteps]):
    """`RedisLedger` for asyncio: same arguments, with a URL or a client of `redis.asyncio` or `valkey.asyncio`.

    One made from a URL has connections of its own in each event loop; `close` ends those of the running one. With a
    cluster, what waits for replicas or for the disk needs the sync client: `to_async(RedisLedger(cluster))`.
    """

    def __init__(self, client_or_url: Any, **options: Any) -> None:
        self._steps = RedisSteps(**options)
        self._url = client_or_url if isinstance(client_or_url, str) else None
        self._given = a_client(connect(self._url, self._steps.timeout, ".asyncio") if self._url else client_or_url)
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> AsyncRedisLedger:
        """As `RedisLedger.from_url`."""
        url, found = split_options(url)
        return cls(url, clock=clock, **(found | options))

    async def records(self, where: Filter = Filter()) -> AsyncIterator[Record]:  # noqa: B008 - an immutable value
        async for record, now in self._scan():
            if transitions.matches(record, where, now):
                yield record

    async def counts(self) -> Mapping[Phase, int]:
        return Counter([record.phase async for record in self.records()])

    async def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        if self._steps.server_collects:
            return 0  # the server does it
        over = [record.key async for record, now in self._scan() if transitions.live(record, now) is None]
        return len(over) if dry_run else sum([await self._run(self._steps.purge(key)) for key in over[:limit]])

    async def close(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    @property
    def _client(self) -> Any:
        if self._url is None:
            return self._given
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = connect(self._url, self._steps.timeout, ".asyncio")
        return self._clients[loop]

    async def _scan(self) -> AsyncIterator[tuple[Record, float]]:
        names = self._client.scan_iter(match=self._steps.pattern, count=_PAGE)
        seen: set[str] = set()
        while True:
            page: list[str] = []
            try:
                async for name in names:
                    page.append(text_of(name))
                    if len(page) == _PAGE:
                        break
                pipeline = self._client.pipeline(transaction=False)
                for name in page:
                    pipeline.hgetall(name)
                found = await pipeline.execute() if page else []
            except Exception as error:
                raise unavailable(error) from error
            if not page:
                return
            keys = [bytes.fromhex(name.removeprefix(self._steps.prefix)) for name in page]
            _, now = await self.read(keys[0])
            for name, key, flat in zip(page, keys, found, strict=True):
                if is_current(flat):
                    record = record_of(key, [item for pair in flat.items() for item in pair])
                else:
                    record = (await self.read(key))[0]
                if record is not None and name not in seen:
                    seen.add(name)
                    yield record, now

    async def _run(self, steps: Steps[T], /) -> T:
        try:
            batch = next(steps)
            while True:
                batch = steps.send(await self._exchange(batch))
        except StopIteration as end:
            answer: T = end.value
            return answer
        except LedgerUnavailable:
            self._steps.checked = False
            raise

    async def _exchange(self, batch: Batch) -> list[Any]:
        if len(batch.commands) > 1 and hasattr(self._client, "get_node_from_key"):
            raise ConfigurationError(
                "ledger in Redis: with this cluster an arm must wait (wait_replicas, wait_aof), which its async client "
                "can't; use to_async(RedisLedger(cluster)) with a sync one"
            )
        give_up = _system.monotonic() + self._steps.timeout / 4
        try:
            return await self._send(batch)
        except Exception as error:
            # A connection from before the server's restart. What was said may be said again.
            if not is_a(error, "ConnectionError") or _system.monotonic() > give_up:
                raise unavailable(error) from error
        try:
            return await self._send(batch)
        except Exception as error:
            raise unavailable(error) from error

    async def _send(self, batch: Batch) -> list[Any]:
        client = self._client
        if len(batch.commands) == 1:
            try:
                return [await client.execute_command(*batch.commands[0])]
            except Exception as error:
                if not is_a(error, "ResponseError"):
                    raise
                return [error]
        pipeline = client.pipeline(transaction=False)
        for command in batch.commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies
