"""The state machines can see: what is whole passes, each seeded bug is found, and the runs reach every state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase as Stage
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import RETENTION, Filter, Phase, Record, Refused, Take, Taken
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.testing import VirtualClock
from retrypolicy.testing.machines import LedgerMachine, Subject

FIND = settings(max_examples=400, stateful_step_count=30, deadline=None, database=None, phases=[Stage.generate])
PASS = settings(max_examples=40, stateful_step_count=30, deadline=None)


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
