"""Budgets of a fleet through an engine: one bucket for all; when it is away, a bucket of one's own, and an event."""

from __future__ import annotations

import pytest
import requests

from retrypolicy import Constant, Engine, Reason, RetryBudget, RetryPolicy, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import PolicyError
from retrypolicy.events import BudgetAlone, Event
from retrypolicy.requests import RetryAdapter
from retrypolicy.testing import Answer, FaultServer


class Fleet:
    """A bucket in another process, so to speak: all that is asked of it is noted."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.away = False
        self.asked: list[str] = []

    def move(self, key: str, *, put: int, take: int, capacity: int, rate: float) -> int:
        if self.away:
            raise ConnectionError("gone")
        self.asked.append(key)
        before = self.level = min(capacity, self.level + put)
        if before >= take:
            self.level -= take
        return before


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


def policy(name: str) -> RetryPolicy:
    budget = RetryBudget(capacity=10, per_second=0, deposit=0, name=name)
    return RetryPolicy(backoff=Constant(seconds=0), max_attempts=3, budget=budget)


def fail() -> None:
    raise OSError


def test_two_engines_spend_from_one_bucket() -> None:
    fleet = Fleet(level=3_000_000)  # three retries
    made = []
    for _ in range(2):
        engine = Engine(policy("one bucket"), shared=fleet, clock=VirtualClock())
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                engine.run(fail, idempotent=True)
            found = report(caught.value)
            assert found is not None
            made.append((found.total_attempts, found.reason))
    exhausted = Reason.BUDGET_EXHAUSTED
    assert made == [(3, Reason.ATTEMPTS_EXHAUSTED), (2, exhausted), (1, exhausted), (1, exhausted)]
    assert set(fleet.asked) == {"one bucket:"}


def test_gone_is_told_once_and_the_own_bucket_goes_on() -> None:
    fleet, heard, clock = Fleet(level=10_000_000), Heard(), VirtualClock()
    engine = Engine(policy("gone"), shared=fleet, clock=clock, listeners=[heard])
    fleet.away = True
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            engine.run(fail, idempotent=True)
    found = report(caught.value)
    assert found is not None
    assert found.total_attempts == 3  # from ten tokens of its own
    assert [type(e) for e in heard.events].count(BudgetAlone) == 1
    fleet.away = False
    clock.advance(60)
    with pytest.raises(OSError):
        engine.run(fail, idempotent=True)
    fleet.away = True
    clock.advance(60)
    with pytest.raises(OSError):
        engine.run(fail, idempotent=True)
    assert [type(e) for e in heard.events].count(BudgetAlone) == 2


def test_the_adapter_hands_it_on() -> None:
    fleet = Fleet(level=0)
    with FaultServer([Answer(503), Answer(200)]) as server, requests.Session() as session:
        session.mount("http://", RetryAdapter(policy("adapter"), shared=fleet))
        response = session.get(server.url())
    found = report(response)
    assert found is not None
    assert (response.status_code, found.reason) == (503, Reason.BUDGET_EXHAUSTED)
    assert fleet.asked


def test_a_budget_that_cannot_be_shared_is_said_when_the_engine_is_made() -> None:
    with pytest.raises(PolicyError, match="shared"):
        Engine(RetryPolicy(budget=RetryBudget.finagle()), shared=Fleet(level=0))
