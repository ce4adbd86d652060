"""What tears a call apart leaves the ledger right: signals, soft time limits, timeouts, cancellations, stop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
import pytest
import requests
import trio
from billiard.exceptions import SoftTimeLimitExceeded

from retrypolicy import Constant, Effect, Engine, Reason, RetryPolicy, operation, report
from retrypolicy.guard import MemoryLedger, Phase, SQLiteLedger
from retrypolicy.guard.ledger import Record
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, FaultServer, Stall, VirtualClock
from retrypolicy.urllib3 import RetryPoolManager

POLICY = RetryPolicy(backoff=Constant(seconds=30.0))
INTERRUPTS = [KeyboardInterrupt, SystemExit, gevent.Timeout, SoftTimeLimitExceeded]


def engine_of(ledger: Any, **options: Any) -> Engine:
    return Engine(POLICY, ledger=ledger, secret="a secret for tests", **options)


def record_of(ledger: MemoryLedger | SQLiteLedger) -> Record:
    [record] = ledger.records()
    return record


class Torn(VirtualClock):
    """A clock whose sleep is torn apart."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        raise self.error

    async def sleep_async(self, seconds: float, wake: threading.Event | None = None) -> bool:
        raise self.error


def raising(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("error", INTERRUPTS)
def test_during_an_attempt_the_key_is_held(error: type[BaseException]) -> None:
    """And the attempt is not repeated, idempotent or not."""
    ledger = MemoryLedger()
    with operation(key="k"), pytest.raises(error) as caught:
        engine_of(ledger).run(raising, error, idempotent=True)
    assert record_of(ledger).phase is Phase.HELD
    found = report(caught.value)
    assert found is not None
    assert (found.reason, found.total_attempts, found.effect) == (Reason.INTERRUPTED, 1, Effect.UNKNOWN)


@pytest.mark.parametrize("error", INTERRUPTS)
def test_while_waiting_the_key_is_given_up(error: type[BaseException]) -> None:
    ledger = MemoryLedger()
    with operation(key="k"), pytest.raises(error) as caught:
        engine_of(ledger, clock=Torn(error)).run(raising, OSError, classify=lambda e: Effect.NOT_APPLIED)
    assert record_of(ledger).phase is Phase.FAILED
    found = report(caught.value)
    assert found is not None
    assert (found.reason, found.effect) == (Reason.INTERRUPTED, Effect.NOT_APPLIED)


# -- on a real wire --------------------------------------------------------------------------------------------------


@contextmanager
def alarm(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """As Celery's soft time limit: a signal whose handler raises in the main thread, wherever that is."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded])
def test_a_signal_while_the_answer_is_awaited(error: type[BaseException], tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "sends.db")
    with FaultServer([Stall(), Answer(200)]) as server, requests.Session() as session:
        mount(session, POLICY, ledger=ledger, secret="a secret for tests")
        with operation(key="k"), alarm(0.3, error), pytest.raises(error):
            session.post(server.url(), data=b"x", timeout=20)
        assert server.complete == 1
    assert (record_of(ledger).phase, record_of(ledger).attempts) == (Phase.HELD, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded])
@pytest.mark.parametrize("client", ["requests", "urllib3"])
def test_a_signal_while_the_body_is_read(client: str, error: type[BaseException]) -> None:
    """The head was whole: the call took effect. And nothing is asked for again, idempotent or not."""
    ledger = MemoryLedger()
    slow = Answer(200, b"x" * 1000, drip=("body", 0.02))
    with FaultServer([slow]) as server, requests.Session() as session, RetryPoolManager(POLICY, ledger=ledger) as http:
        mount(session, POLICY, ledger=ledger)
        send: Any = session.request if client == "requests" else http.request
        with operation(key="k"), alarm(0.3, error), pytest.raises(error) as caught:
            send("PUT", server.url())
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert (found.reason, found.effect, found.total_attempts) == (Reason.INTERRUPTED, Effect.APPLIED, 1)
    assert record_of(ledger).phase is Phase.DONE


@pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded])
def test_a_signal_while_an_answer_is_drained(error: type[BaseException]) -> None:
    """With stream=True a refusal is drained before the next attempt, which is not made then."""
    ledger = MemoryLedger()
    slow = Answer(429, b"x" * 1000, headers={"Retry-After": "0"}, drip=("body", 0.02))
    with FaultServer([slow, Answer(200)]) as server, RetryPoolManager(POLICY, ledger=ledger) as http:
        with operation(key="k"), alarm(0.3, error), pytest.raises(error):
            http.request("POST", server.url(), body=b"x", preload_content=False)
        assert server.complete == 1
    assert record_of(ledger).phase is Phase.FAILED


@pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded])
def test_a_signal_between_two_attempts(error: type[BaseException], tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "sends.db")
    with FaultServer([Answer(429), Answer(200)]) as server, requests.Session() as session:
        mount(session, POLICY, ledger=ledger, secret="a secret for tests")
        with operation(key="k"), alarm(0.3, error), pytest.raises(error):
            session.post(server.url(), data=b"x", timeout=20)
        assert (server.complete, server.applied) == (1, 0)
    assert record_of(ledger).phase is Phase.FAILED


def test_stop_ends_what_waits_and_what_comes_after(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "sends.db")
    with FaultServer([Answer(429)] * 2) as server, requests.Session() as session:
        adapter = mount(session, POLICY, ledger=ledger, secret="a secret for tests")
        threading.Timer(0.3, adapter.engine.stop).start()
        began = time.monotonic()
        for _ in range(2):
            with operation(key="k"):
                response = session.post(server.url(), data=b"x", timeout=20)
            found = report(response)
            assert found is not None
            assert (response.status_code, found.reason, found.total_attempts) == (
                429,
                Reason.STOPPED,
                found.total_attempts,
            )
        assert time.monotonic() - began < 20
        assert server.complete == 2
    assert record_of(ledger).phase is Phase.FAILED
    assert adapter.engine.stop(grace=1)


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent, requests
from retrypolicy import operation
from retrypolicy.requests import mount

url, path = sys.argv[1:]
session = requests.Session()
session.trust_env = False
mount(session, ledger=f"sqlite:///{path}", secret="a secret for tests")
try:
    with operation(key="k"), gevent.Timeout(0.5):
        session.post(url, data=b"x", timeout=20)
except gevent.Timeout as error:
    print("timed out")
"""


def test_a_greenlets_timeout_while_the_answer_is_awaited(tmp_path: Path) -> None:
    with FaultServer([Stall(), Answer(200)]) as server:
        done = subprocess.run(
            [sys.executable, "-c", GREENLETS, server.url(), str(tmp_path / "sends.db")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == "timed out\n"
        assert server.complete == 1
    assert record_of(SQLiteLedger(tmp_path / "sends.db")).phase is Phase.HELD


# -- coroutines ------------------------------------------------------------------------------------------------------


async def hang() -> None:
    await asyncio.sleep(60)


async def refused() -> None:
    raise ConnectionRefusedError


def not_applied(error: object) -> Effect:
    return Effect.NOT_APPLIED


def test_a_timeout_of_asyncio_during_an_attempt() -> None:
    ledger = MemoryLedger()

    async def main() -> None:
        with operation(key="k"), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine_of(ledger).run_async(hang)

    asyncio.run(main())
    assert record_of(ledger).phase is Phase.HELD


def test_a_timeout_of_asyncio_while_waiting() -> None:
    ledger = MemoryLedger()

    async def main() -> None:
        with operation(key="k"), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine_of(ledger).run_async(refused, classify=not_applied)

    asyncio.run(main())
    assert record_of(ledger).phase is Phase.FAILED


def test_a_cancel_scope_of_trio() -> None:
    held, free = MemoryLedger(), MemoryLedger()

    async def main() -> None:
        with operation(key="k"), trio.move_on_after(0.05) as scope:
            await engine_of(held).run_async(trio.sleep_forever)
        assert scope.cancelled_caught
        with operation(key="k"), trio.move_on_after(0.05) as scope:
            await engine_of(free).run_async(refused, classify=not_applied)
        assert scope.cancelled_caught

    trio.run(main)
    assert record_of(held).phase is Phase.HELD
    assert record_of(free).phase is Phase.FAILED


class Slow(MemoryLedger):
    """A ledger whose arm takes a while."""

    entered: threading.Event

    def arm(self, take: Any) -> Any:
        self.entered.set()
        time.sleep(0.1)
        return super().arm(take)


def test_a_cancellation_during_an_arm_is_not_lost_and_leaves_no_doubt() -> None:
    """The arm is written to its end; then the attempt, if it begins at all, is cancelled."""
    ledger = Slow()
    ledger.entered = threading.Event()

    async def main() -> None:
        async def call() -> None:
            with operation(key="k"):
                await engine_of(ledger).run_async(hang)

        task = asyncio.create_task(call())
        await asyncio.to_thread(ledger.entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert record_of(ledger).phase is Phase.HELD


@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"])
def test_stop_wakes_coroutines(run: Any) -> None:
    engine = engine_of(MemoryLedger())

    async def main() -> None:
        threading.Timer(0.2, engine.stop).start()
        began = time.monotonic()
        with operation(key="k"), pytest.raises(ConnectionRefusedError) as caught:
            await engine.run_async(refused, classify=not_applied)
        assert time.monotonic() - began < 20
        found = report(caught.value)
        assert found is not None
        assert found.reason is Reason.STOPPED

    run(main)
    assert engine.stop()
