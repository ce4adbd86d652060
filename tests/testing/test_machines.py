"""The state machines can see: what is whole passes, each seeded bug is found, and the runs reach every state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase as Stage
from hypothesis import settings
from hypothesis import strategies as hs
from hypothesis.stateful import run_state_machine_as_test

from retrypolicy import Engine, RetryBudget, RetryPolicy
from retrypolicy.budget import BreakerState, BudgetState, Kind
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import RETENTION, Filter, Phase, Record, Refused, Take, Taken
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.testing import VirtualClock
from retrypolicy.testing.machines import BreakerMachine, BudgetMachine, EngineMachine, LedgerMachine, Subject
from tests.scaling import stateful

pytestmark = pytest.mark.slow

FIND = settings(
    max_examples=400,
    stateful_step_count=30,
    deadline=None,
    database=None,
    phases=[Stage.generate],
    derandomize=True,  # what a machine can see must not be luck
    report_multiple_bugs=False,  # one failure is enough
)
PASS = settings(max_examples=60, stateful_step_count=30, deadline=None, database=None, derandomize=True)

TestEngine = EngineMachine.TestCase  # a ledger of each kind is tried beside its other tests
TestBudget = BudgetMachine.TestCase
TestBreaker = BreakerMachine.TestCase
TestEngine.settings = TestBudget.settings = TestBreaker.settings = stateful(20, 30)


def machine(base: type, **members: Any) -> Any:
    return type("Machine", (base,), members)


def ledgers(make: Callable[[VirtualClock], Any]) -> Any:
    def subject(self: Any) -> Subject:
        clock = VirtualClock()
        ledger = make(clock)
        return Subject(ledger=ledger, advance=clock.jump, reopen=lambda: ledger)

    return machine(LedgerMachine, open=subject)


# -- ledgers


def test_a_sound_ledger_passes_and_every_state_is_reached() -> None:
    subject = ledgers(lambda clock: MemoryLedger(clock=clock))
    run_state_machine_as_test(subject, settings=PASS)
    covered = subject.covered
    assert covered.states == {"absent", "claimed", "armed", "held", "done", "failed"}
    assert {"arm", "claim", "park", "reject", "unknown", "done", "resolve", "race"} <= set(covered.steps)
    assert covered.steps.total() > 400
    assert covered.moves["arm", "absent", "armed"]
    assert covered.moves["unknown", "armed", "held"]


def test_each_machine_counts_for_itself() -> None:
    one, other = (ledgers(lambda clock: MemoryLedger(clock=clock)) for _ in range(2))
    run_state_machine_as_test(one, settings=settings(PASS, max_examples=5))
    assert one.covered.steps
    assert not other.covered.steps
    assert not LedgerMachine.covered.steps


class TwoSteps(MemoryLedger):
    """Reads, and then writes: another thread may come in between."""

    def arm(self, take: Take) -> Taken | Refused:
        record, now = self.read(take.key)
        _, answer = transitions.arm(record, take, now, RETENTION)
        if isinstance(answer, Taken):
            time.sleep(0.001)
            with self._lock:
                after, _ = transitions.arm(record, take, now, RETENTION)
                self._records[take.key] = after
        return answer


class RunsAgain(MemoryLedger):
    """An armed key whose lease is over is simply run again."""

    def arm(self, take: Take) -> Taken | Refused:
        with self._lock:
            record = self._records.get(take.key)
            if record is not None and record.phase is Phase.ARMED and record.lease < self._clock.now():
                self._records[take.key] = evolve(record, phase=Phase.CLAIMED, owner=None)
        return super().arm(take)


class BelievesStale(MemoryLedger):
    """A refusal is believed from an owner that has lost the key."""

    def reject(self, key: bytes, owner: bytes, fence: int, **more: Any) -> bool:
        record, _ = self.read(key)
        if record is not None and record.owner is not None:
            owner, fence = record.owner, record.fence
        return super().reject(key, owner, fence, **more)


class CollectsHeld(MemoryLedger):
    """What is old is deleted, whatever it is."""

    def read(self, key: bytes) -> tuple[Record | None, float]:
        record, now = super().read(key)
        return (None if record is not None and record.expires <= now else record), now


class ForgetsWindow(MemoryLedger):
    """A held key is sent again though the provider has forgotten it."""

    def arm(self, take: Take) -> Taken | Refused:
        return super().arm(evolve(take, window=float("inf")) if take.window else take)


class LastResultWins(MemoryLedger):
    """A key that is done becomes done again, with another result."""

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        super().done(key, result, provider=provider)
        return True


class ListsTooMuch(MemoryLedger):
    """Filters only by phase."""

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008
        return super().records(Filter(phases=where.phases))


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", [TwoSteps, RunsAgain, BelievesStale, CollectsHeld, ForgetsWindow, LastResultWins, ListsTooMuch]
)
def test_a_bug_in_a_ledger_is_found(bug: Any) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ledgers(lambda clock: bug(clock=clock)), settings=FIND)


# -- engines


def test_our_engine_passes_and_every_phase_is_reached() -> None:
    ours = machine(EngineMachine)
    run_state_machine_as_test(ours, settings=PASS)
    assert ours.covered.states >= {"absent", "armed", "held", "done", "failed"}
    assert {"call", "call without key", "evidence"} <= set(ours.covered.steps)
    assert ours.covered.steps.total() > 150


def engines(**wrong: Any) -> Any:
    """Engines that go by another policy than they were given."""

    def open_engine(self: Any, policy: RetryPolicy, ledger: Any, clock: Any, random: Any) -> Engine:
        changes = {name: value(policy) if callable(value) else value for name, value in wrong.items()}
        return Engine(policy.with_(**changes), ledger=ledger, clock=clock, random=random, secret="x")

    return machine(EngineMachine, open=open_engine)


class LosesGoodNews(MemoryLedger):
    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        return True


ENGINES = {
    "repeats what may have been applied": engines(idempotent_methods={"CALL"}),
    "takes a 500 for a refusal": engines(refusal_statuses=lambda policy: policy.refusal_statuses | {500}),
    "one attempt too many": engines(max_attempts=lambda policy: policy.max_attempts + 1),
    "sleeps as long as it likes": engines(max_wait=1e6),
    "knows no total timeout": engines(total_timeout=None),
    "knows no lifetime": engines(lifetime=None),
    "sends held keys again": engines(guard=lambda policy: evolve(policy.guard, on_unknown="resend")),
    "has no memory": machine(
        EngineMachine, open=lambda self, policy, ledger, clock, random: Engine(policy, clock=clock)
    ),
    "loses good news": machine(EngineMachine, store=lambda self, clock: LosesGoodNews(clock=clock)),
    "runs again": machine(EngineMachine, store=lambda self, clock: RunsAgain(clock=clock)),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", ENGINES)
def test_a_bug_in_an_engine_is_found(bug: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(ENGINES[bug], settings=FIND)


# -- budgets and breakers


def test_our_budgets_pass() -> None:
    ours = machine(BudgetMachine)
    run_state_machine_as_test(ours, settings=PASS)
    assert ours.covered.states == {"full", "part", "empty"}
    assert ours.covered.steps["permitted"]
    assert ours.covered.steps["refused"]


class Generous(BudgetState):
    """A retry is permitted while anything is left."""

    def permit(self, kind: Kind = "transient") -> bool:
        return super().permit(kind) or self.balance > 0


class Stingy(BudgetState):
    """A refusal costs as much as a retry."""

    def permit(self, kind: Kind = "transient") -> bool:
        permitted = super().permit(kind)
        if not permitted:
            self._account.add(-self._costs[kind])
        return permitted


class RunsOver(BudgetState):
    """What is paid in when the bucket is full is kept."""

    saved = 0

    def on_success(self, last: Kind | None = None) -> None:
        self.saved += self._account.full
        super().on_success(last)

    def permit(self, kind: Kind = "transient") -> bool:
        if super().permit(kind):
            return True
        self.saved -= 1
        return self.saved >= 0


class KnowsOneCost(BudgetState):
    def permit(self, kind: Kind = "transient") -> bool:
        return super().permit("transient")


@pytest.mark.slow
@pytest.mark.parametrize("bug", [Generous, Stingy, RunsOver, KnowsOneCost])
def test_a_bug_in_a_budget_is_found(bug: Any) -> None:
    wrong = machine(BudgetMachine, open=lambda self, budget, clock: bug(budget, "host", clock))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(wrong, settings=FIND)


def test_one_budget_can_be_tried_alone() -> None:
    tried: list[RetryBudget] = []

    def open_budget(self: Any, budget: RetryBudget, clock: VirtualClock) -> BudgetState:
        tried.append(budget)
        return budget.state("host", clock)

    mine = machine(BudgetMachine, budgets=hs.just(RetryBudget.aws()), open=open_budget)
    run_state_machine_as_test(mine, settings=settings(PASS, max_examples=5))
    assert set(tried) == {RetryBudget.aws()}


def test_our_breakers_pass() -> None:
    ours = machine(BreakerMachine)
    run_state_machine_as_test(ours, settings=PASS)
    assert ours.covered.states == {"closed", "open", "half_open"}
    assert ours.covered.moves["unhealthy", "closed", "open"]


class TooSoon(BreakerState):
    """It is half open before its time."""

    def before(self) -> float | None:
        wait = super().before()
        return None if wait is not None and wait < self.breaker.open_for / 2 else wait


class TooMany(BreakerState):
    """Half open, it lets everybody through."""

    def before(self) -> float | None:
        wait = super().before()
        return None if self.phase == "half_open" else wait


class NeverOpens(BreakerState):
    def record(self, healthy: bool | None, started: float | None = None) -> None:
        return


class CountsLateNews(BreakerState):
    """An attempt from before it opened closes it."""

    def record(self, healthy: bool | None, started: float | None = None) -> None:
        super().record(healthy)


@pytest.mark.slow
@pytest.mark.parametrize("bug", [TooSoon, TooMany, NeverOpens, CountsLateNews])
def test_a_bug_in_a_breaker_is_found(bug: Any) -> None:
    wrong = machine(BreakerMachine, open=lambda self, breaker, clock: bug(breaker, clock))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(wrong, settings=FIND)
