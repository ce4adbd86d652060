"""Async ledgers: each store by its own async client, and any other in worker threads."""

from __future__ import annotations

import asyncio
import inspect
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import pytest

from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard.aio import AsyncLedger, AsyncPostgresLedger, AsyncRedisLedger, open_async_ledger, to_async
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record, Refused, Taken
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.guard.sqlite import SQLiteLedger
from retrypolicy.testing.machines import LedgerMachine, Subject
from tests.scaling import stateful

from .servers import Postgres, Valkey, postgres, quick_valkey, valkey
from .takes import OTHER, OWNER, key, take

__all__ = ["postgres", "quick_valkey", "valkey"]

_OPERATIONS = ["arm", "claim", "read", "park", "done", "reject", "unknown", "expire", "resolve", "counts", "purge",
               "problems", "close"]  # fmt: skip


class Driven:
    """An async ledger behind the sync protocol, for the model: one event loop, one operation at a time."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self.durable = ledger.durable
        self._ledger = ledger
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._ledger, name)
        return lambda *args, **options: self._runner.run(operation(*args, **options))

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008
        async def collect() -> list[Record]:
            return [record async for record in self._ledger.records(where)]

        return iter(self._runner.run(collect()))

    def counts(self) -> Mapping[Phase, int]:
        counts: Mapping[Phase, int] = self._runner.run(self._ledger.counts())
        return counts

    def end(self) -> None:
        self._runner.run(self._ledger.close())
        self._runner.close()


_running: list[Any] = []


@pytest.fixture(autouse=True, scope="module")
def _servers(quick_valkey: Valkey, postgres: Postgres) -> None:
    _running[:] = [quick_valkey, postgres]


def _redis() -> Subject:
    clock = VirtualClock()
    with _running[0].client() as client:
        client.flushdb()
    driven: Any = Driven(AsyncRedisLedger(_running[0].url, clock=clock, allow_forgetful=True))
    return Subject(ledger=driven, advance=clock.jump, close=driven.end, threads=False)


def _postgres() -> Subject:
    clock = VirtualClock()
    with psycopg.connect(_running[1].dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS async_machine")
    driven: Any = Driven(AsyncPostgresLedger(_running[1].dsn, clock=clock, table="async_machine"))
    return Subject(ledger=driven, advance=clock.jump, close=driven.end, threads=False)


def _threads() -> Subject:
    clock = VirtualClock()
    driven: Any = Driven(to_async(MemoryLedger(clock=clock)))
    return Subject(ledger=driven, advance=clock.jump, close=driven.end, threads=False)


class RedisAgainstTheModel(LedgerMachine):
    open = staticmethod(_redis)


TestRedisAgainstTheModel = RedisAgainstTheModel.TestCase
TestRedisAgainstTheModel.settings = stateful(10, 20)


class PostgresAgainstTheModel(LedgerMachine):
    open = staticmethod(_postgres)


TestPostgresAgainstTheModel = PostgresAgainstTheModel.TestCase
TestPostgresAgainstTheModel.settings = stateful(8, 20)


class ThreadsAgainstTheModel(LedgerMachine):
    open = staticmethod(_threads)


TestThreadsAgainstTheModel = ThreadsAgainstTheModel.TestCase
TestThreadsAgainstTheModel.settings = stateful(10, 20)


# -- all of them


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def opened(
    request: pytest.FixtureRequest, valkey: Valkey, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncLedger:
    unique = uuid.uuid4().hex[:12]
    urls = {
        "memory": f"memory:{unique}",
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('aio')}/ledger.db",
        "redis": f"{valkey.url}?prefix={unique}:",
        "postgres": f"{postgres.url}&table=t{unique}",
    }
    return open_async_ledger(urls[request.param])


def test_every_operation_is_a_coroutine_function(opened: AsyncLedger) -> None:
    for name in _OPERATIONS:
        assert inspect.iscoroutinefunction(getattr(opened, name)), name
    assert inspect.isasyncgenfunction(opened.records)


async def _life(ledger: AsyncLedger) -> None:
    first = await ledger.arm(take(label="order 1"))
    assert isinstance(first, Taken)
    assert isinstance(await ledger.arm(take(owner=OTHER)), Refused)
    assert await ledger.park(key(), OWNER, first.fence, lease=5)
    second = await ledger.arm(take())
    assert isinstance(second, Taken)
    assert not await ledger.reject(key(), OWNER, first.fence)
    assert await ledger.unknown(key(), OWNER, second.fence)
    assert await ledger.resolve(key(), second.fence, "not_applied", result={"how": "by hand"})
    assert isinstance(await ledger.claim(take(owner=OTHER)), Taken)
    assert await ledger.done(key(), {"status": 200}, provider="resend")
    assert [record.result async for record in ledger.records(Filter(label="order"))] == [{"status": 200}]
    assert dict(await ledger.counts()) == {Phase.DONE: 1}
    assert await ledger.purge() == 0
    assert isinstance(await ledger.problems(), list)
    record, now = await ledger.read(key())
    assert record is not None
    assert record.first_seen <= now
    answers = await asyncio.gather(*(ledger.arm(take("many", owner=bytes([n]) * 16)) for n in range(20)))
    assert sum(isinstance(answer, Taken) for answer in answers) == 1


def test_a_life_under_asyncio(opened: AsyncLedger) -> None:
    async def live() -> None:
        await _life(opened)
        await opened.close()
        await opened.arm(take("again"))  # a closed ledger opens again
        await opened.close()

    asyncio.run(live())


def test_one_ledger_in_two_event_loops(opened: AsyncLedger) -> None:
    async def once(name: str) -> None:
        assert isinstance(await opened.arm(take(name)), Taken)
        await opened.close()

    asyncio.run(once("first loop"))
    asyncio.run(once("second loop"))


def test_threads_serve_trio(tmp_path: Any) -> None:
    trio = pytest.importorskip("trio")
    ledger = to_async(SQLiteLedger(tmp_path / "ledger.db"))

    async def live() -> list[Record]:
        assert isinstance(await ledger.arm(take()), Taken)
        assert await ledger.done(key(), {"status": 200})
        found = [record async for record in ledger.records()]
        await ledger.close()
        return found

    assert [record.phase for record in trio.run(live)] == [Phase.DONE]


def test_a_cancelled_arm_leaves_the_ledger_usable(opened: AsyncLedger) -> None:
    async def live() -> None:
        await opened.arm(take("warm"))
        task = asyncio.create_task(opened.arm(take("cancelled")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])  # whether it was still in time or not
        assert isinstance(await opened.arm(take("next")), Taken)
        assert await opened.done(key("next"), {})
        await opened.close()

    asyncio.run(live())


# -- trouble


def test_servers_that_hang_are_unavailable_in_time(valkey: Valkey, postgres: Postgres) -> None:
    ledgers: list[tuple[Valkey | Postgres, AsyncLedger]] = [
        (valkey, AsyncRedisLedger(valkey.url, timeout=0.5, prefix="aio-hang:")),
        (postgres, AsyncPostgresLedger(postgres.dsn, timeout=0.5, table=f"t{uuid.uuid4().hex[:12]}")),
    ]

    async def live(server: Valkey | Postgres, ledger: AsyncLedger) -> None:
        await ledger.arm(take("warm"))
        server.signal(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                await ledger.arm(take())
            assert time.monotonic() - begin < 5
        finally:
            server.signal(signal.SIGCONT)
        assert await ledger.done(key("warm"), {})
        await ledger.close()

    for server, ledger in ledgers:
        asyncio.run(live(server, ledger))


def test_servers_that_restart_are_not_noticed(valkey: Valkey, postgres: Postgres) -> None:
    async def live(server: Valkey | Postgres, ledger: AsyncLedger) -> None:
        await ledger.arm(take("warm"))
        server.kill()
        server.start()
        assert await ledger.done(key("warm"), {})
        await ledger.close()

    asyncio.run(live(valkey, AsyncRedisLedger(valkey.url, prefix="aio-restart:")))
    asyncio.run(live(postgres, AsyncPostgresLedger(postgres.dsn, table=f"t{uuid.uuid4().hex[:12]}")))


def test_a_forgetful_server_is_refused(quick_valkey: Valkey) -> None:
    async def live() -> None:
        ledger = AsyncRedisLedger(quick_valkey.url)
        with pytest.raises(ConfigurationError, match="appendonly"):
            await ledger.arm(take())
        await ledger.close()

    asyncio.run(live())


def test_clients_of_the_callers(valkey: Valkey, postgres: Postgres) -> None:
    import redis.asyncio

    pools = pytest.importorskip("psycopg_pool")

    async def live() -> None:
        client = redis.asyncio.Redis(port=valkey.port, decode_responses=True)
        await _life(AsyncRedisLedger(client, prefix="aio-client:", wait_aof=True))
        await client.aclose()
        async with pools.AsyncConnectionPool(postgres.dsn, min_size=1, max_size=2, open=False) as pool:
            await _life(AsyncPostgresLedger(pool, table=f"t{uuid.uuid4().hex[:12]}"))
            async with pool.connection() as mine:
                assert mine.autocommit is False

    asyncio.run(live())


def test_a_ledger_object_is_served_by_threads() -> None:
    inner: Ledger = MemoryLedger()
    ledger = open_async_ledger(inner)
    assert ledger.durable is False
    asyncio.run(_life(ledger))
    assert inner.counts()[Phase.DONE] == 1
