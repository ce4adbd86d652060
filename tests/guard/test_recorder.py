"""What is said again in the background: good news, and arms that were not answered."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import requests

from retrypolicy import Answered, Constant, Engine, Guard, RetryPolicy, operation
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import MemoryLedger, Phase, RedisLedger, recorder
from retrypolicy.guard.aio import to_async
from retrypolicy.guard.ledger import Record, Refused, Take, Taken
from retrypolicy.guard.recorder import Recorder
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, FaultServer

from .servers import Valkey, valkey
from .takes import OTHER, OWNER, arm, key, phase, standing, take

__all__ = ["valkey"]

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX only")


class Still(Recorder):
    """Works only when told to: `flush`."""

    def _work(self) -> None:
        pass


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Still()
    monkeypatch.setattr(recorder, "recorder", made)
    return made


class Faulty(MemoryLedger):
    """An arm is executed and its answer lost, or it is on its way; any other operation may be down."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock=clock)
        self.loses = ""  # "answer" | "statement"
        self.error: BaseException = LedgerUnavailable("no answer")
        self.late: list[Take] = []
        self.down: set[str] = set()
        self.reads = 0

    def arm(self, take: Take) -> Taken | Refused:
        if self.loses == "statement":
            self.late.append(take)
            raise self.error
        answer = super().arm(take)
        if self.loses == "answer":
            raise self.error
        return answer

    def arrive(self) -> None:
        """What was on its way is executed now."""
        while self.late:
            super().arm(self.late.pop())

    def read(self, key: bytes) -> tuple[Record | None, float]:
        self.reads += 1
        if "read" in self.down:
            raise LedgerUnavailable("down")
        return super().read(key)

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        if "done" in self.down:
            raise LedgerUnavailable("down")
        return super().done(key, result, provider=provider)

    def park(self, *args: Any, **options: Any) -> bool:
        if "park" in self.down:
            raise LedgerUnavailable("down")
        return super().park(*args, **options)

    def reject(self, *args: Any, **options: Any) -> bool:
        if "reject" in self.down:
            raise LedgerUnavailable("down")
        return super().reject(*args, **options)

    def unknown(self, *args: Any, **options: Any) -> bool:
        if "unknown" in self.down:
            raise LedgerUnavailable("down")
        return super().unknown(*args, **options)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger(clock: VirtualClock) -> Faulty:
    return Faulty(clock)


class Job:
    def __init__(self) -> None:
        self.sent = 0

    def __call__(self) -> str:
        self.sent += 1
        return "sent"


def engine_of(ledger: Any, clock: VirtualClock, **more: Any) -> Engine:
    return Engine(
        RetryPolicy(backoff=Constant(seconds=0), **more.pop("policy", {})),
        ledger=ledger, clock=clock, secret="s", **more,
    )  # fmt: skip


def run(engine: Engine, job: Callable[[], str]) -> str:
    with operation(key="receipt/42"):
        return engine.run(job)


def only(ledger: MemoryLedger) -> Phase | None:
    found = [record.phase for record in ledger.records()]
    return found[0] if found else None


# -- arms that were not answered


def test_an_arm_whose_answer_is_lost_is_taken_back(ledger: Faulty, clock: VirtualClock, still: Recorder) -> None:
    engine, job = engine_of(ledger, clock), Job()
    ledger.loses = "answer"
    with pytest.raises(LedgerUnavailable):
        run(engine, job)
    assert only(ledger) is Phase.ARMED
    assert still.flush() == 0
    assert only(ledger) is Phase.CLAIMED
    ledger.loses = ""
    assert run(engine, job) == "sent"  # at once: neither in progress nor held
    assert job.sent == 1


def test_an_arm_that_arrives_late_is_taken_back(ledger: Faulty, clock: VirtualClock, still: Recorder) -> None:
    engine, job = engine_of(ledger, clock), Job()
    ledger.loses = "statement"
    with pytest.raises(LedgerUnavailable):
        run(engine, job)
    assert still.flush() == 1
    ledger.arrive()
    assert only(ledger) is Phase.ARMED
    assert still.flush() == 0
    assert only(ledger) is Phase.CLAIMED


def test_an_interrupt_while_the_ledger_is_asked_takes_the_arm_back(
    ledger: Faulty, clock: VirtualClock, still: Recorder
) -> None:
    ledger.loses, ledger.error = "answer", KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(engine_of(ledger, clock), Job())
    assert still.flush() == 0
    assert only(ledger) is Phase.CLAIMED


def test_an_arm_that_never_arrives_is_looked_for_a_few_times(
    ledger: Faulty, clock: VirtualClock, still: Recorder
) -> None:
    ledger.loses = "statement"
    with pytest.raises(LedgerUnavailable):
        run(engine_of(ledger, clock), Job())
    looks = 1
    while still.flush():
        looks += 1
    assert looks == ledger.reads == 6  # half a minute


def test_what_went_out_without_the_ledger_is_not_taken_back(
    ledger: Faulty, clock: VirtualClock, still: Recorder
) -> None:
    provider = Provider(
        name="made-up", hosts=("127.0.0.1",), key=KeyPlacement(header="X-Key", window=1000.0, margin=100.0)
    )
    policy = RetryPolicy(guard=Guard(on_ledger_down="open"))
    ledger.loses = "answer"
    with FaultServer([Answer(200)]) as server, requests.Session() as session, operation(key="k"):
        mount(session, policy, ledger=ledger, secret="s", provider=provider, clock=clock)
        assert session.post(server.url(), data=b"x").status_code == 200
    assert still.flush() == 0
    assert only(ledger) is Phase.ARMED


def test_an_earlier_unknown_attempt_stays_unknown(ledger: Faulty, still: Recorder) -> None:
    first = arm(ledger)
    ledger.unknown(key(), OWNER, first.fence)
    again = take(owner=OTHER, window=1e6)
    assert isinstance(ledger.arm(again), Taken)
    still.withdraw(ledger, again)
    still.flush()
    assert phase(ledger) is Phase.HELD


def test_nobody_elses_arm_is_taken_back(ledger: Faulty, clock: VirtualClock, still: Recorder) -> None:
    mine = take(lease=1.0)
    ledger.arm(mine)
    clock.advance(2.0)
    ledger.expire(key(), 1)  # taken for dead
    assert ledger.resolve(key(), 2, "not_applied")
    theirs = arm(ledger, owner=OTHER)
    still.withdraw(ledger, mine)
    assert still.flush() == 1  # mine may still arrive
    assert (phase(ledger), standing(ledger).fence) == (Phase.ARMED, theirs.fence)
    ledger.unknown(key(), OTHER, theirs.fence)
    assert still.flush() == 1
    assert phase(ledger) is Phase.HELD
    other_arm_of_mine = arm(ledger, owner=OWNER, window=1e6)
    assert still.flush() == 1
    assert (phase(ledger), standing(ledger).fence) == (Phase.ARMED, other_arm_of_mine.fence)
    ledger.done(key(), {"status": 200})
    assert still.flush() == 0  # nothing can be armed any more


@pytest.mark.slow
@needs_signals
def test_a_server_that_hangs_and_executes_the_arm_when_it_wakes(valkey: Valkey, still: Recorder) -> None:
    ledger = RedisLedger(valkey.url, timeout=0.3)
    arm(ledger, "warm")
    lost = take()
    valkey.signal(signal.SIGSTOP)
    with pytest.raises(LedgerUnavailable):
        ledger.arm(lost)
    still.withdraw(ledger, lost)
    assert still.flush() == 1  # hangs still
    valkey.signal(signal.SIGCONT)
    deadline = time.monotonic() + 20
    while still.flush():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert phase(ledger) is Phase.CLAIMED
    assert isinstance(ledger.arm(take(owner=OTHER)), Taken)
    ledger.close()


# -- bad news


@pytest.mark.parametrize(
    ("status", "attempts", "after"),
    [(422, 1, Phase.FAILED), (429, 2, Phase.CLAIMED), (500, 1, Phase.HELD)],
    ids=["refused", "refused, to be sent again", "unknown"],
)
def test_bad_news_is_written_when_the_ledger_is_there_again(
    status: int, attempts: int, after: Phase, ledger: Faulty, clock: VirtualClock, still: Recorder
) -> None:
    """The sender knew that it was refused; without the word of that, somebody would have to look it up."""

    def job() -> str:
        ledger.down = {"park", "reject", "unknown"}
        return "answer"

    engine = engine_of(ledger, clock, policy={"max_attempts": attempts})
    with contextlib.suppress(LedgerUnavailable), operation(key="receipt/42"):
        engine.run(job, classify=lambda _: Answered(status=status))
    assert only(ledger) is Phase.ARMED
    assert still.flush() > 0
    ledger.down = set()
    assert still.flush() == 0
    assert only(ledger) is after


def test_bad_news_of_an_earlier_arm_comes_too_late(ledger: Faulty, clock: VirtualClock, still: Recorder) -> None:
    first = arm(ledger)
    still.settle(ledger, "park", (key(), OWNER, first.fence), {"lease": 60.0})
    ledger.park(key(), OWNER, first.fence)
    again = arm(ledger)
    assert still.flush() == 0
    assert (phase(ledger), standing(ledger).fence) == (Phase.ARMED, again.fence)


# -- good news


def test_a_ledger_that_is_away_is_asked_once_a_round(ledger: Faulty, still: Recorder) -> None:
    asked = 0

    class Away(MemoryLedger):
        def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
            nonlocal asked
            asked += 1
            raise LedgerUnavailable("away")

    away = Away()
    for name in "abc":
        still.later(away, key(name), {"status": 200}, "")
        still.later(ledger, key(name), {"status": 200}, "resend")
    assert still.flush() == 3
    assert asked == 1
    assert {phase(ledger, name) for name in "abc"} == {Phase.DONE}
    assert {record.provider for record in ledger.records()} == {"resend"}


def test_a_ledger_that_can_not_be_used_is_given_up(still: Recorder) -> None:
    class Broken(MemoryLedger):
        def read(self, key: bytes) -> tuple[Record | None, float]:
            raise ConfigurationError("made by a newer release")

    still.withdraw(Broken(), take())
    assert still.flush() == 0


def test_a_ledger_that_breaks_its_promise_stops_nobody_else(
    ledger: Faulty, still: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryLedger):
        def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
            raise ZeroDivisionError("to: ada@example.com")

    arm(ledger)
    still.later(Broken(), key(), {"status": 200}, "")
    still.later(ledger, key(), {"status": 200}, "")
    assert still.flush() == 0
    assert phase(ledger) is Phase.DONE
    assert "Broken raised ZeroDivisionError" in caplog.text
    assert "ada" not in caplog.text


def test_a_long_outage_does_not_fill_the_memory_and_good_news_has_room(ledger: Faulty, still: Recorder) -> None:
    ledger.down = {"read", "done"}
    for number in range(1500):
        still.withdraw(ledger, take(number))
    still.later(ledger, key("good"), {"status": 200}, "")
    assert still.flush() == 1001
    ledger.down = set()
    still.flush()
    assert phase(ledger, "good") is Phase.DONE


def test_one_thread_does_it_all_and_keeps_no_process_alive(ledger: Faulty) -> None:
    ledger.down = {"done"}
    mine, before = Recorder(), set(threading.enumerate())
    for name in "abc":
        mine.later(ledger, key(name), {"status": 200}, "")
    started = set(threading.enumerate()) - before
    assert [(thread.name, thread.daemon) for thread in started] == [("retrypolicy-recorder", True)]
    ledger.down = set()


def test_rounds_get_rarer_up_to_two_a_minute() -> None:
    assert list(itertools.islice(recorder.waits(), 9)) == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_the_thread_writes_what_came_back(ledger: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: the send went well, its record could not be written, and is written when the ledger is there again."""
    monkeypatch.setattr(recorder, "_FIRST_WAIT", 0.01)
    arm(ledger)
    tried = threading.Semaphore(0)

    def done(*args: Any, **options: Any) -> bool:
        tried.release()
        if "done" in ledger.down:
            raise LedgerUnavailable("down")
        return MemoryLedger.done(ledger, *args, **options)

    monkeypatch.setattr(ledger, "done", done)
    ledger.down = {"done"}
    mine = Recorder()
    mine.later(ledger, key(), {"status": 200}, "")
    for _ in range(3):
        assert tried.acquire(timeout=20)
    ledger.down = set()
    deadline = time.monotonic() + 20
    while phase(ledger) is not Phase.DONE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_thread_waits_for_the_next_outage(ledger: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[threading.Thread] = []
    told = threading.Semaphore(0)

    def done(*args: Any, **options: Any) -> bool:
        served.append(threading.current_thread())
        told.release()
        return True

    monkeypatch.setattr(ledger, "done", done)
    mine = Recorder()
    for name in "ab":
        mine.later(ledger, key(name), {"status": 200}, "")
        assert told.acquire(timeout=20)
        served[0].join(0.05)  # it has nothing left to do
    assert served[0] is served[1]


def test_two_who_flush_at_once_say_everything_once(ledger: Faulty, still: Recorder) -> None:
    """As the thread and the end of the process may."""
    said: list[bytes] = []

    class Nested(MemoryLedger):
        def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
            said.append(key)
            assert still.flush() == 0
            return super().done(key, result, provider=provider)

    nested = Nested()
    for name in "ab":
        still.later(nested, key(name), {"status": 200}, "")
    assert still.flush() == 0
    assert said == [key("a"), key("b")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_none_of_the_parents_chores(ledger: Faulty, still: Recorder) -> None:
    still.later(ledger, key(), {"status": 200}, "")
    child = os.fork()
    if not child:
        os._exit(recorder.recorder.flush() if recorder.recorder is not still else 77)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert still.flush() == 0


class Coroutines:
    """An async ledger that knows in which event loop it is used."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self.ledger = ledger
        self.loops: list[object] = []
        self.threads: list[int] = []
        self.closed = 0

    async def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        self.loops.append(asyncio.get_running_loop())
        self.threads.append(threading.get_ident())
        return self.ledger.done(key, result, provider=provider)

    async def close(self) -> None:
        self.closed += 1


def test_an_async_ledger_is_served_in_the_loop_that_uses_it(ledger: Faulty, still: Recorder) -> None:
    given = Coroutines(ledger)

    async def program() -> None:
        still.later(given, key(), {"status": 200}, "resend")
        assert await asyncio.to_thread(still.flush) == 0
        assert given.loops == [asyncio.get_running_loop()]

    asyncio.run(program())
    assert (phase(ledger), standing(ledger).provider) == (Phase.DONE, "resend")
    assert not given.closed


def test_an_async_ledger_whose_loop_has_ended_gets_one_of_its_own(ledger: Faulty, still: Recorder) -> None:
    given = Coroutines(ledger)

    async def program() -> None:
        still.later(given, key(), {"status": 200}, "resend")

    asyncio.run(program())
    assert still.flush() == 0
    assert (phase(ledger), standing(ledger).provider) == (Phase.DONE, "resend")
    assert given.closed == 1  # the connections of that loop


def test_an_async_ledger_of_a_program_without_a_loop_gets_one_too(ledger: Faulty, still: Recorder) -> None:
    given = Coroutines(ledger)
    still.later(given, key(), {"status": 200}, "resend")
    assert still.flush() == 0
    assert (phase(ledger), given.closed) == (Phase.DONE, 1)


def test_a_loop_that_does_not_answer_is_not_waited_for_without_end(
    ledger: Faulty, still: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Coroutines):
        async def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
            await asyncio.Event().wait()
            return True

    async def program() -> None:
        still.later(Silent(ledger), key(), {"status": 200}, "")
        assert await asyncio.to_thread(still.flush) == 1

    monkeypatch.setattr(recorder, "_PATIENCE", 0.05)
    asyncio.run(program())


def test_a_client_that_is_bound_to_its_loop_is_no_harm(still: Recorder) -> None:
    class Bound(Coroutines):
        async def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
            raise RuntimeError("attached to a different loop")

    still.later(Bound(MemoryLedger()), key(), {"status": 200}, "")
    assert still.flush() == 1


def test_the_async_driver_leaves_good_news_to_it(ledger: Faulty, clock: VirtualClock, still: Recorder) -> None:
    engine = engine_of(to_async(ledger), clock)
    ledger.down = {"done"}

    async def job() -> str:
        return "sent"

    async def program() -> str:
        with operation(key="receipt/42"):
            return await engine.run_async(job)

    assert asyncio.run(program()) == "sent"
    assert only(ledger) is Phase.ARMED
    ledger.down = set()
    assert still.flush() == 0
    assert only(ledger) is Phase.DONE
