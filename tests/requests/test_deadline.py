"""`total_timeout` is wall-clock: nothing that a server does or leaves undone keeps a call alive.

The bounds are generous, for machines under load; on an idle one a call ends within 150 ms of its time.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from retrypolicy import Constant, Effect, Reason, RetryPolicy, Stage, report
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Blackhole, FaultServer, Interim, Stall, Tunnel

TOTAL, LATE = 0.4, 2.0
POLICY = RetryPolicy(total_timeout=TOTAL, backoff=Constant(seconds=0))
LONG = b"x" * 10_000

ENDLESS = {
    "silence": (Stall("request"), b"x"),
    "drip of the head": (Answer(200, headers={"X-Long": "x" * 1000}, drip=("head", 0.02)), b"x"),
    "drip of the body": (Answer(200, LONG, drip=("body", 0.02)), b"x"),
    "drip of chunks": (Answer(200, LONG, framing="chunked", chunk=1, drip=("body", 0.02)), b"x"),
    "upload that nobody reads": (Stall("head"), b"x" * 12_000_000),
    "endless 1xx": (Answer(200, interim=Interim(103, times=None, every=0.02)), b"x"),
    "drip of a refusal": (Answer(503, LONG, headers={"Retry-After": "0"}, drip=("body", 0.02)), b"x"),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("kind", ["plain", "tls", "tunnel"])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_call_ends_on_time(name: str, kind: str, method: str) -> None:
    step, body = ENDLESS[name]
    error, late = call([step], kind, method, body)
    found = report(error)
    assert found is not None
    assert late < LATE
    assert found.reason in (Reason.UNSAFE, Reason.RUN_OVER)
    assert (found.retry_at is not None) == (found.reason is Reason.RUN_OVER)


@pytest.mark.parametrize("step", [Stall("hello"), Stall("accept")], ids=str)
def test_a_handshake_ends_on_time(step: Any) -> None:
    error, late = call([step], "tls", "POST", b"x")
    found = report(error)
    assert found is not None
    assert late < LATE
    assert (found.stage, found.effect, found.reason) == (Stage.NOT_CONNECTED, Effect.NOT_APPLIED, Reason.RUN_OVER)


@pytest.mark.parametrize(
    "step", [Tunnel(Stall("request")), Tunnel(Answer(200, headers={"X": "x" * 1000}, drip=("head", 0.02)))], ids=str
)
def test_a_tunnel_ends_on_time(step: Any) -> None:
    error, late = call([step], "tunnel", "POST", b"x")
    found = report(error)
    assert found is not None
    assert late < LATE
    assert (found.stage, found.reason) == (Stage.NOT_CONNECTED, Reason.RUN_OVER)


def test_connecting_ends_on_time() -> None:
    error, late = call([Blackhole()], "plain", "POST", b"x")
    assert isinstance(error, requests.ConnectTimeout)
    assert late < LATE


def test_a_slow_drain_between_two_attempts_ends_on_time() -> None:
    """With stream=True the body of a refusal is drained before the next attempt, within the same time."""
    refusal = Answer(503, b"x" * 1000, headers={"Retry-After": "0"}, drip=("body", 0.02))
    error, late = call([refusal], "plain", "POST", b"x", stream=True)
    assert late < LATE
    assert report(error) is not None


def test_a_redirect_is_drained_on_time() -> None:
    """Also with stream=True: its body is read by requests, on the way."""
    moved = Answer(302, b"x" * 1000, headers={"Location": "/"}, drip=("body", 0.02))
    error, late = call([moved, Answer(200)], "plain", "GET", b"", stream=True)
    assert isinstance(error, requests.ConnectionError)
    assert late < LATE


def test_the_callers_own_time_is_not_ours() -> None:
    """A streamed body is read after the call, for as long as it takes."""
    with FaultServer([Answer(200, b"x" * 60, drip=("body", 0.01))]) as server, requests.Session() as session:
        mount(session, POLICY)
        with session.get(server.url(), stream=True) as response:
            assert response.content == b"x" * 60


def test_a_shorter_timeout_of_the_caller_stays() -> None:
    with FaultServer([Stall("request")]) as server, requests.Session() as session:
        mount(session, POLICY.with_(total_timeout=60.0, max_attempts=1))
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            session.get(server.url(), timeout=(5, 0.1))
        assert time.monotonic() - began < LATE


def call(script: list[Any], kind: str, method: str, body: bytes, **options: Any) -> tuple[Any, float]:
    """The error or response that a call ends with, and how many seconds too late."""
    with FaultServer(script, tls=kind == "tls") as server, requests.Session() as session:
        session.trust_env, session.verify = False, server.ca
        url = server.url()
        if kind == "tunnel":
            session.proxies, url = {"https": server.proxy_url}, "https://origin.test/"
        mount(session, POLICY)
        began = time.monotonic()
        try:
            result: Any = session.request(method, url, data=body if method == "POST" else None, timeout=30, **options)
        except requests.RequestException as error:
            result = error
        return result, time.monotonic() - began - TOTAL
