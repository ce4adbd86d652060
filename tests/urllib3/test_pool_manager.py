"""RetryPoolManager against real servers that misbehave. Ground truth is what the server read."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
from urllib3 import exceptions
from urllib3.util import Retry

from retrypolicy import Constant, Effect, Guard, Reason, RetryPolicy, Stage, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import (
    AlreadyDone,
    ConfigurationError,
    DuplicateRisk,
    KeyReused,
    LedgerUnavailable,
    PolicyError,
    SendHeld,
)
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import (
    FAULTS,
    PORT_FAULTS,
    TLS_FAULTS,
    TUNNEL_FAULTS,
    Answer,
    Close,
    FaultServer,
    Raw,
    Refuse,
    Reset,
    Stall,
    Tunnel,
    deactivated,
)
from retrypolicy.urllib3 import RetryPoolManager, RetryProxyManager
from tests.requests.socks import socks_proxy
from tests.requests.soundness import KINDS, METHODS, SIZES, check, faults_of
from tests.urllib3.managers import AT_ONCE, BUSY, honouring, manager_for, meet

# A tunnel that is reset at once leaves a TLS socket behind in CPython, with or without us.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed <ssl", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaks_of_others"),
]


@pytest.fixture
def client() -> Iterator[RetryPoolManager]:
    with RetryPoolManager(AT_ONCE) as manager:
        yield manager


# -- the laws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAULTS, *TLS_FAULTS, *TUNNEL_FAULTS])
def test_no_fault_gets_a_post_applied_twice(name: str) -> None:
    kind = "tls" if name in TLS_FAULTS else "tunnel" if name in TUNNEL_FAULTS else "plain"
    check(meet([faults_of(kind)[name], Answer(200)], name=name, kind=kind), "POST")


COMBINATIONS = [
    (method, size, reused)
    for method, size, reused in itertools.product(METHODS, SIZES, (False, True))
    if (method == "GET") == (size == "empty")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_on_any_way_gets_a_request_applied_twice(kind: str) -> None:
    turn = itertools.cycle(COMBINATIONS)
    for name, fault in faults_of(kind).items():
        method, size, reused = next(turn)
        check(meet([fault, Answer(200)], name=name, kind=kind, method=method, size=SIZES[size], reused=reused), method)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("tls", Close("request", how="garbage")),
        ("forward", Close("request")),
        ("forward", Reset("request")),
        ("tunnel", Close("request")),
    ],
    ids=str,
)
def test_what_urllib3_sends_again_is_sent_once(kind: str, step: Any) -> None:
    """facts: with its default `Retry`, urllib3 repeats a POST that the server has read."""
    with FaultServer([step], tls=kind == "tls") as server:
        manager, url = manager_for(server, kind, AT_ONCE)
        with manager, pytest.raises(exceptions.HTTPError) as caught:
            manager.request("POST", url, body=b"pay")
        assert server.complete == 1
        found = report(caught.value)
        assert found is not None
        assert (found.effect, found.reason) == (Effect.UNKNOWN, Reason.UNSAFE)
        server.play([step])
        bare: urllib3.PoolManager = urllib3.PoolManager(ca_certs=server.ca)
        if kind != "tls":
            bare = urllib3.ProxyManager(server.proxy_url, ca_certs=server.ca)
        with bare, pytest.raises(exceptions.HTTPError):
            bare.request("POST", url, body=b"pay")
        assert server.complete == 5


@pytest.mark.parametrize("step", [Reset("hello"), Close("hello"), Tunnel(Close("request"))], ids=str)
def test_what_was_never_sent_is_sent_again(step: Any) -> None:
    """facts: urllib3 gives up on some of these."""
    kind = "tunnel" if isinstance(step, Tunnel) else "tls"
    with FaultServer([step, Answer(200)], tls=kind == "tls") as server:
        manager, url = manager_for(server, kind, AT_ONCE)
        with manager:
            response = manager.request("POST", url, body=b"pay")
        assert (response.status, server.complete) == (200, 1)
    found = report(response)
    assert found is not None
    assert (found.attempts[0].stage, found.attempts[0].reason) == (Stage.NOT_CONNECTED, Reason.NOT_SENT)


@pytest.mark.parametrize("name", PORT_FAULTS)
def test_a_port_that_does_not_answer_is_tried_again(name: str) -> None:
    with FaultServer([PORT_FAULTS[name]]) as server, RetryPoolManager(AT_ONCE, timeout=0.1) as manager:
        with pytest.raises(exceptions.MaxRetryError) as caught:
            manager.request("POST", server.url(), body=b"x")
        assert isinstance(caught.value.reason, exceptions.ConnectTimeoutError)
    found = report(caught.value)
    assert found is not None
    assert [a.stage for a in found.attempts] == [Stage.NOT_CONNECTED] * 4
    assert "retrypolicy: 4 attempt(s)" in caught.value.__notes__[0]


# -- decisions -----------------------------------------------------------------------------------------------------


def test_a_post_is_repeated_after_a_refusal(client: RetryPoolManager) -> None:
    with FaultServer([BUSY, Answer(429), Answer(200, b"thanks")]) as server:
        response = client.request("POST", server.url("/orders?a=1"), body=b"pay")
        assert (response.status, response.data) == (200, b"thanks")
        assert [(r.target, r.body) for r in server.requests] == [("/orders?a=1", b"pay")] * 3
        assert (server.applied, server.connections) == (1, 1)
    found = report(response)
    assert found is not None
    assert [a.status for a in found.attempts] == [503, 429, 200]
    assert found.effect is Effect.APPLIED
    assert response.retries is not None
    assert [entry.status for entry in response.retries.history] == [503, 429]
    assert response.url == "/orders?a=1"


def test_a_lost_answer_is_asked_for_again_only_where_that_is_safe(client: RetryPoolManager) -> None:
    with FaultServer([Close("request"), Reset("request"), Answer(200)]) as server:
        assert client.request("GET", server.url()).status == 200
        assert server.complete == 3
        server.play([Close("request"), Answer(200)])
        with pytest.raises(exceptions.ProtocolError) as caught:
            client.request("POST", server.url(), body=b"pay")
        assert server.complete == 4
    found = report(caught.value)
    assert found is not None
    assert (found.stage, found.effect, found.reason) == (Stage.SENT, Effect.UNKNOWN, Reason.UNSAFE)


def test_the_last_response_is_returned(client: RetryPoolManager) -> None:
    huge = Answer(503, b"x" * 3_000_000, headers={"Retry-After": "0"})
    with FaultServer([Answer(500, b"oh"), huge]) as server:
        response = client.request("GET", server.url())
        assert (response.status, len(response.data)) == (503, 3_000_000)
    found = report(response)
    assert found is not None
    assert (found.total_attempts, found.reason) == (4, Reason.ATTEMPTS_EXHAUSTED)


def test_a_body_that_breaks_is_applied(client: RetryPoolManager) -> None:
    broken = Answer(200, b"0123456789", cut=("body", 5))
    with FaultServer([broken, Answer(200, b"whole")]) as server:
        with pytest.raises(exceptions.ProtocolError) as caught:
            client.request("POST", server.url(), body=b"pay")
        assert server.complete == 1
        found = report(caught.value)
        assert found is not None
        assert found.effect is Effect.APPLIED
        server.play([broken, Answer(200, b"whole")])
        assert client.request("GET", server.url()).data == b"whole"


def test_a_compressed_body_that_was_cut_short_is_lost(client: RetryPoolManager) -> None:
    zipped = gzip.compress(b"0123456789" * 1000)
    headers = {"Content-Encoding": "gzip"}
    with FaultServer([Answer(200, zipped[:-9], headers=headers), Answer(200, zipped, headers=headers)]) as server:
        with pytest.raises(exceptions.DecodeError):
            client.request("POST", server.url(), body=b"x")
        assert client.request("GET", server.url()).data == b"0123456789" * 1000
        assert client.request("GET", server.url(), decode_content=False).data == zipped


def test_an_answer_cut_off_in_its_head_is_no_success(client: RetryPoolManager) -> None:
    with FaultServer([Raw(b"HTTP/1.1 200 OK\r\nContent-Le")]) as server:
        with pytest.raises(exceptions.ProtocolError) as caught:
            client.request("POST", server.url(), body=b"x")
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert (found.stage, found.effect) == (Stage.ANSWERING, Effect.UNKNOWN)


# -- bodies --------------------------------------------------------------------------------------------------------


def test_a_generator_that_was_read_is_never_sent_again(client: RetryPoolManager) -> None:
    """facts: urllib3 sends it again, empty, and reports 200."""
    with FaultServer([BUSY, Answer(200)]) as server:
        response = client.request("PUT", server.url(), body=(part for part in [b"a", b"b"]))
        assert (response.status, server.complete) == (503, 1)
    found = report(response)
    assert found is not None
    assert found.reason is Reason.BODY_NOT_REPLAYABLE


def test_a_generator_of_which_nothing_was_read_is_sent() -> None:
    with FaultServer([Refuse(), Answer(200)]) as server:
        looked = []

        class Opening(VirtualClock):
            def sleep(self, seconds: float, wake: Any = None) -> bool:
                looked.append(seconds)
                server.skip()
                return super().sleep(seconds, wake)

        with RetryPoolManager(RetryPolicy(backoff=Constant(seconds=1)), clock=Opening()) as manager:
            assert manager.request("POST", server.url(), body=(part for part in [b"a", b"b"])).status == 200
        assert looked == [1]
        assert [r.body for r in server.requests] == [b"ab"]


def test_a_file_is_sent_again_from_where_it_stood(client: RetryPoolManager) -> None:
    with FaultServer([BUSY, Answer(200)]) as server:
        file = io.BytesIO(b"skipped, sent")
        file.seek(9)
        assert client.request("POST", server.url(), body=file).status == 200
        server.play([BUSY, Answer(200)])
        assert client.request("POST", server.url(), body=file, body_pos=7).status == 200
        assert [r.body for r in server.requests] == [b"sent"] * 2 + [b", sent"] * 2


def test_forms_files_and_json(client: RetryPoolManager) -> None:
    with FaultServer([BUSY, Answer(200, b'{"id": 1}')]) as server:
        response = client.request("POST", server.url(), fields={"file": ("name", b"content")})
        assert response.json() == {"id": 1}
        assert client.request("POST", server.url(), json={"a": 1}).status == 200
        first, second, third = server.requests
        assert first.body == second.body
        assert b"content" in first.body
        assert (third.body, dict(third.headers)["Content-Type"]) == (b'{"a":1}', "application/json")


# -- streams and time ----------------------------------------------------------------------------------------------


def test_a_stream_is_retried_up_to_its_head_and_then_the_callers(client: RetryPoolManager) -> None:
    small, huge = (Answer(503, b"x" * size, headers={"Retry-After": "0"}) for size in (100, 1_000_000))
    with FaultServer([small, huge, Answer(200, b"y" * 100_000)]) as server:
        response = client.request("GET", server.url(), preload_content=False)
        assert response.connection is not None
        assert b"".join(response.stream(1000)) == b"y" * 100_000
        assert response.connection is None
        # What is little is drained, and its connection used again; what is much costs a new connection.
        assert [r.connection for r in server.requests] == [1, 1, 2]


TIMED = RetryPolicy(total_timeout=0.4, backoff=Constant(seconds=0))
LATE = 2.0


@pytest.mark.parametrize(
    "step",
    [
        Answer(200, b"x" * 1000, drip=("body", 0.02)),
        Answer(200, headers={"X": "x" * 1000}, drip=("head", 0.02)),
        Stall("request"),
        Stall("accept"),
    ],
    ids=str,
)
@pytest.mark.parametrize("tls", [False, True])
def test_nothing_goes_on_past_the_total_timeout(step: Any, tls: bool) -> None:
    with FaultServer([step], tls=tls) as server, RetryPoolManager(TIMED, ca_certs=server.ca, timeout=30.0) as manager:
        began = time.monotonic()
        with pytest.raises(exceptions.HTTPError) as caught:
            manager.request("POST", server.url(), body=b"x" * 100)
        assert time.monotonic() - began < LATE
    assert report(caught.value) is not None


def test_a_redirect_is_drained_in_time() -> None:
    """Also where the caller streams the end of it."""
    moved = Answer(302, b"x" * 1000, headers={"Location": "/"}, drip=("body", 0.02))
    with FaultServer([moved, Answer(200, b"y")]) as server, RetryPoolManager(TIMED) as manager:
        began = time.monotonic()
        with pytest.raises(exceptions.HTTPError) as caught:
            manager.request("GET", server.url(), preload_content=False)
        assert time.monotonic() - began < LATE
        assert server.complete == 1
    assert report(caught.value) is not None


def test_the_body_of_a_stream_is_read_in_the_callers_own_time() -> None:
    slow = Answer(200, b"x" * 40, drip=("body", 0.02))
    with FaultServer([slow]) as server, RetryPoolManager(TIMED.with_(total_timeout=0.3)) as manager:
        response = manager.request("GET", server.url(), preload_content=False)
        assert response.read() == b"x" * 40


# -- keys and the ledger -------------------------------------------------------------------------------------------


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
        with operation(key="k"), pytest.raises(exceptions.MaxRetryError) as caught:
            manager.request("POST", server.url(), body=b"x")
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


# -- redirects -----------------------------------------------------------------------------------------------------


def moved(status: int, to: str = "/elsewhere") -> Answer:
    return Answer(status, b"over there", headers={"Location": to})


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_a_redirect_to_the_same_origin_goes_on_with_its_call(by: str) -> None:
    ledger = MemoryLedger()
    with FaultServer([moved(307), BUSY, Answer(200)]) as server:
        with RetryPoolManager(AT_ONCE, ledger=ledger, provider=honouring()) as manager, operation(key="k"):
            if by == "manager":
                response = manager.request("POST", server.url("/here"), body=b"x")
            else:
                response = manager.connection_from_url(server.url()).request("POST", "/here", body=b"x")
        assert response.status == 200
        assert [(r.target, dict(r.headers)["X-Key"]) for r in server.requests] == [
            ("/here", "k"),
            ("/elsewhere", "k"),
            ("/elsewhere", "k"),
        ]
    assert [r.phase for r in ledger.records()] == [Phase.DONE]
    assert response.geturl() == "/elsewhere"
    assert response.retries is not None
    assert [(h.status, h.redirect_location) for h in response.retries.history] == [(307, "/elsewhere"), (503, None)]


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_after_a_303_comes_a_get_without_body_and_key(by: str) -> None:
    with FaultServer([moved(303), Answer(200)]) as server:
        headers = {"X-Key": "mine", "Idempotency-Key": "mine", "Content-Type": "text/plain", "X-Other": "1"}
        with RetryPoolManager(AT_ONCE, ledger=MemoryLedger()) as manager:
            opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
            url = server.url() if by == "manager" else "/"
            assert opener.request("POST", url, body=b"x", headers=headers).status == 200
        first, second = server.requests
        assert (second.method, second.body) == ("GET", b"")
        assert dict(first.headers)["Idempotency-Key"] == "mine"
        assert {"X-Other"} <= {*dict(second.headers)}
        assert {"Idempotency-Key", "Content-Type", "Content-Length"}.isdisjoint(dict(second.headers))
        assert headers["Idempotency-Key"] == "mine"


def test_no_key_goes_along_to_another_origin() -> None:
    with FaultServer([Answer(200)]) as other, FaultServer([moved(307, other.url())]) as server:
        ledger = MemoryLedger()
        with RetryPoolManager(AT_ONCE, provider=honouring(), ledger=ledger) as manager:
            headers = {"X-Key": "mine", "Authorization": "Bearer hush"}
            assert manager.request("POST", server.url(), body=b"x", headers=headers).status == 200
            with operation(key="k"):
                assert manager.request("POST", server.url(), body=b"x").status == 200
        assert [dict(r.headers)["X-Key"] for r in server.requests] == ["mine", "k"]
        for request in other.requests:
            assert {"X-Key", "Authorization"}.isdisjoint(dict(request.headers))
        assert [r.phase for r in ledger.records()] == [Phase.FAILED] * 2


def test_the_hop_to_another_origin_is_not_repeated_where_that_is_not_safe() -> None:
    with FaultServer([Close("request")]) as other, FaultServer([moved(307, other.url())]) as server:
        with RetryPoolManager(AT_ONCE, provider=honouring()) as manager, operation(key="k"):
            with pytest.raises(exceptions.ProtocolError):
                manager.request("POST", server.url(), body=b"x")
        assert (server.complete, other.complete) == (1, 1)


def test_an_operations_policy_holds_on_every_hop() -> None:
    once = AT_ONCE.with_(max_attempts=1)
    with FaultServer([BUSY]) as other, FaultServer([moved(307, other.url())]) as server:
        with RetryPoolManager(AT_ONCE) as manager, operation(policy=once):
            assert manager.request("POST", server.url(), body=b"x").status == 503
        assert other.complete == 1


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_too_many_redirects_are_the_error_that_urllib3_raises(by: str) -> None:
    with FaultServer([moved(302)]) as server, RetryPoolManager(AT_ONCE) as manager:
        opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
        url = server.url() if by == "manager" else "/"
        with pytest.raises(exceptions.MaxRetryError, match="too many redirects") as caught:
            opener.request("GET", url)
        assert report(caught.value) is not None
        assert server.complete == 4
        assert opener.request("GET", url, redirect=False).status == 302
        assert opener.request("GET", url, retries=False).status == 302
        assert opener.request("GET", url, retries=Retry(5, redirect=2, other=0, raise_on_redirect=False)).status == 302
        assert server.complete == 9


def test_a_pool_does_not_follow_to_another_host() -> None:
    with FaultServer([moved(307, "http://other.test/")]) as server, RetryPoolManager(AT_ONCE) as manager:
        with pytest.raises(exceptions.HostChangedError) as caught:
            manager.connection_from_url(server.url()).request("POST", "/", body=b"x")
        found = report(caught.value)
        assert found is not None
        assert (found.effect, found.reason) == (Effect.NOT_APPLIED, Reason.PERMANENT)
        assert server.complete == 1


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_bodies_on_redirects(by: str) -> None:
    """urllib3 sends what is left of a file: nothing."""
    with FaultServer([moved(307), Answer(200)]) as server, RetryPoolManager(AT_ONCE) as manager:
        opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
        url = server.url() if by == "manager" else "/"
        file = io.BytesIO(b"skipped, sent")
        file.seek(9)
        assert opener.request("POST", url, body=file).status == 200
        assert [r.body for r in server.requests] == [b"sent", b"sent"]
        server.play([moved(307), Answer(200)])
        with pytest.raises(exceptions.UnrewindableBodyError) as caught:
            opener.request("POST", url, body=(part for part in [b"a", b"b"]))
        assert report(caught.value) is not None
        assert server.complete == 3


# -- retries -------------------------------------------------------------------------------------------------------


def test_retries_of_a_request_change_the_policy_for_it(client: RetryPoolManager) -> None:
    slow = Retry(2, status_forcelist=[500], allowed_methods=None, other=0, backoff_factor=0)
    with FaultServer([Answer(500)]) as server:
        with pytest.warns(DuplicateRisk), pytest.raises(exceptions.MaxRetryError, match="too many 500") as caught:
            client.request("GET", server.url(), retries=slow)
        assert server.complete == 3
        found = report(caught.value)
        assert found is not None
        assert [a.status for a in found.attempts] == [500] * 3
        assert caught.value.response.status == 500  # type: ignore[attr-defined]  # put there by us
        with pytest.warns(DuplicateRisk), pytest.raises(exceptions.MaxRetryError):
            client.request("POST", server.url(), body=b"x", retries=slow)
        assert server.complete == 4
        assert client.request("GET", server.url(), retries=0).status == 500
        assert client.request("GET", server.url(), retries=False).status == 500
        assert server.complete == 6
        assert client.policy == AT_ONCE


def test_retries_false_means_one_attempt_and_its_bare_error(client: RetryPoolManager) -> None:
    with FaultServer([Refuse()]) as server:
        with pytest.raises(exceptions.NewConnectionError) as caught:
            client.request("GET", server.url(), retries=False)
        found = report(caught.value)
        assert found is not None
        assert found.total_attempts == 1


def test_retries_leave_guard_time_and_meanings_as_they_are() -> None:
    strict = TIMED.with_(guard=Guard(unkeyed="refuse"))
    with FaultServer([Stall("request")]) as server, RetryPoolManager(strict, timeout=30.0) as manager:
        with pytest.raises(ConfigurationError, match="has no key"):
            manager.request("POST", server.url(), body=b"x", retries=False)
        began = time.monotonic()
        with pytest.raises(exceptions.HTTPError):
            manager.request("GET", server.url(), retries=False)
        assert time.monotonic() - began < LATE


def test_the_policy_of_an_operation_goes_before_retries(client: RetryPoolManager) -> None:
    with FaultServer([BUSY]) as server, operation(policy=AT_ONCE.with_(max_attempts=3)):
        assert client.request("GET", server.url(), retries=False).status == 503
        assert server.complete == 3


def test_retries_of_the_manager_become_its_policy() -> None:
    with pytest.warns(DuplicateRisk):
        manager = RetryPoolManager(retries=Retry(1, redirect=0, status_forcelist=[500], raise_on_status=False))
    assert manager.policy.max_attempts == 2
    with FaultServer([Answer(500)]) as server, manager:
        assert manager.request("GET", server.url()).status == 500
        assert server.complete == 2
        server.play([moved(302)])
        with pytest.raises(exceptions.MaxRetryError, match="too many redirects"):
            manager.request("GET", server.url())


def test_a_subclass_of_retry_counts_redirects_its_own_way(client: RetryPoolManager) -> None:
    seen = []

    class Watching(Retry):
        def increment(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs["response"].status)
            return super().increment(*args, **kwargs)

    with FaultServer([moved(302), moved(301), Answer(200)]) as server:
        response = client.request("GET", server.url(), retries=Watching(3, other=0))
    assert (response.status, seen) == (200, [302, 301])
    assert isinstance(response.retries, Watching)


# -- a drop-in -----------------------------------------------------------------------------------------------------


def test_pools_are_what_a_manager_makes() -> None:
    with FaultServer([BUSY, Answer(200)]) as server, RetryPoolManager(AT_ONCE, maxsize=3, block=True) as manager:
        pool = manager.connection_from_url(server.url())
        assert pool is manager.connection_from_host(pool.host, pool.port)
        assert isinstance(pool, urllib3.HTTPConnectionPool)
        assert type(pool).__name__ == "HTTPConnectionPool"
        assert (pool.block, pool.pool.maxsize if pool.pool else 0) == (True, 3)
        response = pool.request("POST", "/path", body=b"x")
        assert (response.status, server.complete) == (200, 2)
        assert report(response) is not None
        assert len(manager.pools) == 1
        manager.clear()
        assert len(manager.pools) == 0
        assert manager.request("GET", server.url()).status == 200
    assert len(manager.pools) == 0


def test_connections_go_back_to_the_pool() -> None:
    with FaultServer([BUSY, Answer(200, b"x"), Answer(204), Answer(404, b"no"), Answer(200, b"")]) as server:
        with RetryPoolManager(AT_ONCE, maxsize=1, block=True) as manager:
            for method, data in {"POST": b"x", "DELETE": b"", "HEAD": b"", "GET": b""}.items():
                response = manager.request(method, server.url(), pool_timeout=1)
                assert (response.data, response.connection) == (data, None)
            with manager.request("GET", server.url(), preload_content=False) as response:
                with pytest.raises(exceptions.EmptyPoolError):
                    manager.request("GET", server.url(), pool_timeout=0, retries=False)
                response.drain_conn()
            assert manager.request("GET", server.url(), pool_timeout=1).status == 200
        assert server.connections == 1


def test_no_connection_is_held_while_a_call_waits() -> None:
    """facts: urllib3 waits with the slot taken, so that others wait with it."""
    free = []

    class Looking(VirtualClock):
        def sleep(self, seconds: float, wake: Any = None) -> bool:
            pool = manager.connection_from_url(server.url())
            assert pool.pool is not None
            free.append(pool.pool.qsize())
            return super().sleep(seconds, wake)

    refusal = Answer(503, b"x" * 2_000_000, headers={"Retry-After": "1"})
    with FaultServer([BUSY, refusal, Reset("request"), Answer(200)]) as server:
        policy = RetryPolicy(backoff=Constant(seconds=1))
        with RetryPoolManager(policy, clock=Looking(), maxsize=1, block=True) as manager:
            with manager.request("GET", server.url(), preload_content=False) as response:
                assert response.status == 200
    assert free == [1, 1, 1]


def test_an_idle_connection_is_not_used_again() -> None:
    with FaultServer([Answer(200)]) as server:
        for max_idle, connections in ((None, 1), (0.0, 2)):
            with RetryPoolManager(AT_ONCE, max_idle=max_idle) as manager:
                before = server.connections
                for _ in range(2):
                    manager.request("GET", server.url())
                assert server.connections - before == connections


def test_threads_share_a_manager() -> None:
    """Each call has its own evidence, and its own key."""
    threads, each = 8, 10
    ledger = MemoryLedger()
    start = threading.Barrier(threads)

    def flaky(request: Any) -> Any:
        return BUSY if request.position % 3 == 0 else Answer(200, request.body)

    with FaultServer([flaky]) as server, RetryPoolManager(AT_ONCE, ledger=ledger, maxsize=4) as manager:

        def work(thread: int) -> list[bool]:
            start.wait()
            found = []
            for n in range(each):
                body = f"{thread}/{n}".encode()
                with operation(key=body.decode()):
                    found.append(manager.request("POST", server.url(), body=body).data == body)
            return found

        with ThreadPoolExecutor(threads) as executor:
            assert all(itertools.chain(*executor.map(work, range(threads))))
        assert server.applied == threads * each
    assert [r.phase for r in ledger.records()] == [Phase.DONE] * threads * each


def test_two_threads_with_one_key_send_once(tmp_path: Path) -> None:
    with FaultServer([Answer(200, delay=0.2)]) as server:
        with RetryPoolManager(AT_ONCE, ledger=f"sqlite:///{tmp_path}/sends.db", secret="s") as manager:

            def send(_: int) -> str:
                try:
                    with operation(key="k"):
                        return str(manager.request("POST", server.url(), body=b"x").status)
                except exceptions.HTTPError as error:
                    return type(error).__name__

            with ThreadPoolExecutor(4) as executor:
                answers = sorted(executor.map(send, range(4)))
        assert server.complete == 1
    assert answers[0] == "200"
    assert {*answers[1:]} <= {"SendInProgress", "AlreadyDone"}


def test_before_another_manager_it_works_there_too() -> None:
    from urllib3.contrib.socks import SOCKSProxyManager

    class Mine(RetryPoolManager, SOCKSProxyManager):
        pass

    with FaultServer([BUSY, Answer(200)]) as server, socks_proxy() as proxy:
        with Mine(AT_ONCE, proxy_url=proxy) as manager:
            response = manager.request("POST", server.url(), body=b"x")
        assert (response.status, server.complete) == (200, 2)
    assert report(response) is not None


def test_a_proxy_manager_has_the_options_of_both() -> None:
    with FaultServer([BUSY, Answer(200)]) as server:
        proxy_headers = urllib3.make_headers(proxy_basic_auth="user:word")
        with RetryProxyManager(server.proxy_url, AT_ONCE, proxy_headers=proxy_headers, num_pools=3) as manager:
            assert manager.proxy is not None
            assert manager.request("POST", "http://origin.test/x", body=b"x").status == 200
        assert [r.target for r in server.requests] == ["http://origin.test/x"] * 2
        assert all(r.header("Proxy-Authorization") for r in server.requests)


def test_the_same_call_has_the_same_content_under_requests() -> None:
    """A key goes on from one client to the other."""
    import requests

    from retrypolicy.requests import mount

    ledger = MemoryLedger()
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        session.trust_env = False
        mount(session, AT_ONCE, ledger=ledger)
        with operation(key="k"), pytest.raises(requests.ConnectionError):
            session.post(server.url("/a?b=c"), data=b"x")
        with RetryPoolManager(AT_ONCE, ledger=ledger) as manager, operation(key="k"), pytest.raises(SendHeld):
            manager.request("POST", server.url("/a?b=c"), body=b"x")


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("http://", {}, exceptions.LocationValueError),
        ("ftp://x/", {}, exceptions.URLSchemeUnknown),
        ("http://[x/", {}, exceptions.LocationParseError),
        (None, {"timeout": "soon"}, ValueError),
        (None, {"timeout": -1}, ValueError),
        (None, {"body": 7}, TypeError),
        (None, {"headers": {"A": "b\nc"}}, ValueError),
        (None, {"headers": {"A": "b\nc"}, "retries": False}, ValueError),
        (None, {"retries": "many"}, ConfigurationError),
        (None, {"retries": -1}, ConfigurationError),
    ],
    ids=str,
)
def test_bad_input_is_an_error_before_a_key_is_armed(
    url: str | None, options: dict[str, Any], error: type[Exception]
) -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, RetryPoolManager(AT_ONCE, ledger=ledger) as manager:
        manager.request("GET", server.url())
        with operation(key="k"), pytest.raises(error):
            manager.request("POST", server.url() if url is None else url, **{"body": b"x", **options})
        server.settle()
        assert server.complete == 1
    assert list(ledger.records()) == []


def test_bad_parts_are_refused_when_the_manager_is_made() -> None:
    with pytest.raises(PolicyError):
        RetryPoolManager(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="retries: not allowed beside a policy"):
        RetryPoolManager(AT_ONCE, retries=3)
    with pytest.raises(ConfigurationError, match="retries: 'x' is not allowed"):
        RetryPoolManager(retries="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="hosts"):
        RetryPoolManager(hosts=["x"])
    with pytest.raises(exceptions.ProxySchemeUnknown):
        RetryProxyManager("ftp://x", AT_ONCE)


def test_deactivated_makes_one_plain_attempt(client: RetryPoolManager) -> None:
    with FaultServer([BUSY, moved(302), Answer(200)]) as server, deactivated():
        response = client.request("POST", server.url(), body=b"x")
        assert (response.status, server.complete, report(response)) == (503, 1, None)
        assert client.request("GET", server.url()).status == 200


def test_observing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
    with FaultServer([BUSY, Answer(200)]) as server, RetryPoolManager(AT_ONCE, ledger=MemoryLedger()) as manager:
        with operation(key="k"):
            response = manager.request("POST", server.url(), body=b"x")
        assert (response.status, server.complete) == (503, 1)
    found = report(response)
    assert found is not None
    assert found.reason is Reason.OBSERVED
