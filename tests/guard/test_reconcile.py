"""A held key and its way out by asking the provider; and two callers of one process with the same key."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import requests

from retrypolicy import Constant, Effect, Engine, Guard, RetryPolicy, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import (
    AlreadyDone,
    ConfigurationError,
    LedgerUnavailable,
    SendHeld,
    SendInProgress,
)
from retrypolicy.events import Event, Reconciled
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard import reconcile as module
from retrypolicy.guard.reconcile import HeldSend, register
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer

LEASE = 10.0
ASKING = RetryPolicy(backoff=Constant(seconds=0), guard=Guard(on_unknown="reconcile", lease=LEASE))


class Provided:
    """A reconciler that says what it is told to, and remembers what it was asked."""

    def __init__(self, says: Any, quiet: float | None = 100.0) -> None:
        self.says, self.quiet = says, quiet
        self.asked: list[HeldSend] = []

    def __call__(self, held: HeldSend) -> Any:
        self.asked.append(held)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture(autouse=True)
def _nobody_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_registered", {})


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger(clock: VirtualClock) -> MemoryLedger:
    return MemoryLedger(clock=clock)


class Job:
    """What `Engine.run` calls: the same content, whatever it does."""

    def __init__(self, does: str) -> None:
        self.does = does

    def __call__(self) -> str:
        if self.does == "lost":
            raise OSError(self.does)
        return self.does


lost, sent = Job("lost"), Job("sent")


def engine_of(clock: VirtualClock, ledger: MemoryLedger, reconciler: Any, **more: Any) -> Engine:
    return Engine(ASKING, ledger=ledger, clock=clock, secret="s", reconcilers={"*": reconciler}, **more)


def run(engine: Engine, fn: Callable[[], Any], key: str = "receipt/42") -> Any:
    with operation(key=key, label="order 42"):
        return engine.run(fn)


def held(engine: Engine) -> None:
    with pytest.raises(OSError, match="lost"):
        run(engine, lost)


def phases(ledger: MemoryLedger) -> list[Phase]:
    return [record.phase for record in ledger.records()]


# -- what the provider says ------------------------------------------------------------------------------------------


def test_the_call_that_gets_held_asks_nobody(clock: VirtualClock, ledger: MemoryLedger) -> None:
    reconciler = Provided("applied")
    held(engine_of(clock, ledger, reconciler))
    assert reconciler.asked == []
    assert phases(ledger) == [Phase.HELD]


def test_applied_is_believed_at_once(clock: VirtualClock, ledger: MemoryLedger) -> None:
    reconciler = Provided("applied")
    engine = engine_of(clock, ledger, reconciler)
    held(engine)
    for _ in range(2):
        with pytest.raises(AlreadyDone) as caught:
            run(engine, lost)
        assert caught.value.result == {"how": "reconciled"}
    (asked,) = reconciler.asked  # the second call is answered from the record
    assert (asked.key, asked.label, asked.attempts) == ("receipt/42", "order 42", 1)
    assert asked.first_armed == asked.last_armed == clock.now()
    assert "receipt" not in repr(asked)
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.replayed) == (Effect.APPLIED, True)


def test_not_applied_counts_only_after_the_quiet_time(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """The attempt may have been under way for its lease; only then the provider's quiet time begins."""
    reconciler = Provided("not_applied", quiet=100.0)
    engine = engine_of(clock, ledger, reconciler)
    held(engine)
    armed = clock.now()
    clock.advance(100.0 + LEASE - 1)
    with pytest.raises(SendHeld) as caught:
        run(engine, sent)
    assert caught.value.retry_at == armed + 100.0 + LEASE
    assert phases(ledger) == [Phase.HELD]
    clock.advance(1)
    assert run(engine, sent) == "sent"
    assert len(reconciler.asked) == 2
    assert phases(ledger) == [Phase.DONE]


@pytest.mark.parametrize(("own", "profile", "quiet"), [(None, 50.0, 50.0), (70.0, 50.0, 70.0), (20.0, 50.0, 50.0)])
def test_the_quiet_time_is_the_longer_of_what_is_known(
    own: float | None, profile: float, quiet: float, tmp_path: Path
) -> None:
    clock = VirtualClock()
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        provider = Provider(name="made-up", hosts=("127.0.0.1",), quiet=profile)
        ledger = MemoryLedger(clock=clock)
        mount(session, ASKING, ledger=ledger, secret="s", provider=provider, clock=clock)
        register("made-up", Provided("not_applied", quiet=own))
        with pytest.raises(requests.ConnectionError), operation(key="k"):
            session.post(server.url(), data=b"x")
        clock.advance(quiet + LEASE - 1)
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"x")
        assert server.complete == 1
        clock.advance(1)
        with operation(key="k"):
            assert session.post(server.url(), data=b"x").status_code == 200
        assert server.complete == 2


def test_without_a_quiet_time_not_applied_never_counts(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger, Provided("not_applied", quiet=None))
    held(engine)
    clock.advance(1e9)
    with pytest.raises(SendHeld) as caught:
        run(engine, sent)
    assert caught.value.retry_at is None


@pytest.mark.parametrize("says", ["unknown", "", None, "Applied", ValueError("someone@example.com was not found")])
def test_anything_else_leaves_it_held(
    says: Any, clock: VirtualClock, ledger: MemoryLedger, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(clock, ledger, Provided(says))
    held(engine)
    clock.advance(1e9)
    with pytest.raises(SendHeld), caplog.at_level(logging.INFO):
        run(engine, sent)
    assert phases(ledger) == [Phase.HELD]
    assert "someone" not in caplog.text


def test_a_ledger_that_goes_away_after_the_question(clock: VirtualClock) -> None:
    class Away(MemoryLedger):
        def resolve(self, *args: Any, **options: Any) -> bool:
            raise LedgerUnavailable("away")

    ledger = Away(clock=clock)
    engine = engine_of(clock, ledger, Provided("applied"))
    held(engine)
    with pytest.raises(LedgerUnavailable):
        run(engine, sent)
    assert phases(ledger) == [Phase.HELD]


def test_a_send_whose_owner_died_is_asked_about_too(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """Armed, and the lease is over: nobody wrote down that it is held."""
    engine = engine_of(clock, ledger, Provided("applied"))
    held(engine)
    (record,) = ledger.records()
    ledger._records[record.key] = ledger._records[record.key].__class__(
        key=record.key, phase=Phase.ARMED, owner=b"dead", lease=clock.now() + 1, fingerprint=record.fingerprint,
        first_armed=clock.now(), last_armed=clock.now(), first_seen=clock.now(), expires=1e12,
    )  # fmt: skip
    with pytest.raises(SendInProgress):
        run(engine, lost)
    clock.advance(2)
    with pytest.raises(AlreadyDone):
        run(engine, lost)


def test_other_content_is_not_asked_about(clock: VirtualClock, ledger: MemoryLedger) -> None:
    reconciler = Provided("not_applied")
    engine = engine_of(clock, ledger, reconciler)
    held(engine)
    with pytest.raises(Exception, match="other content"):
        run(engine, lambda: "another function, so other content")
    assert reconciler.asked == []


def test_the_async_driver_asks_as_well(clock: VirtualClock, ledger: MemoryLedger) -> None:
    async def lost_async() -> None:
        raise OSError("lost")

    async def reconciler(held: HeldSend) -> Any:
        await asyncio.sleep(0)
        return "applied"

    async def story(asked: Any, key: str) -> None:
        engine = engine_of(clock, ledger, asked)
        with operation(key=key):
            with pytest.raises(OSError, match="lost"):
                await engine.run_async(lost_async)
            with pytest.raises(AlreadyDone):
                await engine.run_async(lost_async)

    asyncio.run(story(reconciler, "one"))
    asyncio.run(story(Provided("applied"), "two"))


def test_an_async_reconciler_under_a_sync_call_is_told(
    clock: VirtualClock, ledger: MemoryLedger, caplog: pytest.LogCaptureFixture
) -> None:
    async def reconciler(held: HeldSend) -> Any:
        return "applied"

    engine = engine_of(clock, ledger, reconciler)
    held(engine)
    with pytest.raises(SendHeld):
        run(engine, lost)
    assert "failed: TypeError" in caplog.text


def test_listeners_and_the_log_hear_of_it(
    clock: VirtualClock, ledger: MemoryLedger, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []

    class Listener:
        def on_event(self, event: Event) -> None:
            heard.append(event)

    engine = engine_of(clock, ledger, Provided("applied"), listeners=[Listener()])
    held(engine)
    with pytest.raises(AlreadyDone):
        run(engine, lost)
    (event,) = [event for event in heard if isinstance(event, Reconciled)]
    assert (event.verdict, event.counts, event.label) == ("applied", True, "order 42")
    assert "reconciler says applied" in caplog.text


# -- which reconciler ------------------------------------------------------------------------------------------------


def test_who_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    own, registered, installed, anybody = (Provided("unknown") for _ in range(4))
    entry = EntryPoint("installed", "tests.made:up", "retrypolicy.reconcilers")
    monkeypatch.setattr(EntryPoint, "load", lambda self: installed)
    monkeypatch.setattr(
        "retrypolicy.plugins._others", lambda kind: {"installed": entry} if kind == "reconcilers" else {}
    )
    register("registered", registered)
    register("own", anybody)
    mine = {"own": own}
    assert module.reconciler_for("own", mine) is own
    assert module.reconciler_for("registered", mine) is registered
    assert module.reconciler_for("installed", mine) is installed
    assert module.reconciler_for("other", mine) is None
    register("*", anybody)
    assert module.reconciler_for("other", mine) is anybody
    assert module.reconciler_for("", mine) is anybody
    assert module.reconciler_for("own", mine) is own


def test_nobody_to_ask_is_an_error_before_anything_is_sent() -> None:
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, ASKING, ledger=MemoryLedger(), secret="s")
        with pytest.raises(ConfigurationError, match="reconcile"), operation(key="k"):
            session.post(server.url(), data=b"x")
        assert server.requests == ()
        session.get(server.url())  # needs no guard


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be callable"):
        register("made-up", "not callable")  # type: ignore[arg-type] # the mistake is the test
    with pytest.raises(ConfigurationError, match="must be callable"):
        Engine(reconcilers={"made-up": 7})  # type: ignore[dict-item] # the mistake is the test


def test_a_reconcilers_own_requests_have_no_key_and_go_through_while_the_call_waits() -> None:
    """It may use the very session whose request is waiting for it, and POST a search there."""
    with FaultServer([Close("request"), Answer(200, body=b"found"), Answer(200)]) as server, requests.Session() as s:
        placement = KeyPlacement(header="X-Key", window=60.0)
        provider = Provider(name="made-up", hosts=("127.0.0.1",), key=placement)
        quick = ASKING.with_(max_attempts=1)
        clock = VirtualClock()
        mount(s, quick, ledger=MemoryLedger(clock=clock), secret="s", provider=provider, clock=clock)

        def search(held: HeldSend) -> Any:
            assert held.outgoing == "receipt-42"
            return "applied" if s.post(server.url("/search"), data=b"q").text == "found" else "unknown"

        register("made-up", search)
        with pytest.raises(requests.ConnectionError), operation(key="receipt-42"):
            s.post(server.url(), data=b"x")
        clock.advance(60.0)  # the provider has forgotten the key
        with pytest.raises(AlreadyDone), operation(key="receipt-42"):
            s.post(server.url(), data=b"x")
        paths = [(request.target, "X-Key" in dict(request.headers)) for request in server.requests if request.complete]
        assert paths == [("/", True), ("/search", False)]


# -- single flight ---------------------------------------------------------------------------------------------------


def flights(join: float, first: Callable[[], Any], ledger: MemoryLedger | None = None) -> tuple[Any, Any]:
    """Two calls under one key at the same time: the first is on its way when the second begins."""
    policy = RetryPolicy(backoff=Constant(seconds=0), guard=Guard(join=join))
    engine = Engine(policy, ledger=ledger or MemoryLedger(), secret="s")
    under_way, go_on = threading.Event(), threading.Event()

    def slow() -> Any:
        under_way.set()
        assert go_on.wait(10)
        return first()

    def call() -> Any:
        try:
            with operation(key="k"):
                return engine.run(slow)
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(call)
        assert under_way.wait(10)
        under_way.clear()
        two = pool.submit(call)
        if join:
            assert not under_way.wait(0.1)  # the second one does not run
            assert not two.done()
        else:
            two.exception(10)
        go_on.set()
        return one.result(10), two.result(10)


def test_at_once_unless_asked_for() -> None:
    first, second = flights(0.0, sent)
    assert first == "sent"
    assert isinstance(second, SendInProgress)


def test_the_second_caller_shares_what_comes_of_it() -> None:
    first, second = flights(30.0, sent)
    assert first == "sent"
    assert isinstance(second, AlreadyDone)


def test_the_second_caller_of_a_send_that_is_lost_does_not_send() -> None:
    first, second = flights(30.0, lost)
    assert isinstance(first, OSError)
    assert isinstance(second, SendHeld)


def test_the_wait_has_an_end(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """Even where a call waits for itself."""
    policy = RetryPolicy(guard=Guard(join=5.0))
    engine = Engine(policy, ledger=ledger, clock=clock, secret="s")

    def outer() -> None:
        with pytest.raises(SendInProgress), operation(key="k"):
            engine.run(outer)

    began = clock.monotonic()
    with operation(key="k"):
        engine.run(outer)
    assert 5.0 <= clock.monotonic() - began < 6.0


def test_other_processes_are_not_waited_for(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = Engine(RetryPolicy(guard=Guard(join=5.0)), ledger=ledger, clock=clock, secret="s")
    held(engine)
    (record,) = ledger.records()
    ledger._records[record.key] = record.__class__(
        key=record.key, phase=Phase.ARMED, owner=b"elsewhere", lease=clock.now() + 60, fingerprint=record.fingerprint,
        first_armed=clock.now(), last_armed=clock.now(), first_seen=clock.now(), expires=1e12,
    )  # fmt: skip
    with pytest.raises(SendInProgress):
        run(engine, lost)
    assert clock.sleeps == []


def test_on_the_wire_one_request_for_two_threads() -> None:
    policy = RetryPolicy(backoff=Constant(seconds=0), guard=Guard(join=30.0))
    first, go_on = threading.Event(), threading.Event()

    def slow(request: Any) -> Any:
        first.set()
        assert go_on.wait(10)
        return Answer(200)

    with FaultServer(slow) as server, requests.Session() as session:
        mount(session, policy, ledger=MemoryLedger(), secret="s")

        def call() -> Any:
            try:
                with operation(key="k"):
                    return session.post(server.url(), data=b"x").status_code
            except AlreadyDone:
                return "done"

        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(call)
            assert first.wait(10)
            two = pool.submit(call)
            go_on.set()
            assert {one.result(10), two.result(10)} == {200, "done"}
        assert server.complete == 1
