"""RetryPoolManager against real servers that misbehave. Ground truth is what the server read."""

from __future__ import annotations

import gzip
import io
import itertools
import time
from typing import Any

import pytest
import urllib3
from urllib3 import exceptions

from retrypolicy import Constant, Effect, Reason, RetryPolicy, Stage, report
from retrypolicy.clock import VirtualClock
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
)
from retrypolicy.urllib3 import RetryPoolManager
from tests.requests.soundness import KINDS, METHODS, SIZES, check, faults_of
from tests.urllib3.managers import AT_ONCE, BUSY, LATE, TIMED, manager_for, meet

# A tunnel that is reset at once leaves a TLS socket behind in CPython, with or without us.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed <ssl", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaks_of_others"),
]


# -- the laws -------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("kind", KINDS[1:4])
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


# -- decisions ------------------------------------------------------------------------------------------------------


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


def test_a_success_is_told_with_its_own_status(client: RetryPoolManager) -> None:
    with FaultServer([Answer(200), Answer(201), Answer(204)]) as server:
        for status in (200, 201, 204):
            found = report(client.request("POST", server.url(), body=b"x"))
            assert found is not None
            assert (found.effect, [each.status for each in found.attempts]) == (Effect.APPLIED, [status])


def test_the_last_response_is_returned(client: RetryPoolManager) -> None:
    huge = Answer(503, b"x" * 3_000_000, headers={"Retry-After": "0"})
    with FaultServer([Answer(500, b"oh"), huge]) as server:
        response = client.request("GET", server.url())
        assert (response.status, len(response.data)) == (503, 3_000_000)
    found = report(response)
    assert found is not None
    assert (found.total_attempts, found.reason) == (4, Reason.ATTEMPTS_EXHAUSTED)


def test_a_huge_refusal_that_breaks_is_an_error_with_a_report(client: RetryPoolManager) -> None:
    with FaultServer([Answer(404, b"x" * 3_000_000, cut=("body", 2_000_000))]) as server:
        url = server.url()
        with pytest.raises(exceptions.ProtocolError) as caught:
            client.request("POST", url, body=b"x")
    assert report(caught.value) is not None


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


# -- bodies ---------------------------------------------------------------------------------------------------------


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


# -- streams and time -----------------------------------------------------------------------------------------------


def test_a_stream_is_retried_up_to_its_head_and_then_the_callers(client: RetryPoolManager) -> None:
    small, huge = (Answer(503, b"x" * size, headers={"Retry-After": "0"}) for size in (100, 1_000_000))
    with FaultServer([small, huge, Answer(200, b"y" * 100_000)]) as server:
        response = client.request("GET", server.url(), preload_content=False)
        assert response.connection is not None
        assert b"".join(response.stream(1000)) == b"y" * 100_000
        assert response.connection is None
        # What is little is drained, and its connection used again; what is much costs a new connection.
        assert [r.connection for r in server.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    "step",
    [
        Answer(200, b"x" * 1000, drip=("body", 0.02)),
        Answer(200, headers={"X": "x" * 1000}, drip=("head", 0.02)),
        Stall("request"),
        Stall("accept"),
    ],
    ids=["drip of the body", "drip of the head", "silence", "silence at once"],
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
