"""Blocks of code under a policy: `for attempt in engine.attempts(): with attempt: ...`, and the same in coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio

from retrypolicy import Answered, CircuitBreaker, Constant, Effect, Engine, Reason, RetryPolicy, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import AlreadyDone, CircuitOpen, SendHeld
from retrypolicy.guard import MemoryLedger, Phase

POLICY = RetryPolicy(backoff=Constant(seconds=2.0))


def on_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


RUNNERS = [on_asyncio, trio.run]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger(clock: VirtualClock) -> MemoryLedger:
    return MemoryLedger(clock=clock)


def engine_of(clock: VirtualClock, policy: RetryPolicy = POLICY, **options: Any) -> Engine:
    return Engine(policy, clock=clock, random=lambda: 0.5, secret="a secret for tests", **options)


def phases(ledger: MemoryLedger) -> list[Phase]:
    return [record.phase for record in ledger.records()]


def work(engine: Engine, *script: BaseException | None, **options: Any) -> list[int]:
    """Runs the script, a step for each attempt; returns the numbers of the attempts made."""
    numbers: list[int] = []
    for attempt in engine.attempts(**options):
        with attempt:
            numbers.append(attempt.number)
            step = script[len(numbers) - 1]
            if step is not None:
                raise step
    return numbers


def test_a_block_is_repeated_until_it_ends_well(clock: VirtualClock) -> None:
    assert work(engine_of(clock), OSError(), OSError(), None, idempotent=True) == [1, 2, 3]
    assert clock.sleeps == [2.0, 2.0]


def test_the_last_error_leaves_the_block_with_a_report(clock: VirtualClock) -> None:
    last = OSError("the last")
    with pytest.raises(OSError, match="the last") as caught:
        work(engine_of(clock), OSError(), OSError(), OSError(), last, idempotent=True)
    assert caught.value is last
    found = report(last)
    assert found is not None
    assert (found.reason, found.total_attempts) == (Reason.ATTEMPTS_EXHAUSTED, 4)


def test_an_error_alone_does_not_permit_a_repeat(clock: VirtualClock) -> None:
    with pytest.raises(OSError, match="once"):
        work(engine_of(clock), OSError("once"))
    with pytest.raises(KeyError):
        work(engine_of(clock), KeyError(), on=OSError, idempotent=True)
    assert work(engine_of(clock), OSError(), None, classify=lambda error: Effect.NOT_APPLIED) == [1, 2]


def test_break_and_return_end_the_loop_well(clock: VirtualClock, ledger: MemoryLedger) -> None:
    def returning() -> str:
        for attempt in engine_of(clock, ledger=ledger).attempts():
            with attempt:
                return "early"
        raise AssertionError

    with operation(key="return"):
        assert returning() == "early"
    with operation(key="break"):
        for attempt in engine_of(clock, ledger=ledger).attempts():
            with attempt:
                break
    assert phases(ledger) == [Phase.DONE, Phase.DONE]


def test_a_loop_that_is_left_between_attempts_arms_nothing(clock: VirtualClock, ledger: MemoryLedger) -> None:
    with operation(key="before"):
        for _ in engine_of(clock, ledger=ledger).attempts():
            break
    assert phases(ledger) == []
    with operation(key="after"):
        for attempt in engine_of(clock, ledger=ledger).attempts(classify=lambda error: Effect.NOT_APPLIED):
            with attempt:
                raise OSError
            break
    assert phases(ledger) == [Phase.CLAIMED]  # not on the wire: free when its lease is over


def test_a_block_that_is_done_is_not_entered_again(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    with operation(key="k"):
        assert work(engine, None) == [1]
    with operation(key="k"), pytest.raises(AlreadyDone):
        work(engine)
    with operation(key="held"), pytest.raises(OSError, match="lost"):
        work(engine, OSError("lost"))
    with operation(key="held"), pytest.raises(SendHeld) as caught:
        work(engine)
    assert report(caught.value) is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_leaves_the_ledger_right(
    error: type[BaseException], clock: VirtualClock, ledger: MemoryLedger
) -> None:
    with operation(key="k"), pytest.raises(error):
        work(engine_of(clock, ledger=ledger), error())
    assert phases(ledger) == [Phase.HELD]


def test_a_circuit_that_opens_between_two_attempts(clock: VirtualClock) -> None:
    breaker = CircuitBreaker(failure_ratio=0.5, minimum=2, window=60, open_for=30, name="breaker of blocks")
    engine = engine_of(clock, POLICY.with_(breaker=breaker))
    with pytest.raises(OSError, match="second"):
        work(engine, OSError("first"), OSError("second"), idempotent=True)
    with pytest.raises(CircuitOpen):
        work(engine, idempotent=True)


def test_off_means_once_and_as_it_is(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_MODE", "off")
    assert work(engine_of(clock), None) == [0]
    with pytest.raises(OSError) as caught:
        work(engine_of(clock), OSError(), idempotent=True)
    assert report(caught.value) is None


def test_stop_waits_for_blocks(clock: VirtualClock) -> None:
    engine = engine_of(clock)
    for attempt in engine.attempts():
        with attempt:
            assert not engine.stop()
    assert engine.stop()


# -- coroutines --------------------------------------------------------------------------------------------------------


async def work_async(engine: Engine, *script: BaseException | None, **options: Any) -> list[int]:
    numbers: list[int] = []
    async for attempt in engine.attempts(**options):
        async with attempt:
            numbers.append(attempt.number)
            step = script[len(numbers) - 1]
            if step is not None:
                raise step
    return numbers


@pytest.mark.parametrize("run", RUNNERS, ids=["asyncio", "trio"])
def test_coroutines_do_the_same(run: Callable[..., Any], clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)

    async def main() -> None:
        assert await work_async(engine, OSError(), None, idempotent=True) == [1, 2]
        assert clock.sleeps == [2.0]
        with pytest.raises(OSError, match="once"):
            await work_async(engine, OSError("once"))
        with operation(key="k"):
            assert await work_async(engine, None) == [1]
        with operation(key="k"), pytest.raises(AlreadyDone):
            await work_async(engine)
        with operation(key="i"), pytest.raises(KeyboardInterrupt):
            await work_async(engine, KeyboardInterrupt())

    run(main)
    assert sorted(phases(ledger)) == [Phase.DONE, Phase.HELD]


def test_a_classifier_that_fails_leaves_the_outcome_unknown(clock: VirtualClock, ledger: MemoryLedger) -> None:
    def classify(error: object) -> Effect:
        raise ZeroDivisionError

    with operation(key="receipt/42"), pytest.raises(ZeroDivisionError) as caught:
        work(engine_of(clock, ledger=ledger), OSError(), classify=classify)
    assert isinstance(caught.value.__cause__, OSError)
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.held) == (Effect.UNKNOWN, True)


def test_what_a_block_returns_is_not_classified(clock: VirtualClock) -> None:
    """A block has no result: `classify` is asked about errors only."""
    assert work(engine_of(clock), None, classify=lambda error: Answered(status=429)) == [1]
