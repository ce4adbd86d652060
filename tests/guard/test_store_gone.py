"""The store is gone for a minute, in the middle of a send: nothing is sent meanwhile, and nothing is forgotten."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrypolicy import Constant, Engine, RetryPolicy, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import AlreadyDone, LedgerUnavailable, SendHeld
from retrypolicy.guard import Ledger, Phase, PostgresLedger, RedisLedger, SQLiteLedger, recorder
from retrypolicy.guard.recorder import Recorder

from .servers import Postgres, Valkey, postgres, valkey

__all__ = ["postgres", "valkey"]

Store = tuple[Ledger, Callable[[], None], Callable[[], None]]


def _sqlite(request: pytest.FixtureRequest) -> Store:
    folder: Path = request.getfixturevalue("tmp_path") / "mounted"
    away = folder.with_name("away")
    folder.mkdir()
    return SQLiteLedger(folder / "sends.db"), lambda: void(folder.rename(away)), lambda: void(away.rename(folder))


def _valkey(request: pytest.FixtureRequest) -> Store:
    server: Valkey = request.getfixturevalue("valkey")
    return RedisLedger(server.url, prefix=f"{uuid.uuid4().hex}:", timeout=1.0), server.kill, server.start


def _postgres(request: pytest.FixtureRequest) -> Store:
    server: Postgres = request.getfixturevalue("postgres")
    return PostgresLedger(server.dsn, table=f"ledger_{uuid.uuid4().hex[:12]}", timeout=1.0), server.kill, server.start


def void(_: object) -> None:
    """Of what a path's methods return, nothing is needed."""


@pytest.fixture(params=[_sqlite, _valkey, _postgres], ids=["sqlite", "valkey", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    store: Store = request.param(request)
    yield store
    store[0].close()


class Still(Recorder):
    """Works only when told to."""

    def _work(self) -> None:
        pass


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Still()
    monkeypatch.setattr(recorder, "recorder", made)
    return made


def test_a_store_that_is_gone_for_a_minute(store: Store, still: Recorder) -> None:
    ledger, go_away, come_back = store
    clock = VirtualClock()
    engine = Engine(RetryPolicy(backoff=Constant(seconds=1.0)), ledger=ledger, clock=clock, secret="s")
    sent: list[str] = []

    def send(name: str, then: Callable[[], Any] = lambda: None) -> Any:
        def job() -> str:
            sent.append(name)
            then()
            return "sent"

        with operation(key=name):
            return engine.run(job)

    def times_out() -> None:
        raise TimeoutError

    def goes_and_times_out() -> None:
        go_away()
        times_out()

    assert send("before") == "sent"
    # Its answer is lost, and so is the word of that: armed for good, and held when its lease is over.
    with pytest.raises(TimeoutError) as caught:
        send("in doubt", goes_and_times_out)
    found = report(caught.value)
    assert found is not None
    assert found.recorded is False
    come_back()
    assert send("in the middle", go_away) == "sent"  # the caller gets its answer all the same

    for _ in range(6):
        for name in ("before", "in doubt", "in the middle", "after"):
            with pytest.raises(LedgerUnavailable):
                send(name)
        clock.advance(10)
    assert still.flush() > 0
    assert sent == ["before", "in doubt", "in the middle"]

    come_back()
    deadline = time.monotonic() + 30
    while still.flush():
        assert time.monotonic() < deadline
    for name in ("before", "in the middle"):
        with pytest.raises(AlreadyDone):
            send(name)
    (left,) = (record for record in ledger.records() if record.phase is not Phase.DONE)
    if left.phase is Phase.ARMED:
        assert ledger.expire(left.key, left.fence) or ledger.unknown(left.key, left.owner or b"", left.fence)
    with pytest.raises(SendHeld):
        send("in doubt")
    assert send("after") == "sent"
    assert sent == ["before", "in doubt", "in the middle", "after"]
