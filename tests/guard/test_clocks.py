"""Clocks that are set while sends are under way: the machine's, or the store's own."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from retrypolicy import Constant, Engine, RetryPolicy, operation
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import RetryPolicyError, SendHeld
from retrypolicy.guard import Ledger, MemoryLedger, PostgresLedger, RedisLedger, SQLiteLedger, upkeep
from retrypolicy.guard.ledger import RETENTION, Phase, Refused, Taken
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer

from .servers import Postgres, Valkey, postgres, quick_valkey
from .takes import OTHER, OWNER, arm, key, phase, standing, take

__all__ = ["postgres", "quick_valkey"]

HOUR, YEAR = 3600.0, 365 * 86400.0
LEASE, WINDOW = 60.0, 10 * HOUR
BACK = [-1.0, -HOUR, -YEAR]
FORWARD = [1.0, HOUR, YEAR]


def _memory(clock: VirtualClock | None, request: pytest.FixtureRequest) -> Ledger:
    return MemoryLedger(clock=clock)


def _sqlite(clock: VirtualClock | None, request: pytest.FixtureRequest) -> Ledger:
    path: Path = request.getfixturevalue("tmp_path")
    return SQLiteLedger(path / "sends.db", clock=clock, durability="process")


def _valkey(clock: VirtualClock | None, request: pytest.FixtureRequest) -> Ledger:
    server: Valkey = request.getfixturevalue("quick_valkey")
    return RedisLedger(server.url, clock=clock, prefix=f"{uuid.uuid4().hex}:", allow_forgetful=True)


def _postgres(clock: VirtualClock | None, request: pytest.FixtureRequest) -> Ledger:
    server: Postgres = request.getfixturevalue("postgres")
    return PostgresLedger(server.dsn, clock=clock, table=f"ledger_{uuid.uuid4().hex[:12]}")


STORES = {"memory": _memory, "sqlite": _sqlite, "valkey": _valkey, "postgres": _postgres}
MACHINES_CLOCK = ["memory", "sqlite"]
SERVERS_CLOCK = ["valkey", "postgres"]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(start=1.7e9)


@pytest.fixture(params=STORES)
def ledger(request: pytest.FixtureRequest, clock: VirtualClock) -> Iterator[Ledger]:
    """A store whose own clock can be set."""
    ledger = STORES[request.param](clock, request)
    yield ledger
    ledger.close()


# -- the store's own clock is set


@pytest.mark.parametrize("jump", BACK + FORWARD)
def test_no_clock_permits_a_second_send(ledger: Ledger, clock: VirtualClock, jump: float) -> None:
    first = arm(ledger, lease=LEASE)
    clock.jump(jump)
    assert isinstance(ledger.arm(take(owner=OTHER)), Refused)
    assert isinstance(ledger.claim(take(owner=OTHER)), Refused)
    assert ledger.purge() == 0
    assert phase(ledger) is (Phase.HELD if jump > LEASE else Phase.ARMED)
    ledger.unknown(key(), OWNER, first.fence)
    clock.jump(-jump)
    assert isinstance(ledger.arm(take(owner=OTHER)), Refused)
    assert ledger.done(key(), {"status": 200})  # good news is believed whatever the clock says


@pytest.mark.parametrize("jump", BACK + FORWARD)
def test_what_is_armed_or_held_is_never_collected(ledger: Ledger, clock: VirtualClock, jump: float) -> None:
    arm(ledger, "armed", lease=LEASE)
    ledger.unknown(key("held"), OWNER, arm(ledger, "held").fence)
    for seconds in (jump, RETENTION, -jump, YEAR, -2 * YEAR):
        clock.jump(seconds)
        assert ledger.purge() == 0
        assert {record.key for record in ledger.records()} == {key("armed"), key("held")}


@pytest.mark.parametrize("jump", [*BACK, 1.0, HOUR, RETENTION - 1])
def test_a_done_record_stays_for_its_retention(ledger: Ledger, clock: VirtualClock, jump: float) -> None:
    arm(ledger)
    ledger.done(key(), {"status": 200})
    clock.jump(jump)
    assert ledger.purge() == 0
    answer = ledger.arm(take(owner=OTHER))
    assert isinstance(answer, Refused)
    assert answer.record.phase is Phase.DONE


def test_a_clock_ahead_by_the_retention_forgets_what_is_done(ledger: Ledger, clock: VirtualClock) -> None:
    """The one thing for which a clock is needed: docs/guard.md says so, and what to do."""
    arm(ledger)
    ledger.done(key(), {"status": 200})
    clock.jump(RETENTION + 1)
    assert isinstance(ledger.arm(take(owner=OTHER)), Taken)


@pytest.mark.parametrize("jump", BACK)
def test_a_dead_owner_under_a_clock_that_was_set_back(ledger: Ledger, clock: VirtualClock, jump: float) -> None:
    arm(ledger, lease=LEASE)
    clock.advance(LEASE / 2)
    clock.jump(jump)
    assert phase(ledger) is Phase.ARMED
    assert upkeep.release(ledger, standing(ledger), by="alice").after is Phase.HELD
    assert isinstance(ledger.arm(take(owner=OTHER)), Refused)


@pytest.mark.parametrize(
    ("jump", "open_"),
    [(-YEAR, False), (-HOUR, False), (-1.0, False), (1.0, True), (WINDOW - 1, True), (WINDOW, False), (YEAR, False)],
)
def test_the_window_of_a_key(ledger: Ledger, clock: VirtualClock, jump: float, open_: bool) -> None:
    """A clock that stands before the last arm was set back: nobody knows how much of the window is left."""
    ledger.unknown(key(), OWNER, arm(ledger).fence)
    clock.jump(jump)
    answer = ledger.arm(take(owner=OTHER, window=WINDOW))
    assert isinstance(answer, Taken) is open_
    if isinstance(answer, Refused):
        assert answer.record.phase is Phase.HELD


def test_the_window_counts_from_the_first_arm_whatever_was_armed_since(ledger: Ledger, clock: VirtualClock) -> None:
    ledger.unknown(key(), OWNER, arm(ledger).fence)
    clock.jump(WINDOW - 10)
    ledger.unknown(key(), OTHER, arm(ledger, owner=OTHER, window=WINDOW).fence)
    clock.jump(-HOUR)
    assert isinstance(ledger.arm(take(window=WINDOW)), Refused)  # before the last arm
    clock.jump(HOUR + 20)
    assert isinstance(ledger.arm(take(window=WINDOW)), Refused)  # after the window of the first


@pytest.mark.parametrize("seed", range(8))
def test_redeliveries_among_jumps(ledger: Ledger, clock: VirtualClock, seed: int) -> None:
    """Calls that end in every way, workers that die, and a clock that nobody can rely on."""
    chance = random.Random(seed)
    applied: dict[str, int] = {}
    engine = Engine(RetryPolicy(backoff=Constant(seconds=1.0)), ledger=ledger, clock=clock, secret="s")

    def job(name: str) -> str:
        end = chance.choice(["done", "lost", "never sent", "killed"])
        if end == "never sent":
            raise ConnectionRefusedError
        applied[name] = applied.get(name, 0) + 1
        if end == "lost":
            raise TimeoutError
        if end == "killed":
            raise Killed
        return "sent"

    for _ in range(30):
        clock.jump(chance.choice([0, 0, 1, LEASE, HOUR, -1, -LEASE, -HOUR, RETENTION / 50]))
        name = chance.choice("abc")
        try:
            with operation(key=name):
                engine.run(job, name)
        except (OSError, RetryPolicyError, Killed):
            pass
        if not chance.randrange(5):
            ledger.purge()
    assert applied
    assert set(applied.values()) == {1}


class Killed(BaseException):
    """The worker dies, and settles nothing."""


# -- the machine's clock is set


def _set_machine(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)


@pytest.mark.parametrize("jump", [-YEAR, -HOUR, HOUR, YEAR])
@pytest.mark.parametrize("store", SERVERS_CLOCK)
def test_a_server_goes_by_its_own_clock(
    store: str, jump: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = STORES[store](None, request)
    arm(ledger, "armed", lease=LEASE)
    ledger.unknown(key("held"), OWNER, arm(ledger, "held").fence)
    arm(ledger, "done")
    ledger.done(key("done"), {"status": 200})
    before = {name: standing(ledger, name) for name in ("armed", "held", "done")}
    _set_machine(monkeypatch, jump)
    assert isinstance(ledger.arm(take("armed", OTHER)), Refused)
    assert ledger.purge() == 0
    assert {name: standing(ledger, name) for name in before} == before
    assert isinstance(ledger.arm(take("held", OTHER, window=WINDOW)), Taken)  # its window is open as ever
    assert abs(upkeep.time_of(ledger) + jump - time.time()) < HOUR / 2
    ledger.close()


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
@pytest.mark.parametrize("store", MACHINES_CLOCK)
def test_a_store_on_this_machine_goes_by_its_clock(
    store: str, jump: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = STORES[store](None, request)
    arm(ledger, lease=LEASE)
    _set_machine(monkeypatch, jump)
    assert isinstance(ledger.arm(take(owner=OTHER)), Refused)
    assert phase(ledger) is (Phase.HELD if jump > 0 else Phase.ARMED)
    assert abs(upkeep.time_of(ledger) - time.time()) < HOUR / 2
    ledger.close()


@pytest.mark.parametrize("whose", ["ledger", "machine"])
@pytest.mark.parametrize("left", [10.0, -10.0])
def test_both_clocks_must_find_the_window_open(whose: str, left: float) -> None:
    clocks = {"ledger": VirtualClock(), "machine": VirtualClock()}
    provider = Provider(
        name="made-up", hosts=("127.0.0.1",), key=KeyPlacement(header="X-Key", window=WINDOW, margin=100.0)
    )
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        mount(
            session, RetryPolicy(max_attempts=1), ledger=MemoryLedger(clock=clocks["ledger"]), secret="s",
            provider=provider, clock=clocks["machine"],
        )  # fmt: skip
        with pytest.raises(requests.ConnectionError), operation(key="k"):
            session.post(server.url(), data=b"x")
        clocks[whose].jump(WINDOW - 100.0 - left)
        with operation(key="k"):
            if left > 0:
                assert session.post(server.url(), data=b"x").status_code == 200
            else:
                with pytest.raises(SendHeld):
                    session.post(server.url(), data=b"x")
        assert server.complete == (2 if left > 0 else 1)
