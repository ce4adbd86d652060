"""The engine's one loop: decisions carried out, time kept, the guard settled. In virtual time, with a memory ledger."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import threading
import uuid
import weakref
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from retrypolicy import (
    WORKER,
    Answered,
    CircuitBreaker,
    Constant,
    Effect,
    Engine,
    Guard,
    Reason,
    RetryBudget,
    RetryPolicy,
    operation,
    report,
)
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import (
    AlreadyDone,
    CircuitOpen,
    ConfigurationError,
    DeadlineExceeded,
    KeyReused,
    LedgerUnavailable,
    PolicyError,
    SendDeferred,
    SendHeld,
    SendInProgress,
)
from retrypolicy.events import Event
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.key import Secret

POLICY = RetryPolicy(backoff=Constant(seconds=2.0), name="test")


class Script:
    """A function that raises or returns what its script says, and counts its calls: the only side effect there is."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.calls = 0

    def __call__(self) -> object:
        self.calls += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, BaseException):
            raise step
        return step() if callable(step) else step


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def not_applied(error: object) -> Effect | None:
    return Effect.NOT_APPLIED if isinstance(error, ConnectionRefusedError) else None


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger(clock: VirtualClock) -> MemoryLedger:
    return MemoryLedger(clock=clock)


def engine_of(clock: VirtualClock, policy: RetryPolicy = POLICY, **options: Any) -> Engine:
    return Engine(policy, clock=clock, random=lambda: 0.5, secret="a secret for tests", **options)


def test_an_error_alone_does_not_permit_a_repeat(clock: VirtualClock) -> None:
    fn = Script(OSError("?"), "never reached")
    with pytest.raises(OSError, match="\\?") as caught:
        engine_of(clock).run(fn)
    assert fn.calls == 1
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.reason) == (Effect.UNKNOWN, Reason.UNSAFE)
    assert any("effect unknown" in note for note in caught.value.__notes__)


def test_idempotent_work_is_repeated(clock: VirtualClock) -> None:
    fn = Script(OSError(), OSError(), "done")
    assert engine_of(clock).run(fn, idempotent=True) == "done"
    assert (fn.calls, clock.sleeps) == (3, [2.0, 2.0])


def test_classify_permits_a_repeat(clock: VirtualClock) -> None:
    fn = Script(ConnectionRefusedError(), "done")
    assert engine_of(clock).run(fn, classify=not_applied) == "done"
    assert fn.calls == 2


def test_a_result_can_be_classified_too(clock: VirtualClock) -> None:
    fn = Script("busy", "done")
    result = engine_of(clock).run(fn, classify=lambda r: Answered(status=429) if r == "busy" else None)
    assert (result, fn.calls) == ("done", 2)


def test_errors_that_are_not_listed_are_raised_at_once(clock: VirtualClock) -> None:
    fn = Script(KeyError("x"), "done")
    with pytest.raises(KeyError):
        engine_of(clock).run(fn, on=OSError, idempotent=True)
    assert fn.calls == 1


def test_the_decorator_keeps_signature_and_waits(clock: VirtualClock) -> None:
    seen: list[int] = []

    @engine_of(clock).retry(on=OSError, idempotent=True)
    def add(a: int, *, b: int) -> int:
        """Adds."""
        seen.append(a)
        if len(seen) < 3:
            raise OSError
        return a + b

    assert add(1, b=2) == 3
    assert add.__doc__ == "Adds."
    assert len(seen) == 3


def test_the_async_driver_decides_the_same(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    calls = 0

    @engine.retry(on=OSError, idempotent=True)
    async def work() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError
        return "done"

    async def main() -> None:
        assert await work() == "done"
        with operation(key="a"):
            assert await work() == "done"
        with pytest.raises(AlreadyDone), operation(key="a"):
            await work()

    asyncio.run(main())
    assert calls == 4
    assert clock.sleeps[:2] == [2.0, 2.0]


def test_trio_works_as_asyncio_does(clock: VirtualClock, ledger: MemoryLedger) -> None:
    trio = pytest.importorskip("trio")
    fn = Script(OSError(), "done")

    async def work() -> object:
        return fn()

    async def main() -> object:
        with operation(key="t"):
            return await engine_of(clock, ledger=ledger).run_async(work, idempotent=True)

    assert trio.run(main) == "done"
    assert fn.calls == 2


# -- the guard --------------------------------------------------------------


def run(engine: Engine, fn: Callable[[], object], key: str = "k", **options: Any) -> object:
    with operation(key=key, label="order 42"):
        return engine.run(fn, **options)


def test_a_call_that_is_done_is_not_made_again(clock: VirtualClock, ledger: MemoryLedger) -> None:
    fn = Script("first", "second")
    engine = engine_of(clock, ledger=ledger)
    assert run(engine, fn) == "first"
    with pytest.raises(AlreadyDone) as caught:
        run(engine, fn)
    assert fn.calls == 1
    assert caught.value.result == {"status": 200}
    found = report(caught.value)
    assert found is not None
    assert (found.replayed, found.total_attempts, found.effect) == (True, 0, Effect.APPLIED)


def test_an_unknown_outcome_is_held_for_good(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """Invariant 2: without a provider that honours keys, what may have been applied is never sent again."""
    fn = Script(TimeoutError("late"), "second")
    engine = engine_of(clock, ledger=ledger)
    with pytest.raises(TimeoutError) as first:
        run(engine, fn)
    found = report(first.value)
    assert found is not None
    assert (found.held, found.recorded) == (True, True)
    clock.advance(10_000_000)  # no clock frees it
    with pytest.raises(SendHeld):
        run(engine, fn)
    assert fn.calls == 1
    [record] = ledger.records()
    assert (record.phase, record.taint, record.label) == (Phase.HELD, True, "order 42")


def test_the_policy_may_accept_duplicates(clock: VirtualClock, ledger: MemoryLedger) -> None:
    policy = POLICY.with_(guard=Guard(on_unknown="resend"))
    fn = Script(TimeoutError(), "second")
    assert run(engine_of(clock, policy, ledger=ledger), fn) == "second"
    assert fn.calls == 2


def test_a_refused_call_may_be_made_again(clock: VirtualClock, ledger: MemoryLedger) -> None:
    fn = Script(ConnectionRefusedError())
    engine = engine_of(clock, ledger=ledger)
    for calls in (4, 8):
        with pytest.raises(ConnectionRefusedError):
            run(engine, fn, classify=not_applied)
        assert fn.calls == calls
        assert [r.phase for r in ledger.records()] == [Phase.FAILED]


def test_two_callers_at_once_make_one_call(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    refused: list[Exception] = []

    def call_again() -> str:
        with pytest.raises(SendInProgress) as caught:
            run(engine, fn)
        refused.append(caught.value)
        return "first"

    fn = Script(call_again)
    assert run(engine, fn) == "first"
    assert fn.calls == 1
    assert isinstance(refused[0], SendInProgress)
    assert refused[0].retry_at is not None


def test_other_content_under_the_same_key_is_refused(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """Invariant 7."""
    engine = engine_of(clock, ledger=ledger)

    def one() -> str:
        return "one"

    def two() -> str:
        raise AssertionError("must not run")

    assert run(engine, one) == "one"
    with pytest.raises(KeyReused):
        run(engine, two)


def test_another_content_inside_one_operation_is_refused(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    with operation(key="k"):
        engine.run(Script("one"))
        with pytest.raises(KeyReused):
            engine.run(lambda: "two")


def test_a_scope_gives_each_content_and_occurrence_a_key(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    fn = Script("x")
    for _ in range(2):  # the job, and its redelivery
        with operation(scope="job-7"):
            for _ in range(3):
                try:
                    engine.run(fn)
                except AlreadyDone:
                    continue
    assert fn.calls == 3
    assert len(list(ledger.records())) == 3


@pytest.mark.parametrize("step", ["done", OSError("?")], ids=["result", "error"])
@pytest.mark.parametrize("answer", [ZeroDivisionError, "applied"], ids=["raises", "says nonsense"])
def test_a_classifier_that_fails_leaves_the_outcome_unknown(
    step: object, answer: object, clock: VirtualClock, ledger: MemoryLedger
) -> None:
    def classify(found: object) -> Any:
        if isinstance(answer, type):
            raise answer
        return answer

    fn = Script(step)
    wrong = (ZeroDivisionError, ConfigurationError)
    with operation(key="receipt/42"), pytest.raises(wrong) as caught:
        engine_of(clock, ledger=ledger).run(fn, classify=classify)
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.held) == (Effect.UNKNOWN, True)
    with pytest.raises(wrong):  # nor is it repeated where it might be
        engine_of(clock).run(fn, idempotent=True, classify=classify)
    assert fn.calls == 2


def test_scope_a_job_run_again_in_another_order_repeats_nothing_and_leaves_nobody_out(
    clock: VirtualClock, ledger: MemoryLedger
) -> None:
    engine = engine_of(clock, ledger=ledger)
    sent: list[object] = []

    def send(to: str, about: object) -> None:
        sent.append(to)

    remind = engine.retry(on=OSError)(send)
    about = {"on": date(2026, 11, 24), "order": uuid.UUID(int=7), "of": {"b", "a"}, "as": b"text", "by": Effect.APPLIED}
    for people in (["ann", "bob"], ["eve", "bob", "ann"]):
        with operation(scope="job-7"):
            for one in people:
                with contextlib.suppress(AlreadyDone):
                    engine.run(send, one, about)
                with contextlib.suppress(AlreadyDone):
                    remind(one, about=about)
    assert sent == ["ann", "ann", "bob", "bob", "eve", "eve"]


def test_another_argument_under_one_key_is_another_content(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    sent: list[object] = []
    with operation(key="receipt/42"):
        engine.run(sent.append, 42)
    with operation(key="receipt/42"), pytest.raises(KeyReused):
        engine.run(sent.append, 43)
    with operation(key="receipt/42"), pytest.raises(AlreadyDone):
        engine.run(sent.append, 42)
    assert sent == [42]


def test_arguments_that_are_no_data_are_no_content(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """An object is another one in the next process: only its type is the same."""
    engine = engine_of(clock, ledger=ledger)
    endless: list[object] = []
    endless.append(endless)
    for key, argument in enumerate((Script, lambda: {object(): 1, 2: 3}, lambda: endless, lambda: "\ud800")):
        with operation(key=f"job/{key}"):
            engine.run(repr, argument())
        with operation(key=f"job/{key}"), pytest.raises(AlreadyDone):
            engine.run(repr, argument())


def test_a_long_wait_is_deferred_and_counted_over_runs(clock: VirtualClock, ledger: MemoryLedger) -> None:
    policy = POLICY.with_(max_attempts=3, lifetime=86400.0)
    engine = engine_of(clock, policy, ledger=ledger)
    fn = Script("busy", "busy", "done")

    def says(result: object) -> Answered | None:
        return Answered(status=429, headers={"Retry-After": "600"}) if result == "busy" else None

    assert run(engine, fn, classify=says) == "busy"
    with pytest.raises(SendDeferred) as early:
        run(engine, fn, classify=says)
    assert early.value.retry_at == pytest.approx(clock.now() + 600)
    assert fn.calls == 1
    for calls in (2, 3):
        clock.advance(601)
        run(engine, fn, classify=says)
        assert fn.calls == calls
    assert clock.sleeps == []
    [record] = ledger.records()
    assert (record.phase, record.attempts) == (Phase.DONE, 3)


def test_attempts_over_several_runs_end_the_call(clock: VirtualClock, ledger: MemoryLedger) -> None:
    policy = POLICY.with_(max_attempts=2)
    engine = engine_of(clock, policy, ledger=ledger)
    heard = Heard()
    engine.listeners = (heard,)
    fn = Script("busy")
    for _ in range(2):
        run(engine, fn, classify=lambda r: Answered(status=429, headers={"Retry-After": "600"}))
        clock.advance(601)
    assert heard.names().count("Deferred") == 1
    assert [r.phase for r in ledger.records()] == [Phase.FAILED]


def test_the_lifetime_is_over_before_another_run(clock: VirtualClock, ledger: MemoryLedger) -> None:
    policy = POLICY.with_(lifetime=1000.0)
    engine = engine_of(clock, policy, ledger=ledger)
    fn = Script("busy")
    run(engine, fn, classify=lambda r: Answered(status=429, headers={"Retry-After": "600"}))
    clock.advance(1001)
    with pytest.raises(DeadlineExceeded):
        run(engine, fn, classify=lambda r: None)
    assert fn.calls == 1


def test_not_after_is_kept(clock: VirtualClock) -> None:
    fn = Script(OSError(), "late")
    with operation(not_after=clock.now() + 1), pytest.raises(OSError):
        engine_of(clock).run(fn, idempotent=True)
    with operation(not_after=clock.now()), pytest.raises(DeadlineExceeded):
        engine_of(clock).run(fn)
    assert fn.calls == 1


class Flaky(MemoryLedger):
    """A memory ledger that is away while `down` names an operation."""

    down: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if name != "down" and name in object.__getattribute__(self, "down"):

            def away(*args: object, **kwargs: object) -> None:
                raise LedgerUnavailable("away")

            return away
        return super().__getattribute__(name)


def test_a_ledger_that_is_away_stops_the_call_before_it(clock: VirtualClock) -> None:
    """Invariant 8."""
    ledger = Flaky(clock=clock)
    ledger.down = frozenset({"arm"})
    fn = Script("x")
    with pytest.raises(LedgerUnavailable) as caught:
        run(engine_of(clock, ledger=ledger), fn)
    assert fn.calls == 0
    found = report(caught.value)
    assert found is not None
    assert found.total_attempts == 0


def test_done_is_written_later_when_the_ledger_is_away(clock: VirtualClock) -> None:
    """Invariant 6: the caller still gets the result, and the write is repeated."""
    ledger = Flaky(clock=clock)
    heard = Heard()
    engine = engine_of(clock, ledger=ledger, listeners=[heard])
    later: list[tuple[Any, ...]] = []
    engine.record_later = lambda *entry: later.append(entry)  # type: ignore[method-assign]

    def go_away() -> str:
        ledger.down = frozenset({"done"})
        return "sent"

    assert run(engine, go_away) == "sent"
    assert "LedgerDown" in heard.names()
    assert len(later) == 1
    ledger.down = frozenset()
    assert [r.phase for r in ledger.records()] == [Phase.ARMED]  # fails closed
    assert ledger.done(later[0][0], later[0][1])


def test_a_settlement_that_got_lost_is_written_before_the_next_arm(clock: VirtualClock) -> None:
    ledger = Flaky(clock=clock)
    engine = engine_of(clock, ledger=ledger)
    calls = 0

    def fn() -> str:
        nonlocal calls
        calls += 1
        ledger.down = frozenset({"park"}) if calls == 1 else frozenset()
        if calls == 1:
            raise ConnectionRefusedError
        return "done"

    with pytest.raises(LedgerUnavailable):
        run(engine, fn, classify=not_applied)
    assert calls == 1


def test_an_interrupt_leaves_the_ledger_right(clock: VirtualClock, ledger: MemoryLedger) -> None:
    for number, error in enumerate([KeyboardInterrupt(), SystemExit()]):
        with pytest.raises(type(error)):
            run(engine_of(clock, ledger=ledger), Script(error), key=str(number))
    assert {r.phase for r in ledger.records()} == {Phase.HELD}


def test_an_interrupt_while_waiting_gives_the_key_up(clock: VirtualClock, ledger: MemoryLedger) -> None:
    class Torn(VirtualClock):
        def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(engine_of(Torn(), ledger=ledger), Script(ConnectionRefusedError()), classify=not_applied)
    assert [r.phase for r in ledger.records()] == [Phase.FAILED]


# -- the rest of a policy --------------------------------------------------------------


def test_stop_wakes_and_ends_calls() -> None:
    engine = Engine(RetryPolicy(backoff=Constant(seconds=60)))
    started, ended = threading.Event(), []

    def fn() -> None:
        started.set()
        raise OSError

    def work() -> None:
        try:
            engine.run(fn, idempotent=True)
        except OSError as error:
            ended.append(report(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    assert engine.stop(grace=10)
    thread.join(10)
    assert ended[0].reason is Reason.STOPPED


def test_an_open_breaker_refuses_the_first_attempt(clock: VirtualClock) -> None:
    breaker = CircuitBreaker(failure_ratio=0.5, minimum=3, window=60, open_for=10, name="breaker of this test")
    engine = engine_of(clock, POLICY.with_(breaker=breaker, max_attempts=3))
    fn = Script(OSError())
    with pytest.raises(OSError):
        engine.run(fn, idempotent=True)
    assert fn.calls == 3
    with pytest.raises(CircuitOpen) as caught:
        engine.run(fn, idempotent=True)
    assert fn.calls == 3
    assert caught.value.retry_at == pytest.approx(clock.now() + 10, abs=1)
    clock.advance(11)
    with pytest.raises(OSError):
        engine.run(fn, idempotent=True)
    assert fn.calls > 3


def test_an_empty_budget_stops_retries_but_not_calls(clock: VirtualClock) -> None:
    budget = RetryBudget.aws(version="2.0", name="budget of this test")  # 500 tokens, 5 a retry
    engine = engine_of(clock, POLICY.with_(budget=budget, max_attempts=3))
    fn = Script(OSError())
    for _ in range(60):
        with pytest.raises(OSError) as caught:
            engine.run(fn, idempotent=True)
    assert fn.calls == 60 + 100
    found = report(caught.value)
    assert found is not None
    assert found.reason is Reason.BUDGET_EXHAUSTED


def test_events_tell_the_story(clock: VirtualClock) -> None:
    heard = Heard()
    engine_of(clock, listeners=[heard]).run(Script(OSError(), "done"), idempotent=True)
    attempt = ["AttemptStarted", "AttemptEnded", "Decided"]
    assert heard.names() == ["CallStarted", *attempt, "Waiting", *attempt, "Done"]


def test_a_listener_that_raises_changes_nothing(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def on_event(self, event: Event) -> None:
            raise RuntimeError("mine")

    assert engine_of(clock, listeners=[Broken()]).run(Script("done")) == "done"
    assert "a listener failed" in caplog.text


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_the_mode_takes_retries_out(mode: str, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_MODE", mode)
    fn = Script(OSError(), "done")
    ledger = MemoryLedger(clock=clock)
    with pytest.raises(OSError), operation(key="k"):
        engine_of(clock, ledger=ledger).run(fn, idempotent=True)
    assert fn.calls == 1
    assert list(ledger.records()) == []


def test_observe_says_what_would_have_been_done(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
    with pytest.raises(OSError), caplog.at_level("INFO", "retrypolicy"):
        engine_of(clock).run(Script(OSError()), idempotent=True)
    assert "would have done: retry (idempotent)" in caplog.text


def test_bad_parts_are_said_when_the_engine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyError, match="a RetryPolicy"):
        Engine({"max_attempts": 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="on_event"):
        Engine(listeners=[print])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="carrier-pigeon"):
        Engine(ledger="carrier-pigeon://loft")
    with pytest.raises(ConfigurationError, match="nobody"):
        Engine(provider="nobody")
    with pytest.raises(ConfigurationError, match="hosts"):
        Engine(hosts=["api.example.com"])
    monkeypatch.setenv("RETRYPOLICY_MODE", "enforced")
    with pytest.raises(ConfigurationError, match="enforce, observe, off"):
        Engine()


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"listeners": 3}, "listeners: 3"),
        ({"reconcilers": [print]}, "reconcilers: "),
        ({"random": 0.5}, "random: 0.5"),
        ({"clock": 3}, "clock: 3"),
        ({"shared": 3}, "shared: 3"),
        ({"provider": 3}, "no provider is called 3; known are .*resend"),
        ({"provider": "resend", "hosts": "mail.example.com"}, "hosts: 'mail.example.com'.*must be a list"),
    ],
    ids=str,
)
def test_each_bad_part_is_named(part: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Engine(**part)


@pytest.mark.parametrize("on", ["OSError", [OSError], (OSError, int), None], ids=str)
def test_what_can_not_be_raised_can_not_be_waited_for(on: Any, clock: VirtualClock) -> None:
    engine, fn = engine_of(clock), Script("x")
    for use in (lambda: engine.run(fn, on=on), lambda: engine.retry(on=on), lambda: engine.attempts(on=on)):
        with pytest.raises(ConfigurationError, match=r"on: .* must be an exception class, or a tuple of them"):
            use()
    with pytest.raises(ConfigurationError, match="classify: 3 is not allowed"):
        engine.run(fn, classify=3)  # type: ignore[arg-type]
    assert fn.calls == 0


@pytest.mark.parametrize("secret", [3, "", [], ["old", 3]], ids=str)
def test_a_secret_that_can_be_none(secret: Any) -> None:
    with pytest.raises(ConfigurationError, match="secret"):
        Secret.of(secret)


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "x" * 1025, 42, None])
def test_a_key_that_can_be_none_is_refused(key: Any) -> None:
    if key is None:
        with pytest.raises(ConfigurationError, match="together"), operation(key="a", scope="b"):
            pass
        return
    with pytest.raises(ConfigurationError, match="key"), operation(key=key):
        pass


def test_demanded_keys_are_demanded_before_anything_is_sent(clock: VirtualClock) -> None:
    engine = engine_of(clock, POLICY.with_(guard=Guard(unkeyed="refuse")), ledger=MemoryLedger(clock=clock))
    fn = Script("x")
    with pytest.raises(ConfigurationError, match="has no key"):
        engine.run(fn)
    assert engine.run(fn, idempotent=True) == "x"
    assert fn.calls == 1


def test_our_errors_can_be_pickled_with_their_report(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, ledger=ledger)
    run(engine, Script("x"))
    with pytest.raises(AlreadyDone) as caught:
        run(engine, Script("x"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is AlreadyDone
    assert (again.result, again.report) == (caught.value.result, caught.value.report)
    assert str(again) == str(caught.value)


def test_the_worker_preset_defers_what_is_long(clock: VirtualClock, ledger: MemoryLedger) -> None:
    engine = engine_of(clock, WORKER.with_(backoff=Constant(seconds=600)), ledger=ledger)
    with pytest.raises(ConnectionRefusedError) as caught:
        run(engine, Script(ConnectionRefusedError()), classify=not_applied)
    found = report(caught.value)
    assert found is not None
    assert found.retry_at == pytest.approx(clock.now() + 600)
    assert clock.sleeps == []


def test_what_was_applied_once_stays_applied() -> None:
    """A PUT whose answer's body broke is sent again; a refusal of the repeat takes nothing back."""
    engine = Engine(RetryPolicy(backoff=Constant(seconds=0)), clock=VirtualClock())
    call = engine.begin("PUT", "http://example.com/")
    outcomes = iter([Answered(status=200, body_error=OSError("cut")), Answered(status=413)])
    engine.drive(call, lambda call: next(outcomes))
    assert call.report().effect is Effect.APPLIED


def test_the_errors_of_a_call_go_with_it(clock: VirtualClock) -> None:
    """A call that kept an error would keep itself, through the frames of its traceback, until a collection."""

    class Broken(OSError):
        """One that can be watched."""

    met: list[weakref.ref[Broken]] = []

    def flaky() -> None:
        if len(met) < 2:
            error = Broken()
            met.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error

    gc.collect()
    gc.disable()
    try:
        Engine(RetryPolicy(backoff=Constant(seconds=0)), clock=clock).run(flaky, on=OSError, idempotent=True)
        assert [error() for error in met] == [None, None]
    finally:
        gc.enable()
