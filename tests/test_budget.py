"""Laws of the retry budgets, and the published numbers of the systems that the presets reproduce."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy.budget import BudgetState, CircuitBreaker, Kind, RetryBudget, _Registry
from retrypolicy.clock import SystemClock, VirtualClock
from retrypolicy.errors import PolicyError

kinds: st.SearchStrategy[Kind] = st.sampled_from(["transient", "timeout", "throttled"])
PRESETS = [RetryBudget(), RetryBudget.grpc(), RetryBudget.finagle(), RetryBudget.aws(version="2.0"), RetryBudget.aws()]
presets = st.sampled_from(PRESETS)


def fresh(budget: RetryBudget, clock: VirtualClock | None = None) -> BudgetState:
    return budget.state("api.example", clock or VirtualClock())


def until_refused(state: BudgetState, kind: Kind = "transient") -> int:
    return next(count for count in itertools.count() if not state.permit(kind))


def call(state: BudgetState, outcomes: str, kind: Kind = "transient") -> int:
    """One call as an engine makes it, its attempts failing (F) or succeeding (S); how many attempts were made."""
    state.on_call()
    last: Kind | None = None
    for number, outcome in enumerate(outcomes, start=1):
        if outcome == "S":
            state.on_success(last)
            return number
        state.on_failure(kind)
        if number == len(outcomes) or not state.permit(kind):
            return number
        last = kind
    return len(outcomes)


def root(function: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return low


# The default.


def test_the_default_has_a_hundred_in_hand_then_one_a_second() -> None:
    clock = VirtualClock()
    state = fresh(RetryBudget(), clock)
    assert until_refused(state) == 100
    clock.advance(0.9)
    assert until_refused(state) == 0
    clock.advance(0.1)
    assert until_refused(state) == 1
    clock.advance(7)
    assert until_refused(state) == 7
    clock.advance(10**9)
    assert until_refused(state) == 100


def test_the_default_lets_one_retry_happen_for_five_successes() -> None:
    state = fresh(RetryBudget())
    until_refused(state)
    for _ in range(4):
        state.on_success()
    assert not state.permit()
    state.on_success()
    assert state.permit()
    assert not state.permit()


def test_a_rate_loses_nothing_however_often_it_is_asked() -> None:
    clock = VirtualClock()
    state = fresh(RetryBudget(deposit=1e-6, per_second=1, capacity=2), clock)
    until_refused(state)
    for _ in range(20_000):
        clock.advance(1e-5 / 3)  # three and a third millionths
        state.on_success()
    assert state.balance == pytest.approx(20_000 * (1e-5 / 3 + 1e-6), abs=1e-5)


@given(st.lists(st.tuples(st.sampled_from(["call", "success", "permit", "wait"]), st.integers(1, 50)), max_size=60))
def test_retries_never_exceed_capacity_deposits_and_rate(steps: list[tuple[str, int]]) -> None:
    """Over any time: retries <= capacity + ratio * successes + rate * seconds."""
    clock = VirtualClock()
    state = fresh(RetryBudget(deposit=0.2, per_second=2, capacity=10), clock)
    successes = retries = 0
    for step, count in steps:
        for _ in range(count):
            if step == "call":
                state.on_call()
            elif step == "success":
                state.on_success()
                successes += 1
            elif step == "permit":
                retries += state.permit()
            else:
                clock.advance(0.01)
        assert retries <= 10 + 0.2 * successes + 2 * clock.monotonic() + 1e-6


# gRPC A6.


def test_grpc_half_of_the_tokens_stops_retries() -> None:
    """maxTokens 10: each failure costs one, and retries stop when 5 are left, not before."""
    state = fresh(RetryBudget.grpc(max_tokens=10, token_ratio=0.1))
    permitted = []
    for _ in range(12):
        state.on_failure()
        permitted.append(state.permit())
    assert permitted == [True] * 4 + [False] * 8
    assert state.balance == 0  # never below
    for _ in range(50):
        state.on_success()
    assert state.balance == 5  # exactly: fifty times 0.1
    assert not state.permit()
    state.on_success()
    assert state.permit()


def test_grpc_never_holds_more_than_max_tokens() -> None:
    state = fresh(RetryBudget.grpc(max_tokens=10, token_ratio=0.1))
    for _ in range(1000):
        state.on_success()
    assert state.balance == 10


def test_grpc_permits_cost_nothing() -> None:
    state = fresh(RetryBudget.grpc())
    assert all(state.permit() for _ in range(1000))
    assert state.balance == 10


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_grpc_drift_is_zero_where_r_of_one_plus_r_fail(ratio: float) -> None:
    """Retries are off in the long run when more than r / (1 + r) of the attempts fail: 9.1 % at 0.1."""
    period = round(1 / ratio)  # that many successes for one failure: a failing share of exactly r / (1 + r)

    def drift(extra_failures: int, extra_successes: int) -> float:
        state = fresh(RetryBudget.grpc(max_tokens=1000, token_ratio=ratio))
        for _ in range(500):
            state.on_failure()
        before = state.balance
        for _ in range(100):
            state.on_failure()
            for _ in range(period):
                state.on_success()
        for _ in range(extra_failures):
            state.on_failure()
        for _ in range(extra_successes):
            state.on_success()
        return state.balance - before

    assert drift(0, 0) == 0
    assert drift(1, 0) < 0
    assert drift(0, 1) > 0


# Finagle and Linkerd.


def test_finagle_starts_with_a_hundred() -> None:
    state = fresh(RetryBudget.finagle())
    assert until_refused(state) == 100


def test_finagle_a_fifth_of_the_calls_besides() -> None:
    state = fresh(RetryBudget.finagle())
    for _ in range(50):
        state.on_call()
    assert until_refused(state) == 110


def test_finagle_deposits_at_calls_not_at_successes() -> None:
    state = fresh(RetryBudget.finagle())
    for _ in range(50):
        state.on_success()
    assert until_refused(state) == 100


def test_finagle_forgets_after_ttl() -> None:
    clock = VirtualClock()
    state = fresh(RetryBudget.finagle(), clock)
    for _ in range(50):
        state.on_call()
    clock.advance(9)
    assert until_refused(state) == 110
    clock.advance(1)  # the deposits are forgotten, the payments are not
    assert state.balance == -50
    assert until_refused(state) == 0
    clock.advance(9)
    assert until_refused(state) == 100
    clock.advance(1000)
    assert until_refused(state) == 100


@pytest.mark.parametrize(
    ("ratio", "cost"), [(0.2, 5.0), (0.3, 3.333), (0.4, 2.5), (0.7, 1.428), (1.0, 1.0), (1000, 0.001)]
)
def test_finagle_rounds_the_cost_to_thousandths(ratio: float, cost: float) -> None:
    """floor(1000 / percentCanRetry) for each 1000. Tower rounds to whole deposits instead: there 0.3 acts as 0.333."""
    state = fresh(RetryBudget.finagle(ratio=ratio, per_second=0))
    assert until_refused(state) == 0
    for _ in range(100):
        state.on_call()
    assert until_refused(state) == 100_000 // round(cost * 1000)


def test_finagle_without_a_ratio_has_the_reserve_alone() -> None:
    state = fresh(RetryBudget.finagle(ratio=0, per_second=3, ttl=10))
    for _ in range(1000):
        state.on_call()
    assert until_refused(state) == 30


def test_finagle_of_nothing_never_permits() -> None:
    state = fresh(RetryBudget.finagle(ratio=0, per_second=0))
    state.on_call()
    assert not state.permit()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10), st.floats(0, 3)), max_size=40))
def test_finagle_in_any_window(steps: list[tuple[int, int, float]]) -> None:
    """Retries in a window <= ratio * deposits + per_second * ttl: at every retry, and to a tenth of ttl."""
    clock = VirtualClock()
    state = fresh(RetryBudget.finagle(ratio=0.2, per_second=1, ttl=10), clock)
    deposits: list[float] = []
    retries: list[float] = []
    for calls, attempts, wait in steps:
        now = clock.monotonic()
        for _ in range(calls):
            state.on_call()
            deposits.append(now)
        permitted = [now for _ in range(attempts) if state.permit()]
        retries += permitted
        if permitted:
            paid = sum(t > now - 9 for t in retries)
            assert paid <= 0.2 * sum(t > now - 10 for t in deposits) + 10
        clock.advance(wait)


# AWS, standard mode.


@pytest.mark.parametrize(
    ("version", "kind", "retries"),
    [
        ("2.0", "transient", 100),
        ("2.0", "throttled", 100),
        ("2.0", "timeout", 50),
        ("2.1", "transient", 35),
        ("2.1", "timeout", 35),
        ("2.1", "throttled", 100),
    ],
)
def test_aws_retries_until_dry(version: Any, kind: Kind, retries: int) -> None:
    """All attempts fail: floor(500 / cost) retries."""
    assert until_refused(fresh(RetryBudget.aws(version=version)), kind) == retries


def test_aws_takes_nothing_when_it_refuses() -> None:
    state = fresh(RetryBudget.aws(version="2.0"))
    for _ in range(99):
        assert state.permit("transient")
    assert not state.permit("timeout")
    assert state.balance == 5
    assert state.permit("transient")


def test_aws_a_success_gives_back_the_last_cost_not_the_sum() -> None:
    state = fresh(RetryBudget.aws(version="2.0"))
    for _ in range(10):
        state.permit()
    assert state.balance == 450
    call(state, "S")
    assert state.balance == 451
    call(state, "FS")
    assert state.balance == 451
    call(state, "FFS")
    assert state.balance == 446
    state.permit("transient")
    state.permit("timeout")
    state.on_success("timeout")
    assert state.balance == 441
    call(state, "F")  # not retried, not a success: nothing
    assert state.balance == 441


def test_aws_is_capped_at_500() -> None:
    state = fresh(RetryBudget.aws())
    state.on_success()
    state.on_success("transient")
    assert state.balance == 500


@pytest.mark.parametrize(("kind", "version", "failing"), [
    ("throttled", "2.1", 0.3207), ("timeout", "2.0", 0.2460), ("transient", "2.1", 0.2149),
])  # fmt: skip
def test_aws_drains_above_the_published_share_of_failures(kind: Kind, version: Any, failing: float) -> None:
    """Three attempts that fail independently: here the bucket neither fills nor drains (about 32 % and 22 %)."""

    def change(outcomes: str) -> float:
        state = fresh(RetryBudget.aws(version=version))
        for _ in range(20):
            state.permit("throttled")
        before = state.balance
        assert call(state, outcomes, kind) == len(outcomes)
        return state.balance - before

    first, second, third, none = (change(outcomes) for outcomes in ("S", "FS", "FFS", "FFF"))

    def drift(p: float) -> float:
        return (1 - p) * first + p * (1 - p) * second + p * p * (1 - p) * third + p**3 * none

    assert root(drift) == pytest.approx(failing, abs=5e-5)


@pytest.mark.parametrize(("kind", "version", "share"), [
    ("transient", "2.0", 0.091), ("timeout", "2.0", 0.048), ("transient", "2.1", 0.034),
])  # fmt: skip
def test_aws_drains_above_this_share_of_calls_that_always_fail(kind: Kind, version: Any, share: float) -> None:
    """1 / (1 + 2 cost)."""
    state = fresh(RetryBudget.aws(version=version))
    for _ in range(20):
        state.permit("throttled")
    before = state.balance
    call(state, "FFF", kind)
    lost = before - state.balance
    assert 1 / (1 + lost) == pytest.approx(share, abs=5e-4)
    for _ in range(round(lost)):
        call(state, "S")
    assert state.balance == before


def test_aws_an_unknown_version_is_named() -> None:
    with pytest.raises(PolicyError, match=r"RetryBudget\.aws\.version: '3'"):
        RetryBudget.aws(version="3")  # type: ignore[arg-type] # that is the point


# All of them.


@given(presets, st.lists(st.tuples(st.sampled_from(["call", "success", "failure", "permit"]), kinds), max_size=200))
def test_no_budget_goes_below_nothing_or_above_its_capacity(budget: RetryBudget, steps: list[tuple[str, Kind]]) -> None:
    state = fresh(budget)
    for step, kind in steps:
        before = state.balance
        if step == "call":
            state.on_call()
        elif step == "success":
            state.on_success(kind)
        elif step == "failure":
            state.on_failure(kind)
        elif not state.permit(kind):
            assert state.balance == before
        assert state.balance >= 0
        if budget.capacity is not None:
            assert state.balance <= budget.capacity


@pytest.mark.parametrize("budget", PRESETS)
def test_a_budget_can_be_written_down_compared_and_pickled(budget: RetryBudget) -> None:
    for copy in (eval(repr(budget)), pickle.loads(pickle.dumps(budget))):
        assert copy == budget
        assert hash(copy) == hash(budget)


@pytest.mark.parametrize("budget", [b for b in PRESETS if b.capacity is not None])
def test_a_success_takes_no_lock_while_the_bucket_is_full(budget: RetryBudget) -> None:
    state = fresh(budget)
    with state._lock:  # held by somebody: whoever needs it would wait for ever
        done = threading.Event()

        def succeed() -> None:
            state.on_call()
            state.on_success("transient")
            done.set()

        threading.Thread(target=succeed, daemon=True).start()
        assert done.wait(30)


def test_threads_never_spend_a_token_twice() -> None:
    state = fresh(RetryBudget.aws(version="2.0"))
    permitted: list[int] = []
    start = threading.Barrier(8)

    def spend() -> None:
        start.wait()
        permitted.append(sum(state.permit() for _ in range(50)))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permitted) == 100
    assert state.balance == 0


def test_equal_budgets_share_their_state_host_by_host() -> None:
    clock = VirtualClock()
    state = RetryBudget(capacity=7).state("a.example", clock)
    assert RetryBudget(capacity=7).state("a.example", clock) is state
    assert RetryBudget(capacity=7).state("b.example", clock) is not state
    assert RetryBudget(capacity=8).state("a.example", clock) is not state
    assert RetryBudget(capacity=7, name="mail").state("a.example", clock) is not state
    assert RetryBudget(capacity=7).state("a.example", VirtualClock()) is not state
    assert CircuitBreaker().state("a.example", clock) is CircuitBreaker().state("a.example", clock)


def test_all_system_clocks_are_one() -> None:
    budget = RetryBudget(name="test_all_system_clocks_are_one")
    assert budget.state("a.example", SystemClock()) is budget.state("a.example", SystemClock())


def test_threads_get_one_and_the_same_state() -> None:
    clock = VirtualClock()
    start = threading.Barrier(8)
    states: list[BudgetState] = []

    def ask() -> None:
        start.wait()
        states.append(RetryBudget().state("a.example", clock))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(states) == 8
    assert len(set(map(id, states))) == 1


def test_a_million_hosts_do_not_fill_the_memory_and_spent_budgets_are_kept() -> None:
    registry: _Registry[BudgetState] = _Registry()
    clock = VirtualClock()
    budget = RetryBudget(per_second=0)

    def get(host: str) -> BudgetState:
        return registry.get(budget, host, clock, lambda: BudgetState(budget, host, clock))

    spent = get("busy.example")
    until_refused(spent)
    for number in range(3 * registry.LIMIT):
        get(f"{number}.example")
    assert get("busy.example") is spent
    assert len(registry._states) <= registry.LIMIT
    for number in range(3 * registry.LIMIT):
        get(f"busy{number}.example").permit()
    assert len(registry._states) <= registry.LIMIT


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_fork_starts_anew_in_the_child_even_under_held_locks() -> None:
    script = """
import os, threading
from retrypolicy.budget import CircuitBreaker, RetryBudget, _budgets
from retrypolicy.clock import SystemClock

budget, breaker, clock = RetryBudget.aws(), CircuitBreaker(minimum=1), SystemClock()
state, circuit = budget.state("a", clock), breaker.state("a", clock)
while state.permit():
    pass
circuit.record(False)
held = threading.Event()

def hold():
    with state._lock, circuit._lock, _budgets._lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    fine = budget.state("a", clock) is state and state.permit() and budget.state("b", clock).permit()
    fine = fine and circuit.before() is None and circuit.phase == "closed"
    os._exit(0 if fine else 1)
status = os.waitpid(child, 0)[1]
os._exit(os.waitstatus_to_exitcode(status) + (10 if circuit.phase == "closed" else 0))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"deposit": -0.1}, "RetryBudget.deposit"),
        ({"deposit": "0.2"}, "RetryBudget.deposit"),
        ({"deposit_on": "failure"}, "RetryBudget.deposit_on"),
        ({"cost": 0}, "RetryBudget.cost"),
        ({"timeout_cost": 0}, "RetryBudget.timeout_cost"),
        ({"throttled_cost": -1}, "RetryBudget.throttled_cost"),
        ({"charge": "call"}, "RetryBudget.charge"),
        ({"charge": "failure", "window": 10, "capacity": None}, "RetryBudget.charge"),
        ({"refund": 1}, "RetryBudget.refund"),
        ({"per_second": float("nan")}, "RetryBudget.per_second"),
        ({"capacity": 0}, "RetryBudget.capacity"),
        ({"capacity": None}, "RetryBudget.window"),
        ({"window": 10}, "RetryBudget.window"),
        ({"window": 0, "capacity": None}, "RetryBudget.window"),
        ({"name": ""}, "RetryBudget.name"),
        ({"colour": "red"}, "RetryBudget.colour"),
    ],
)
def test_bad_values_are_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        RetryBudget(**fields)
    assert caught.value.field == name
    assert name in str(caught.value)
    assert caught.value.allowed
