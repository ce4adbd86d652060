"""Laws of the circuit breaker: when it opens, whom it lets through, and that it always comes back."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retrypolicy.budget import BreakerState, CircuitBreaker
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import PolicyError


def fresh(clock: VirtualClock | None = None, **fields: Any) -> BreakerState:
    return CircuitBreaker(**fields).state("api.example", clock or VirtualClock())


def opened(clock: VirtualClock, **fields: Any) -> BreakerState:
    state = fresh(clock, **{"minimum": 1, **fields})
    state.record(False)
    assert state.phase == "open"
    return state


def test_it_opens_at_the_ratio_and_not_before_the_minimum() -> None:
    state = fresh()
    for _ in range(10):
        state.record(True)
    for _ in range(9):
        state.record(False)
    assert state.phase == "closed"
    assert state.before() is None
    state.record(False)  # the 20th, and half of them failed
    assert state.phase == "open"
    assert state.before() == 10


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 30), st.floats(0.01, 1))
def test_it_opens_exactly_when_the_share_is_reached(outcomes: list[bool], minimum: int, ratio: float) -> None:
    state = fresh(failure_ratio=ratio, minimum=minimum)
    for number, healthy in enumerate(outcomes, start=1):
        state.record(healthy)
        failed = outcomes[:number].count(False)
        if number >= minimum and failed / number >= ratio:
            assert state.phase == "open"
            return
        assert state.phase == "closed"


def test_three_in_thirty_are_a_tenth() -> None:
    """0.1 * 30 is more than 3 in binary; the share is compared instead."""
    state = fresh(failure_ratio=0.1, minimum=30)
    for number in range(30):
        state.record(number >= 3)
    assert state.phase == "open"


def test_what_says_nothing_of_health_does_not_count() -> None:
    state = fresh(minimum=3)
    for _ in range(100):
        state.record(None)
    state.record(False)
    state.record(False)
    assert state.phase == "closed"
    state.record(False)
    assert state.phase == "open"


def test_old_outcomes_are_forgotten() -> None:
    clock = VirtualClock()
    state = fresh(clock, minimum=20, window=30)
    for _ in range(19):
        state.record(False)
    clock.advance(30)
    state.record(False)
    assert state.phase == "closed"
    clock.advance(26)
    for _ in range(19):
        state.record(False)
    assert state.phase == "open"


def test_the_wait_runs_down_and_one_probe_passes() -> None:
    clock = VirtualClock()
    state = opened(clock)
    assert state.before() == 10
    clock.advance(9)
    assert state.before() == pytest.approx(1)
    clock.advance(1)
    assert state.before() is None
    assert state.phase == "half_open"
    assert state.before() == 10  # the others wait for the probe
    state.record(True)
    assert state.phase == "closed"
    assert state.before() is None


def test_an_unhealthy_probe_opens_it_again_for_the_whole_time() -> None:
    clock = VirtualClock()
    state = opened(clock)
    clock.advance(10)
    assert state.before() is None
    clock.advance(3)
    state.record(False)
    assert state.phase == "open"
    assert state.before() == 10


def test_all_probes_must_be_healthy() -> None:
    clock = VirtualClock()
    state = opened(clock, half_open=3)
    clock.advance(10)
    assert [state.before() for _ in range(4)] == [None, None, None, 10]
    state.record(True)
    state.record(True)
    assert state.phase == "half_open"
    assert state.before() is not None  # two passed, one is out
    state.record(True)
    assert state.phase == "closed"


def test_a_probe_that_tells_nothing_gives_its_place_back() -> None:
    clock = VirtualClock()
    state = opened(clock)
    clock.advance(10)
    assert state.before() is None
    state.record(None)
    assert state.phase == "half_open"
    assert state.before() is None


def test_a_probe_that_never_reports_does_not_jam_it() -> None:
    clock = VirtualClock()
    state = opened(clock)
    clock.advance(10)
    assert state.before() is None  # and its thread dies
    clock.advance(9)
    assert state.before() == pytest.approx(1)
    clock.advance(1)
    assert state.before() is None
    state.record(True)
    assert state.phase == "closed"


def test_attempts_from_before_are_not_taken_for_probes() -> None:
    clock = VirtualClock()
    began = clock.monotonic()
    clock.advance(1)
    state = opened(clock)
    clock.advance(10)
    assert state.before() is None
    probe = clock.monotonic()
    state.record(True, started=began)
    assert state.phase == "half_open"
    state.record(False, started=began)
    assert state.phase == "half_open"
    state.record(True, started=probe)
    assert state.phase == "closed"
    state.record(False, started=began)  # nor held against a server that is back
    assert state.phase == "closed"
    clock.advance(1)
    state.record(False, started=clock.monotonic())
    assert state.phase == "open"


def test_late_reports_while_open_change_nothing() -> None:
    clock = VirtualClock()
    state = opened(clock)
    clock.advance(5)
    state.record(True)
    state.record(False)
    assert state.phase == "open"
    assert state.before() == 5


def test_it_forgets_the_past_when_it_closes() -> None:
    clock = VirtualClock()
    state = fresh(clock, minimum=2)
    state.record(False)
    state.record(False)
    clock.advance(10)
    assert state.before() is None
    state.record(True)
    state.record(False)
    assert state.phase == "closed"


def test_threads_get_no_more_probes_than_there_are() -> None:
    clock = VirtualClock()
    state = opened(clock, half_open=3)
    clock.advance(10)
    start = threading.Barrier(8)
    waits: list[float | None] = []

    def ask() -> None:
        start.wait()
        waits.append(state.before())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waits.count(None) == 3


class AnyBreaker(RuleBasedStateMachine):
    """Whatever is reported or left out, in any order: it never lets too many through, and it always comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.state = fresh(self.clock, minimum=3, half_open=2)
        self.probes: list[float] = []  # let through while not closed, and not yet told of

    @rule()
    def ask(self) -> None:
        closed = self.state.phase == "closed"
        wait = self.state.before()
        if closed:
            assert wait is None
        elif wait is None:
            assert self.state.phase == "half_open"
            self.probes.append(self.clock.monotonic())
        else:
            assert 0 < wait <= 10 + 1e-6

    @rule(healthy=st.sampled_from([True, False, None]))
    def report(self, healthy: bool | None) -> None:
        self.state.record(healthy)
        del self.probes[:1]
        if self.state.phase != "half_open":
            self.probes.clear()

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.probes = [began for began in self.probes if began + 10 > self.clock.monotonic()]

    @invariant()
    def no_more_probes_than_allowed(self) -> None:
        assert len(self.probes) <= 2

    @precondition(lambda self: self.state.phase != "closed")
    @rule()
    def silence_opens_the_way(self) -> None:
        self.clock.advance(10)
        assert self.state.before() is None
        self.probes = [self.clock.monotonic()]
        self.state.record(False)
        self.probes.clear()
        assert self.state.phase == "open"


TestAnyBreaker = AnyBreaker.TestCase


def test_a_breaker_can_be_written_down_compared_and_pickled() -> None:
    breaker = CircuitBreaker(window=60, name="mail")
    for copy in (eval(repr(breaker)), pickle.loads(pickle.dumps(breaker))):
        assert copy == breaker
        assert hash(copy) == hash(breaker)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"failure_ratio": 0}, "CircuitBreaker.failure_ratio"),
        ({"failure_ratio": 1.1}, "CircuitBreaker.failure_ratio"),
        ({"window": 0}, "CircuitBreaker.window"),
        ({"minimum": 0}, "CircuitBreaker.minimum"),
        ({"minimum": 2.5}, "CircuitBreaker.minimum"),
        ({"open_for": 0}, "CircuitBreaker.open_for"),
        ({"half_open": 0}, "CircuitBreaker.half_open"),
        ({"name": 5}, "CircuitBreaker.name"),
        ({"treshold": 5}, "CircuitBreaker.treshold"),
    ],
)
def test_bad_values_are_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        CircuitBreaker(**fields)
    assert caught.value.field == name
    assert name in str(caught.value)
    assert caught.value.allowed
