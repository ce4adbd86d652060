"""Beside requests-cache, whose cache is in the session: what is cached costs no attempt."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_cache
from requests.adapters import HTTPAdapter

from retrypolicy import operation, report
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import Answer, Close, FaultServer
from tests.companions.laws import AT_ONCE, BUSY, check_laws, told

transports = pytest.mark.parametrize("transport", [None, HTTPAdapter], ids=["inherited", "around"])


def opened(transport: Any, *, backend: str = "memory", cache: dict[str, Any] | None = None, **options: Any) -> Any:
    session = requests_cache.CachedSession(backend=backend, **(cache or {}))
    mount(session, AT_ONCE, transport=transport and transport(), **options)
    return session


@transports
def test_laws(transport: Any) -> None:
    check_laws(lambda **options: opened(transport, **options))


@transports
def test_a_cached_answer_costs_no_attempt(transport: Any) -> None:
    with FaultServer([BUSY, Close("request"), Answer(200, b"once"), Answer(500)]) as server:
        with opened(transport) as session:
            first, second = session.get(server.url()), session.get(server.url())
        assert (first.content, second.content) == (b"once", b"once")
        assert (first.from_cache, second.from_cache) == (False, True)
        assert server.complete == 3
    assert told(first).total_attempts == 3
    assert report(second) is None


@transports
def test_what_was_refused_to_the_end_is_not_cached(transport: Any) -> None:
    with FaultServer([BUSY] * 4 + [Answer(200, b"here")]) as server, opened(transport) as session:
        assert [session.get(server.url()).status_code for _ in range(3)] == [503, 200, 200]
        assert server.complete == 5


@transports
def test_a_stale_answer_helps_out_when_the_retries_are_used_up(transport: Any) -> None:
    cache = {"expire_after": 1e-6, "stale_if_error": True}
    with FaultServer([Answer(200, b"old"), Close("request")]) as server, opened(transport, cache=cache) as session:
        session.get(server.url())
        response = session.get(server.url())
        assert (response.content, response.from_cache) == (b"old", True)
        assert server.complete == 5


@transports
def test_a_keyed_send_is_done_once_whoever_answers(transport: Any) -> None:
    """A cache for POST answers the second call; the ledger would have."""
    ledger = MemoryLedger()
    cache = {"allowable_methods": ["GET", "POST"]}
    with FaultServer([BUSY, Answer(200, b"sent")]) as server, opened(transport, cache=cache, ledger=ledger) as session:
        for _ in range(2):
            with operation(key="k"):
                assert session.post(server.url(), data=b"pay").content == b"sent"
        assert server.complete == 2
    assert [record.phase for record in ledger.records()] == [Phase.DONE]


@pytest.mark.parametrize("backend", ["sqlite", "filesystem"])
def test_answers_are_stored_without_our_report(backend: str, tmp_path: Path) -> None:
    with FaultServer([BUSY, Answer(200, b"kept")]) as server:
        for _ in range(2):
            with opened(None, backend=backend, cache={"cache_name": str(tmp_path / "cache")}) as session:
                response = session.get(server.url())
                assert pickle.loads(pickle.dumps(response)).content == b"kept"
                session.cache.close()
        assert server.complete == 2
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"status_code" in stored
    assert b"retrypolicy" not in stored


@pytest.fixture
def installed() -> Iterator[None]:
    requests_cache.install_cache(backend="memory")
    yield
    requests_cache.uninstall_cache()


@pytest.mark.usefixtures("installed")
def test_an_installed_cache() -> None:
    with FaultServer([BUSY, Answer(200, b"once")]) as server, requests.Session() as session:
        mount(session, AT_ONCE)
        assert [session.get(server.url()).content for _ in range(2)] == [b"once", b"once"]
        assert server.complete == 2
        assert isinstance(session.get_adapter(server.url()), RetryAdapter)
