"""For people's unit tests: time that nobody waits for, waits cut short, and what became of every call."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from typing import Any

import pytest
import requests

from retrypolicy import Constant, Effect, Engine, Exponential, Reason, RetryPolicy, operation
from retrypolicy.errors import SendHeld
from retrypolicy.guard import MemoryLedger
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, FaultServer, Reset, VirtualClock, capped, deactivated, watched

SLOW = RetryPolicy(max_attempts=3, max_wait=3600, backoff=Constant(seconds=900))


def failing(times: int) -> Any:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise ConnectionError
        return f"done after {len(calls)}"

    return work


def test_a_virtual_wait_takes_no_time() -> None:
    clock = VirtualClock()
    assert Engine(SLOW, clock=clock).run(failing(2), idempotent=True) == "done after 3"
    assert clock.sleeps == [900, 900]
    assert clock.monotonic() == 1800


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_coroutines_wait_virtually_and_others_get_their_turn(library: str) -> None:
    clock = VirtualClock()
    order: list[str] = []

    async def call(name: str) -> None:
        work = failing(1)

        async def attempt() -> None:
            order.append(name)
            work()

        await Engine(SLOW, clock=clock).run_async(attempt, idempotent=True)

    async def with_trio() -> None:
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "one")
            nursery.start_soon(call, "other")

    async def with_asyncio() -> None:
        await asyncio.gather(call("one"), call("other"))

    if library == "trio":
        pytest.importorskip("trio").run(with_trio)
    else:
        asyncio.run(with_asyncio())
    assert clock.sleeps == [900, 900]
    assert set(order[:2]) == {"one", "other"}


def test_a_virtual_sleep_ends_when_it_is_woken() -> None:
    clock, wake = VirtualClock(), threading.Event()
    wake.set()
    assert clock.sleep(3600, wake)
    assert clock.sleeps == []


def test_a_seeded_source_gives_the_same_waits() -> None:
    def waits(seed: int) -> list[float]:
        clock = VirtualClock()
        policy = RetryPolicy(max_attempts=6, backoff=Exponential(jitter="full"))
        with pytest.raises(ConnectionError):
            Engine(policy, clock=clock, random=random.Random(seed).random).run(failing(9), idempotent=True)
        return clock.sleeps

    assert waits(7) == waits(7) != waits(8)


def test_capped_waits_are_not_slept_and_all_else_is_as_decided() -> None:
    with FaultServer([Answer(503), Answer(503), Answer(200)]) as server, requests.Session() as session:
        mount(session, SLOW)
        start = time.monotonic()
        with capped(), watched() as reports:
            assert session.get(server.url()).status_code == 200
        assert time.monotonic() - start < 60
        assert server.complete == 3
    assert reports[0].waits == (900, 900)


def test_capped_coroutines() -> None:
    async def attempt() -> str:
        result: str = work()
        return result

    work = failing(2)
    with capped(0.001):
        assert asyncio.run(Engine(SLOW).run_async(attempt, idempotent=True)) == "done after 3"


def test_capped_caps_a_virtual_clock_too_and_ends_with_the_block() -> None:
    clock = VirtualClock()
    engine = Engine(SLOW, clock=clock)
    with capped(5):
        with capped(1):
            engine.run(failing(1), idempotent=True)
        engine.run(failing(1), idempotent=True)
    engine.run(failing(1), idempotent=True)
    assert clock.sleeps == [1, 5, 900]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1s", None, True])
def test_a_cap_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"capped\.seconds"), capped(seconds):
        pass


def test_every_call_is_told_refusals_included() -> None:
    clock = VirtualClock()
    engine = Engine(RetryPolicy(), ledger=MemoryLedger(clock=clock), clock=clock)
    other = Engine(SLOW, clock=clock)
    with watched() as reports:
        for expected in (ConnectionError, SendHeld):
            with operation(key="receipt/1"), pytest.raises(expected):
                engine.run(failing(9))
        other.run(failing(1), idempotent=True)
    engine.run(failing(0))
    held, refused, well = reports
    assert (held.effect, held.held, held.reason) == (Effect.UNKNOWN, True, Reason.UNSAFE)
    assert (refused.reason, refused.total_attempts) == (Reason.GUARDED, 0)
    assert (well.effect, well.total_attempts) == (Effect.APPLIED, 2)
    assert len(reports) == 3
    assert reports[1:] == [refused, well]
    assert "Reports([Report(" in repr(reports)


def test_blocks_are_told_as_well() -> None:
    with watched() as reports:
        for attempt in Engine().attempts():
            with attempt:
                pass
    [report] = reports
    assert (report.total_attempts, report.effect) == (1, Effect.APPLIED)


def test_deactivated_there_is_nothing_to_tell() -> None:
    with FaultServer([Reset(), Answer(200)]) as server, requests.Session() as session:
        mount(session, SLOW)
        with watched() as reports, deactivated(), pytest.raises(requests.ConnectionError):
            session.get(server.url())
        assert server.complete == 1
    assert len(reports) == 0


@pytest.mark.parametrize("value", ["1s", None, True, math.nan, math.inf])
def test_a_virtual_clock_takes_no_times_that_are_none(value: Any) -> None:
    for use in (VirtualClock, VirtualClock().advance, VirtualClock().jump):
        with pytest.raises(ValueError, match="finite number of seconds"):
            use(value)
    with pytest.raises(ValueError, match=r"use jump\(\)"):
        VirtualClock().advance(-1)
