"""Keys and the ledger under a `RetryPoolManager`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection

from retrypolicy import Effect, Reason, Rule, Stage, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import AlreadyDone, ConfigurationError, KeyReused, LedgerUnavailable, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.http.pushback import Hint
from retrypolicy.providers import Answers, KeyPlacement, Provider, Template
from retrypolicy.testing import Answer, Close, FaultServer, Refuse, Stall
from retrypolicy.urllib3 import RetryPoolManager
from tests.urllib3.managers import AT_ONCE, BUSY, LATE, TIMED, honouring

SENT_BEFORE = Rule(status=400, tainted=True, effect=Effect.APPLIED, retry=False, from_key_layer=True)


class Quiet(HTTPConnection):
    def send(self, data: Any) -> None:
        super().send(data)


class QuietPool(urllib3.HTTPConnectionPool):
    """Its connections send by themselves: nobody can watch that."""

    ConnectionCls = Quiet


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


def test_a_body_without_a_place_for_the_key_is_an_error_of_urllib3() -> None:
    place = KeyPlacement(pointer="/key", window=60.0, margin=5.0)
    provider = Provider(name="made-up", hosts=("127.0.0.1",), key=place)
    with FaultServer([Answer(200)]) as server, RetryPoolManager(AT_ONCE, provider=provider) as manager:
        with operation(key="k"), pytest.raises(ConfigurationError, match="JSON") as caught:
            manager.request("POST", server.url(), body=b"no JSON")
        assert isinstance(caught.value, exceptions.HTTPError)
        assert server.requests == ()


def test_a_header_that_has_another_key_is_an_error_of_urllib3() -> None:
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


def test_a_pool_that_cannot_be_watched_ends_in_time() -> None:
    with FaultServer([Stall("request")]) as server, RetryPoolManager(TIMED, timeout=30.0) as manager:
        manager.pool_classes_by_scheme = {"http": QuietPool}
        began = time.monotonic()
        with pytest.raises(exceptions.ReadTimeoutError):
            manager.request("POST", server.url(), body=b"x")
        assert time.monotonic() - began < LATE


@pytest.mark.parametrize("preload", [True, False])
def test_an_answer_that_says_sent_before_is_a_success_and_gives_its_connection_free(preload: bool) -> None:
    answers = Answers(keep={"ref": "request:/ref"}, replay=[Template(status=202, body={"done": "{ref}"})])
    options: Any = {"provider": honouring(rules=[SENT_BEFORE], answers=answers), "ledger": MemoryLedger()}
    with FaultServer([Close("request"), Answer(400, b"x" * 10_000), Answer(200)]) as server:
        with RetryPoolManager(AT_ONCE, maxsize=1, block=True, **options) as manager:
            with operation(key="k"):
                response = manager.request("POST", server.url(), json={"ref": "r1"}, preload_content=preload)
            assert manager.request("GET", server.url(), pool_timeout=0.1).status == 200
        assert server.complete == 3
    assert (response.status, response.json()) == (202, {"done": "r1"})
    assert response.headers["X-Retrypolicy-Replayed"] == "true"
    found = report(response)
    assert found is not None
    assert (found.effect, found.reason) == (Effect.APPLIED, Reason.SUCCESS)


@pytest.mark.parametrize("preload", [True, False])
def test_where_no_answer_can_be_made_sent_before_is_returned_as_it_came(preload: bool) -> None:
    with FaultServer([Close("request"), Answer(400, b"x" * 10_000)]) as server:
        provider = honouring(rules=[SENT_BEFORE])
        with RetryPoolManager(AT_ONCE, provider=provider) as manager, operation(key="k"):
            response = manager.request("POST", server.url(), body=b"pay", preload_content=preload)
            assert (response.status, response.data) == (400, b"x" * 10_000)


@pytest.mark.parametrize("status", [400, 429])
@pytest.mark.parametrize("moment", [True, False])
def test_the_hint_that_the_provider_gives_in_a_header_of_its_own_is_waited_for(moment: bool, status: int) -> None:
    clock = VirtualClock()
    provider = honouring(
        hints=(Hint(header="X-Reset", unit="epoch" if moment else "seconds"),), rules=[Rule(status=400, retry=True)]
    )
    busy = Answer(status, headers={"X-Reset": str(int(clock.now()) * moment + 30)})
    with (
        FaultServer([busy, Answer(200)]) as server,
        RetryPoolManager(AT_ONCE, provider=provider, clock=clock) as manager,
    ):
        assert manager.request("GET", server.url()).status == 200
    [waited] = clock.sleeps
    assert 29 <= waited <= 31
