"""What a call leaves in the ledger between its attempts and between its runs, and what the next one makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from retrypolicy import Answered, Constant, Effect, Engine, Failed, Guard, Reason, Report, RetryPolicy, Stage, operation
from retrypolicy.call import Call, Renew, Replay
from retrypolicy.clock import VirtualClock
from retrypolicy.decision import Decision, Defer
from retrypolicy.errors import DeadlineExceeded, KeyReused, LedgerUnavailable, SendHeld
from retrypolicy.events import Done, Event, LedgerDown
from retrypolicy.guard import Ledger, MemoryLedger, Phase
from retrypolicy.guard.ledger import Record, Refused, Take, Taken
from retrypolicy.providers import Answers, KeyPlacement, Provider

UNSENT = Failed(error=OSError("refused"), stage=Stage.NOT_CONNECTED)
LOST = Failed(error=OSError("lost"), stage=Stage.SENT)
DONE, BUSY, WRONG = (Answered(status=status) for status in (201, 429, 422))
LATER = RetryPolicy(max_wait=5.0, backoff=Constant(seconds=60.0))
"""Each repeat is left to another run."""

PROVIDER = Provider(
    name="made-up", hosts=("api.example.com",), key=KeyPlacement(header="X-Key", window=1000.0, margin=5.0)
)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger(clock: VirtualClock) -> MemoryLedger:
    return MemoryLedger(clock=clock)


class Runs:
    """Runs of one call, each with a script of what its attempts come to."""

    def __init__(self, ledger: Ledger, clock: VirtualClock, policy: RetryPolicy = LATER, **options: Any) -> None:
        self.ledger = ledger
        self.generations: list[int] = []
        self.report: Report | None = None
        self.events: list[Event] = []
        self.engine = Engine(policy, ledger=ledger, clock=clock, secret="s", listeners=[self], **options)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def __call__(self, *script: Answered | Failed, content: bytes = b"x", then: Callable[[], Any] = int) -> Decision:
        """One run. `then` is called in its last attempt, when the key is armed."""
        outcomes = list(script)

        def attempt(call: Call) -> Answered | Failed:
            outcome = outcomes.pop(0)
            if outcome is not UNSENT:
                try:
                    self.engine.arm(call)
                except Renew as renew:
                    call.generation = renew.generation
                    self.engine.arm(call)
                self.generations.append(call.generation)
            if not outcomes:
                then()
            return outcome

        with operation(key="k", label="order 42"):
            call = self.engine.begin("POST", "https://api.example.com/", content=lambda provider: content, hooked=True)
        call.sent = content
        try:
            return self.engine.drive(call, attempt)
        finally:
            self.report = call.report()

    @property
    def record(self) -> Record:
        [record] = self.ledger.records()
        return record


def test_a_run_that_did_not_connect_knows_of_the_one_that_was_lost(ledger: MemoryLedger, clock: VirtualClock) -> None:
    """Its own attempt sent nothing; what became of the call is as unknown as before."""
    run = Runs(ledger, clock, LATER.with_(max_attempts=2), provider=PROVIDER)
    run(LOST)
    clock.advance(60)
    assert run(UNSENT).reason is Reason.ATTEMPTS_EXHAUSTED
    assert run.report is not None
    assert (run.report.effect, run.report.total_attempts) == (Effect.UNKNOWN, 2)
    assert (run.record.phase, run.record.taint) == (Phase.HELD, True)


def test_a_held_call_that_is_put_off_is_put_back(ledger: MemoryLedger, clock: VirtualClock) -> None:
    """It can't be claimed: nobody may take it for one that was never sent. Its attempts and its wait are kept."""
    run = Runs(ledger, clock, provider=PROVIDER)
    for attempts, outcome in enumerate([LOST, UNSENT], start=1):
        until = clock.now() + 60
        assert run(outcome) == Defer(until=until, reason=Reason.WAIT_TOO_LONG)
        record = run.record
        assert (record.phase, record.taint, record.attempts, record.not_before) == (Phase.HELD, True, attempts, until)
        with pytest.raises(SendHeld) as caught:  # not before it is due
            run(DONE)
        assert caught.value.retry_at == until
        clock.advance(60)
    assert run(DONE).reason is Reason.SUCCESS
    assert run.record.phase is Phase.DONE


def test_a_call_that_never_connected_is_claimed_for_later(ledger: MemoryLedger, clock: VirtualClock) -> None:
    run = Runs(ledger, clock, provider=PROVIDER)
    until = clock.now() + 60
    assert run(UNSENT) == Defer(until=until, reason=Reason.WAIT_TOO_LONG)
    record = run.record
    assert (record.phase, record.taint, record.attempts, record.not_before) == (Phase.CLAIMED, False, 1, until)
    assert (record.provider, record.label) == ("made-up", "order 42")


def test_other_content_after_a_refusal_has_a_key_of_its_own_from_then_on(
    ledger: MemoryLedger, clock: VirtualClock
) -> None:
    """Also in a run that did not see the refusal, and finds the key held."""
    run = Runs(ledger, clock, provider=PROVIDER)
    run(WRONG, content=b"wrong")
    for outcome in (LOST, DONE):
        run(outcome, content=b"right")
        clock.advance(60)
    assert run.generations == [1, 2, 2]
    assert (run.record.phase, run.record.generation) == (Phase.DONE, 2)


def test_a_claim_keeps_the_generation_of_what_was_armed(ledger: MemoryLedger, clock: VirtualClock) -> None:
    policy = RetryPolicy(max_wait=5.0, total_timeout=7.0, backoff=Constant(seconds=5.0))
    run = Runs(ledger, clock, policy, provider=PROVIDER)
    run(WRONG, content=b"wrong")
    decision = run(BUSY, UNSENT, content=b"right")
    assert (decision.reason, run.generations) == (Reason.RUN_OVER, [1, 2])
    assert (run.record.phase, run.record.generation, run.record.attempts) == (Phase.CLAIMED, 2, 2)


def test_the_status_of_an_answer_is_kept_even_if_the_profile_keeps_nothing(
    ledger: MemoryLedger, clock: VirtualClock
) -> None:
    run = Runs(ledger, clock, provider=PROVIDER)
    run(DONE)
    with pytest.raises(Replay) as caught:
        run(DONE)
    assert caught.value.record.result == {"status": 201}
    assert [event.reason for event in run.events if isinstance(event, Done)] == [Reason.SUCCESS, Reason.GUARDED]


def test_of_the_request_is_kept_what_the_profile_names(ledger: MemoryLedger, clock: VirtualClock) -> None:
    run = Runs(ledger, clock, provider=evolve(PROVIDER, answers=Answers(keep={"ref": "request:/ref"})))
    run(DONE, content=b'{"ref": "r1", "to": "ann@example.com"}')
    assert run.record.result == {"status": 201, "ref": "r1"}


def test_a_call_whose_life_ended_between_two_runs_sends_nothing(ledger: MemoryLedger, clock: VirtualClock) -> None:
    run = Runs(ledger, clock, LATER.with_(lifetime=100.0))
    run(UNSENT)
    clock.advance(100)
    with pytest.raises(DeadlineExceeded):
        run(DONE)
    assert run.generations == []
    assert run.report is not None
    assert (run.report.reason, run.record.phase) == (Reason.LIFETIME_OVER, Phase.FAILED)


def test_other_content_does_not_wait_for_who_has_the_key(ledger: MemoryLedger, clock: VirtualClock) -> None:
    policy = RetryPolicy(guard=Guard(join=5.0))

    def another() -> None:
        with pytest.raises(KeyReused):
            Runs(ledger, clock, policy)(DONE, content=b"other")

    Runs(ledger, clock, policy)(DONE, then=another)
    assert clock.sleeps == []


def test_good_news_of_a_call_that_the_store_lost_names_its_provider(ledger: MemoryLedger, clock: VirtualClock) -> None:
    run = Runs(ledger, clock, provider=PROVIDER)
    run(DONE, then=ledger._records.clear)
    assert (run.record.phase, run.record.provider) == (Phase.DONE, "made-up")


class Away(MemoryLedger):
    """Some of it can't be reached."""

    without: tuple[str, ...] = ()

    def read(self, key: bytes) -> tuple[Record | None, float]:
        self._reach("read")
        return super().read(key)

    def arm(self, take: Take) -> Taken | Refused:
        self._reach("arm")
        return super().arm(take)

    def claim(self, take: Take) -> Taken | Refused:
        self._reach("claim")
        return super().claim(take)

    def _reach(self, operation: str) -> None:
        if operation in self.without:
            raise LedgerUnavailable("away")


@pytest.mark.parametrize(("held", "without"), [(False, ("read", "claim")), (True, ("arm",))])
def test_what_could_not_be_asked_and_written_is_told(clock: VirtualClock, held: bool, without: tuple[str, ...]) -> None:
    ledger = Away(clock=clock)
    run = Runs(ledger, clock, provider=PROVIDER)
    if held:
        run(LOST)
        clock.advance(60)
    ledger.without = without
    assert isinstance(run(UNSENT), Defer)
    assert tuple(event.operation for event in run.events if isinstance(event, LedgerDown)) == without
    assert run.report is not None
    assert run.report.recorded is False


class Interrupted(MemoryLedger):
    """The process is told to stop while the ledger is told of a lost answer."""

    def unknown(self, *args: Any, **options: Any) -> bool:
        raise KeyboardInterrupt


def test_who_is_torn_out_gives_nothing_back_that_may_have_been_sent(clock: VirtualClock) -> None:
    run = Runs(Interrupted(clock=clock), clock)
    with pytest.raises(KeyboardInterrupt):
        run(LOST)
    assert run.record.phase is Phase.ARMED  # held when its lease is over, and not free for the next caller
