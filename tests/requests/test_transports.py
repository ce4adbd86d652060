"""Around another adapter, or in front of another's class: nothing is lost but sharpness. Unobserved means unknown."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.util import Retry

from retrypolicy import Constant, Effect, Reason, RetryPolicy, Stage, operation, report
from retrypolicy.errors import AlreadyDone, ConfigurationError, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import Answer, Close, FaultServer, Tunnel, deactivated

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))
BUSY = Answer(503, headers={"Retry-After": "0"})
TWO_LENGTHS = Answer(200, b"x", headers=[("Content-Length", "1"), ("Content-Length", "2")])


class Opaque(HTTPAdapter):
    """One with a `send` of its own: nobody can know what it does in there."""

    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]  # as many adapters do
        return super().send(request, **options)


@pytest.mark.parametrize(("transport", "stage"), [(HTTPAdapter, Stage.ANSWERING), (Opaque, Stage.UNOBSERVED)])
def test_an_error_that_looks_like_bad_input_is_unknown_once_a_transport_has_the_request(
    transport: type[HTTPAdapter], stage: Stage
) -> None:
    """requests makes a ValueError of an answer with two lengths, too."""
    with FaultServer([TWO_LENGTHS, Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, transport=transport(), ledger=MemoryLedger())
        with pytest.raises(requests.exceptions.InvalidHeader) as caught, operation(key="k"):
            session.post(server.url(), data=b"pay")
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"pay")
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert (found.stage, found.effect) == (stage, Effect.UNKNOWN)


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "/no/such/file"},
        {"verify": "a\0b"},
        {"cert": "/no/such/file"},
        {"cert": 3},
        {"cert": ("a",)},
        {"timeout": (1, 2, 3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("transport", [None, HTTPAdapter])
def test_bad_input_leaves_no_key_behind(transport: type[HTTPAdapter] | None, options: dict[str, Any]) -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)], tls=True) as server, requests.Session() as session:
        mount(session, AT_ONCE, transport=None if transport is None else transport(), ledger=ledger)
        with pytest.raises((OSError, ValueError, TypeError, LookupError)) as caught, operation(key="k"):
            session.post(server.url(), data=b"x", **options)
        found = report(caught.value)
        assert found is None or found.total_attempts == 1  # None: it did not even come to an attempt
        assert server.connections == 0
        with operation(key="k"):
            assert session.post(server.url(), data=b"x", verify=server.ca).status_code == 200
    assert [record.phase for record in ledger.records()] == [Phase.DONE]


@pytest.mark.parametrize("inside", [False, True], ids=["around", "in front"])
def test_the_guard_is_asked_before_whatever_else_sends(inside: bool) -> None:
    """Invariant 1 holds for what we can't look into, too: armed before the call."""
    sent = []

    class Own(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
            sent.append([record.phase for record in ledger.records()])
            response = requests.Response()
            response.status_code = 200
            response.request = request
            response._content = b"sent another way"
            return response

    class Both(RetryAdapter, Own):
        pass

    ledger = MemoryLedger()
    with requests.Session() as session:
        adapter = Both(AT_ONCE, ledger=ledger) if inside else RetryAdapter(AT_ONCE, transport=Own(), ledger=ledger)
        session.mount("http://", adapter)
        with operation(key="k"):
            assert session.post("http://api.example.com/", data=b"x").content == b"sent another way"
        with pytest.raises(AlreadyDone), operation(key="k"):
            session.post("http://api.example.com/", data=b"x")
    assert sent == [[Phase.ARMED]]


@pytest.mark.parametrize("inside", [False, True], ids=["around", "in front"])
@pytest.mark.parametrize("error", [ValueError, OSError, requests.exceptions.InvalidURL])
def test_an_error_of_whatever_else_sends_is_unknown(inside: bool, error: type[Exception]) -> None:
    """It looks like one about bad input, and may have come behind the last byte."""
    sent = []

    class Own(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
            sent.append(request)
            raise error("the answer makes no sense")

    class Both(RetryAdapter, Own):
        pass

    ledger = MemoryLedger()
    with requests.Session() as session:
        adapter = Both(AT_ONCE, ledger=ledger) if inside else RetryAdapter(AT_ONCE, transport=Own(), ledger=ledger)
        session.mount("http://", adapter)
        with pytest.raises(error), operation(key="k"):
            session.post("http://api.example.com/", data=b"x")
        with pytest.raises(SendHeld), operation(key="k"):
            session.post("http://api.example.com/", data=b"x")
    assert len(sent) == 1


def test_an_adapter_without_urllib3() -> None:
    """Its answers have no `raw`, its errors say nothing."""
    answers: list[Any] = [503, 429, OSError("gone"), 200]

    class Own(BaseAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            response = requests.Response()
            response.status_code = answer
            response.headers["Retry-After"] = "0"
            response.request, response.url = request, request.url
            response._content = b"whole"
            return response

        def close(self) -> None:
            pass

    with requests.Session() as session:
        adapter = mount(session, AT_ONCE, transport=Own())
        response = session.get("http://api.example.com/")
        assert (response.content, response.connection) == (b"whole", adapter)
        answers += [503, OSError("gone"), 200]
        with pytest.raises(OSError, match="gone") as caught:
            session.post("http://api.example.com/")
        assert answers == [200]
    found = report(caught.value)
    assert found is not None
    assert (found.stage, found.effect, found.reason) == (Stage.UNOBSERVED, Effect.UNKNOWN, Reason.UNSAFE)


def test_auth_sends_again_through_us() -> None:
    asked = Answer(401, headers={"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'})
    ledger = MemoryLedger()
    with FaultServer([asked, BUSY, Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, transport=HTTPAdapter(), ledger=ledger)
        with operation(key="k"):
            response = session.post(server.url(), data=b"x", auth=requests.auth.HTTPDigestAuth("u", "p"))
        assert (response.status_code, server.complete) == (200, 3)
        with deactivated():
            assert isinstance(session.get(server.url()).connection, RetryAdapter)
    assert [record.phase for record in ledger.records()] == [Phase.DONE]


def test_total_timeout_holds_where_the_wire_is_watched() -> None:
    policy = AT_ONCE.with_(total_timeout=0.3)
    with FaultServer([Answer(200, b"x" * 100, drip=("body", 0.05))]) as server, requests.Session() as session:
        mount(session, policy, transport=HTTPAdapter())
        began = time.monotonic()
        with pytest.raises(requests.RequestException):
            session.get(server.url(), timeout=5)
        assert time.monotonic() - began < 3  # of the five seconds that the body takes


def test_the_way_through_a_proxy_is_watched_too() -> None:
    """Nothing is sent before the tunnel stands: facts: urllib3 takes this for a read error, and gives a POST up."""
    with FaultServer([Tunnel(Close("request")), Answer(200), Close("request")], tls=False) as server:
        proxies = {"https": server.proxy_url, "http": server.proxy_url}
        with requests.Session() as session:
            mount(session, AT_ONCE, transport=HTTPAdapter())
            url, options = "https://api.example.com/", {"data": b"pay", "proxies": proxies, "verify": server.ca}
            assert session.post(url, **options).status_code == 200
            assert (len(server.tunnels), server.complete) == (2, 1)
            with pytest.raises(requests.ConnectionError):
                session.post("http://api.example.com/", **options)
            assert server.complete == 2


def test_connections_that_rested_too_long_are_not_used_again() -> None:
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, transport=HTTPAdapter(), max_idle=0.0)
        for _ in range(2):
            session.get(server.url())
        assert server.connections == 2


@pytest.mark.parametrize(
    "retries", [3, Retry(total=None, connect=3), Retry(total=None, status=3, status_forcelist=[503])], ids=str
)
def test_a_transport_that_retries_by_itself_is_refused(retries: Any) -> None:
    with pytest.raises(ConfigurationError, match="retries by itself"):
        RetryAdapter(transport=HTTPAdapter(max_retries=retries))


def test_both_are_pickled_and_closed_together() -> None:
    made = RetryAdapter(AT_ONCE, transport=HTTPAdapter(pool_maxsize=3), max_idle=1.0)
    again = pickle.loads(pickle.dumps(made))
    assert (again.policy, again.max_idle, again.transport._pool_maxsize) == (AT_ONCE, 1.0, 3)
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        session.mount("http://", again)
        assert session.get(server.url()).status_code == 200
        assert len(again.transport.poolmanager.pools) == 1
    assert len(again.transport.poolmanager.pools) == 0
