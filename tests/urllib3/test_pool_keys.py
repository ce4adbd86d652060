"""Keys and the ledger under a `RetryPoolManager`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import urllib3
from urllib3 import exceptions

from retrypolicy import Effect, Reason, Stage, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import AlreadyDone, ConfigurationError, KeyReused, LedgerUnavailable, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.http.pushback import Hint
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.testing import Answer, Close, FaultServer, Refuse
from retrypolicy.urllib3 import RetryPoolManager
from tests.urllib3.managers import AT_ONCE, BUSY, honouring


def test_held_in_one_manager_is_held_in_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sends.db"
    with FaultServer([Close("request"), Answer(200)]) as server:
        for kind in (exceptions.ProtocolError, SendHeld, SendHeld):
            with RetryPoolManager(AT_ONCE, ledger=url, secret="s") as manager, operation(key="k"):
                with pytest.raises(kind) as caught:
                    manager.request("POST", server.url(), body=b"pay")
                assert isinstance(caught.value, exceptions.HTTPError)
                found = report(caught.value)
                assert found is not None
                assert found.held
        assert server.complete == 1


def test_a_call_that_is_done_is_replayed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sends.db"
    with FaultServer([Answer(200, json.dumps({"id": "e1"}).encode())]) as server:
        options: Any = {"ledger": url, "secret": "s", "provider": "resend", "hosts": ["127.0.0.1"]}
        for preload in (True, True, False):
            with RetryPoolManager(AT_ONCE, **options) as manager, operation(key="k"):
                response = manager.request(
                    "POST", server.url("/emails"), json={"to": "a@example.com"}, preload_content=preload
                )
                assert response.json() == {"id": "e1"}
        assert server.complete == 1
    assert response.headers["X-Retrypolicy-Replayed"] == "true"
    found = report(response)
    assert found is not None
    assert found.replayed


def test_the_callers_own_header_is_the_key() -> None:
    headers = {"idempotency-key": "mine"}
    with FaultServer([Answer(200)]) as server, RetryPoolManager(AT_ONCE, ledger=MemoryLedger()) as manager:
        manager.request("POST", server.url(), body=b"x", headers=headers)
        with pytest.raises(AlreadyDone) as caught:
            manager.request("POST", server.url(), body=b"x", headers=headers)
        assert isinstance(caught.value, exceptions.HTTPError)
        with pytest.raises(KeyReused):
            manager.request("POST", server.url(), body=b"other", headers=headers)
        with pytest.raises(ConfigurationError, match="differ") as wrong, operation(key="other"):
            manager.request("POST", server.url(), body=b"x", headers=headers)
        assert isinstance(wrong.value, exceptions.HTTPError)
        assert server.complete == 1


def test_a_key_that_the_provider_honours_lets_a_lost_answer_be_asked_for_again() -> None:
    with FaultServer([Close("request"), Answer(200)]) as server:
        headers = {"X-Other": "1"}
        with RetryPoolManager(AT_ONCE, provider=honouring(), headers=headers) as manager, operation(key="receipt-42"):
            response = manager.request("POST", server.url(), body=b"pay")
        assert response.status == 200
        assert [dict(r.headers)["X-Key"] for r in server.requests] == ["receipt-42"] * 2
        assert [dict(r.headers)["X-Other"] for r in server.requests] == ["1"] * 2
        assert headers == {"X-Other": "1"}
    found = report(response)
    assert found is not None
    assert found.attempts[0].reason is Reason.KEYED


def test_a_key_goes_into_the_body_where_the_provider_wants_it_there() -> None:
    place = KeyPlacement(pointer="/headers/key", window=60.0, margin=5.0)
    provider = Provider(name="made-up", hosts=("127.0.0.1",), key=place)
    with FaultServer([BUSY, Answer(200)]) as server, RetryPoolManager(AT_ONCE, provider=provider) as manager:
        with operation(key="k"):
            manager.request("POST", server.url(), body=b'{"a": 1}', headers={"Content-Length": "8"})
        assert [json.loads(r.body) for r in server.requests] == [{"a": 1, "headers": {"key": "k"}}] * 2


def test_a_request_without_a_place_for_the_key_is_an_error_of_urllib3() -> None:
    with FaultServer([Answer(200)]) as server, RetryPoolManager(AT_ONCE, provider=honouring()) as manager:
        with operation(key="k"), pytest.raises(ConfigurationError) as caught:
            manager.request("POST", server.url(), body=b"x", headers={"X-Key": "another"})
        assert isinstance(caught.value, exceptions.HTTPError)
        assert server.requests == ()


def test_no_byte_leaves_before_the_arm() -> None:
    """Invariant 1: the server sees a connection, and nothing on it, when the ledger can't be reached."""

    class Away(MemoryLedger):
        def arm(self, take: Any) -> Any:
            raise LedgerUnavailable("away")

    with FaultServer([Answer(200)]) as server, RetryPoolManager(AT_ONCE, ledger=Away()) as manager:
        with pytest.raises(LedgerUnavailable) as caught, operation(key="k"):
            manager.request("POST", server.url(), body=b"x" * 1_000_000)
        assert isinstance(caught.value, exceptions.HTTPError)
        server.settle()
        assert (server.requests, server.connections) == ((), 1)


def test_what_fails_before_the_first_byte_needs_no_arm() -> None:
    ledger = MemoryLedger()
    with FaultServer([Refuse()]) as server, RetryPoolManager(AT_ONCE, ledger=ledger) as manager:
        url = server.url()
        with operation(key="k"), pytest.raises(exceptions.MaxRetryError) as caught:
            manager.request("POST", url, body=b"x")
    found = report(caught.value)
    assert found is not None
    assert (found.total_attempts, found.effect) == (4, Effect.NOT_APPLIED)
    assert list(ledger.records()) == []


def test_a_pool_that_cannot_be_watched_is_armed_before() -> None:
    class Quiet(urllib3.connection.HTTPConnection):
        def send(self, data: Any) -> None:
            super().send(data)

    class QuietPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Quiet

    ledger = MemoryLedger()
    with FaultServer([Refuse()]) as server, RetryPoolManager(AT_ONCE, ledger=ledger) as manager:
        manager.pool_classes_by_scheme = {"http": QuietPool}
        with operation(key="k"), pytest.raises(exceptions.MaxRetryError):
            manager.request("POST", server.url(), body=b"x")
        assert [r.phase for r in ledger.records()] == [Phase.FAILED]  # given back: a refused connect proves itself
        server.play([Close("request")])
        with operation(key="k"), pytest.raises(exceptions.ProtocolError) as caught:
            manager.request("POST", server.url(), body=b"x")
        assert [r.phase for r in ledger.records()] == [Phase.HELD]
    found = report(caught.value)
    assert found is not None
    assert found.stage is Stage.UNOBSERVED


@pytest.mark.parametrize("moment", [True, False])
def test_the_hint_that_the_provider_gives_in_a_header_of_its_own_is_waited_for(moment: bool) -> None:
    clock = VirtualClock()
    provider = honouring(hints=(Hint(header="X-Reset", unit="epoch" if moment else "seconds"),))
    busy = Answer(429, headers={"X-Reset": str(int(clock.now()) * moment + 30)})
    with (
        FaultServer([busy, Answer(200)]) as server,
        RetryPoolManager(AT_ONCE, provider=provider, clock=clock) as manager,
    ):
        assert manager.request("GET", server.url()).status == 200
    [waited] = clock.sleeps
    assert 29 <= waited <= 31
