"""Eight threads on one session: every request is counted where it arrives, and no connection is lost on the way."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from retrypolicy import Constant, Effect, RetryPolicy, operation, report
from retrypolicy.errors import SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer, Request, Reset

THREADS = 8
CALLS = 96
AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Threads that take turns as often as they can meet each other in more places."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def weather(request: Request) -> Any:
    """What becomes of a request, by its number and how often it came before."""
    kind, turn = int((request.target or "")[1:]) % 6, turns[request.target]
    turns[request.target] += 1
    first = [
        Answer(200, request.target or ""),
        Answer(503, b"x" * 100, headers={"Retry-After": "0"}),
        Answer(429, b"x" * 100_000, framing="chunked"),
        Close("request"),
        Reset("request"),
        Answer(200, b"0123456789", cut=("body", 5)),
    ]
    return first[kind] if turn == 0 else Answer(200, request.target or "")


turns: Counter[str | None] = Counter()


@pytest.mark.parametrize("transport", [None, HTTPAdapter], ids=["inherited", "around"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_request_is_counted_once(method: str, transport: Any) -> None:
    turns.clear()
    attempts: list[int] = []

    size: dict[str, Any] = {"pool_maxsize": THREADS, "pool_block": True}
    with FaultServer(weather) as server, requests.Session() as session:
        adapter = mount(session, AT_ONCE, transport=transport and transport(**size), **size)

        def call(number: int) -> None:
            try:
                response = session.request(method, server.url(f"/{number}"), data=b"x")
                assert response.text == f"/{number}"
                found = report(response)
            except requests.RequestException as error:
                found = report(error)
            assert found is not None
            attempts.append(found.total_attempts)
            lost = number % 6 >= 3
            again = 2 if number % 6 in (1, 2) or (lost and method == "GET") else 1
            assert found.total_attempts == again
            assert found.effect is (Effect.UNKNOWN if number % 6 in (3, 4) and method == "POST" else Effect.APPLIED)

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(call, range(CALLS)))
        assert server.complete == sum(attempts)
        assert len(attempts) == CALLS
        # Every slot of the pool was given back: one that was lost would be missing for ever.
        [pool] = (adapter.transport or adapter).poolmanager.pools._container.values()  # type: ignore[union-attr]
        assert pool.pool.qsize() == THREADS


def test_one_key_in_many_threads_is_sent_once() -> None:
    ledger, barrier = MemoryLedger(), threading.Barrier(THREADS)
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger)

        def call(_: int) -> str:
            barrier.wait()
            try:
                with operation(key="k"):
                    session.post(server.url(), data=b"pay")
            except requests.RequestException as error:
                return type(error).__name__
            return "sent"

        with ThreadPoolExecutor(THREADS) as threads:
            found = Counter(threads.map(call, range(THREADS)))
        assert server.complete == 1
        assert found.pop("ConnectionError") == 1
        assert set(found) <= {"SendHeld", "SendInProgress"}
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"pay")
    assert [record.phase for record in ledger.records()] == [Phase.HELD]
