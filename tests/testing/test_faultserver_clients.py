"""A fault server against requests and urllib3: every fault of the catalogue, and the duplicates it was built to see."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from retrypolicy.testing import (
    FAULTS,
    PORT_FAULTS,
    TLS_FAULTS,
    TUNNEL_FAULTS,
    Answer,
    Close,
    FaultServer,
    Raw,
    Reset,
)

LEAKY = TUNNEL_FAULTS["tunnel_then_rst"]
KINDS = ("plain", "tls", "forward", "tunnel")


class Client(requests.Session):
    """One that reaches a fault server in one of four ways."""

    def __init__(self, server: FaultServer, kind: str, retries: Any = 0) -> None:
        super().__init__()
        self.trust_env = False
        self.kind = kind
        self.server = server
        self.mount("http://", HTTPAdapter(max_retries=retries))
        self.mount("https://", HTTPAdapter(max_retries=retries))
        if kind in ("tls", "tunnel"):
            self.verify = server.ca
        if kind in ("forward", "tunnel"):
            self.proxies = {"http": server.proxy_url, "https": server.proxy_url}

    def send_post(self, timeout: float = 5.0, body: bytes = b"hello") -> str:
        origins = {"forward": "http://example.test/send", "tunnel": "https://example.test/send"}
        url = origins.get(self.kind) or self.server.url("/send")
        try:
            response = self.post(url, data=body, timeout=timeout)
        except requests.RequestException as error:
            return type(error).__name__
        return str(response.status_code)


def start(script: Any, kind: str) -> FaultServer:
    return FaultServer(script, tls=kind == "tls")


def is_silent(name: str) -> bool:
    return "stall" in name or name in ("blackhole", "interim_endless")


def reads_all(step: Any) -> bool:
    """Does the server read the whole request under this step?"""
    end = step.then or "keep"
    return step.after == "request" or end in ("half", "keep")


def catalogue() -> Iterator[Any]:
    for kind in ("plain", "tunnel"):
        yield from (pytest.param(step, kind, reads_all(step), id=f"{name}-{kind}") for name, step in FAULTS.items())
    for faults, kind in ((TLS_FAULTS, "tls"), (TUNNEL_FAULTS, "tunnel"), (PORT_FAULTS, "plain")):
        for name, step in faults.items():
            # Some versions of Python lose the socket of a client whose connection is reset before its TLS hello.
            leak = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            marks = [leak] if step == LEAKY else []
            yield pytest.param(step, kind, name == "request_close_notify", id=f"{name}-{kind}", marks=marks)


@pytest.mark.parametrize(("step", "kind", "complete"), [*catalogue()])
def test_every_fault_reads_what_it_says(step: Any, kind: str, complete: bool, request: Any) -> None:
    timeout = 0.1 if is_silent(request.node.callspec.id.rsplit("-", 1)[0]) else 5.0
    with start([step, Answer(200, b"recovered")], kind) as server, Client(server, kind) as client:
        client.send_post(timeout)
        if step == LEAKY:
            gc.collect()
        assert server.settle().complete == complete
        assert len(server.requests) <= 1
        # Whatever it was, the server is as good as new for the next client.
        server.play(Answer(200, b"recovered"))
        with Client(server, kind) as another:
            assert another.send_post() == "200"
        assert server.settle().complete == complete + 1


@pytest.mark.parametrize(
    ("name", "plain", "tls"),
    [
        ("arrival_rst", "ConnectionError", None),  # None: depends on the version of Python
        ("request_fin", "ConnectionError", "ConnectionError"),
        ("request_rst", "ConnectionError", "ConnectionError"),
        ("request_stall", "ReadTimeout", "ReadTimeout"),
        ("request_garbage", "ConnectionError", "SSLError"),
        ("early_413_read", "413", "413"),
        ("early_413_fin", "413", "413"),
        ("garbage_status_line", "ConnectionError", "ConnectionError"),
        ("conflicting_content_length", "InvalidHeader", "InvalidHeader"),
        ("long_header_line", "ConnectionError", "ConnectionError"),
        ("too_many_headers", "ConnectionError", "ConnectionError"),
        ("only_status_line_fin", "200", "200"),
        ("interim_103", "103", "103"),
        ("interim_100", "200", "200"),
        ("body_fin", "ChunkedEncodingError", "ChunkedEncodingError"),
        ("body_stall", "ConnectionError", "ConnectionError"),
        ("last_chunk_missing", "ChunkedEncodingError", "ChunkedEncodingError"),
        ("close_delimited_short", "200", "200"),
        ("wrong_encoding", "ContentDecodingError", "ContentDecodingError"),
        ("gzip_short", "200", "200"),
        ("429_endless", "429", "429"),
    ],
)
def test_what_requests_makes_of_a_fault(name: str, plain: str, tls: str | None) -> None:
    for kind, expected in (("plain", plain), ("tls", tls)):
        with start(FAULTS[name], kind) as server, Client(server, kind) as client:
            seen = client.send_post(0.2 if is_silent(name) else 5.0)
            assert expected is None or seen == expected


@pytest.mark.parametrize(
    ("step", "kind", "times"),
    [
        (Close(), "plain", 1),
        (Reset(), "tls", 1),
        (Close(how="garbage"), "tls", 3),
        (Close(), "forward", 3),
        (Reset(), "forward", 3),
        (Close(how="close_notify"), "tunnel", 3),
        (Close(how="garbage"), "tunnel", 3),
    ],
)
def test_urllib3_sends_a_post_again_that_was_read_in_full(step: Any, kind: str, times: int) -> None:
    """What a count of connections or of exceptions cannot show."""
    with start(step, kind) as server, Client(server, kind, Retry(total=2)) as client:
        client.send_post()
        assert server.settle().complete == server.applied == times


def test_a_reused_connection_that_just_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race itself: the client found the connection alive, and the server closes before the request comes."""
    with FaultServer() as server, Client(server, "plain") as client:
        assert client.send_post() == "200"
        pool = client.get_adapter(server.url()).poolmanager.connection_from_url(server.url())  # type: ignore[attr-defined]
        request = pool.ConnectionCls.request

        def late(*args: Any, **kwargs: Any) -> None:
            server.drop_idle("rst")
            request(*args, **kwargs)

        monkeypatch.setattr(pool.ConnectionCls, "request", late)
        assert client.send_post() == "ConnectionError"
        assert server.settle().complete == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_early_answer_survives_a_large_upload(kind: str) -> None:
    with start(Answer(413, b"too big", after="head"), kind) as server, Client(server, kind) as client:
        assert client.send_post(body=b"x" * 3_000_000) == "413"
        assert server.settle().complete == 1
        assert server.applied == 0


@pytest.mark.parametrize("kind", KINDS)
def test_connections_are_kept(kind: str) -> None:
    with start(Answer(200, b"x"), kind) as server, Client(server, kind) as client:
        assert [client.send_post() for _ in range(5)] == ["200"] * 5
        assert server.connections == 1
        assert [each.position for each in server.requests] == [1, 2, 3, 4, 5]


def test_an_alert_on_a_plain_port() -> None:
    with FaultServer(Raw(b"\x15\x03\x03\x00\x02\x02\x28")) as server, Client(server, "plain") as client:
        assert client.send_post() == "ConnectionError"
