"""Beside requests-toolbelt: its adapters, in both shapes, and its bodies."""

from __future__ import annotations

import hashlib
import io
import pickle
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from requests.adapters import HTTPAdapter
from requests_toolbelt import MultipartEncoder, MultipartEncoderMonitor, StreamingIterator
from requests_toolbelt.adapters.fingerprint import FingerprintAdapter
from requests_toolbelt.adapters.host_header_ssl import HostHeaderSSLAdapter
from requests_toolbelt.adapters.socket_options import SocketOptionsAdapter, TCPKeepAliveAdapter
from requests_toolbelt.adapters.source import SourceAddressAdapter
from requests_toolbelt.adapters.ssl import SSLAdapter

from retrypolicy import Effect, Reason
from retrypolicy.requests import RetryAdapter
from retrypolicy.testing import Answer, FaultServer
from tests.companions.laws import AT_ONCE, BUSY, Opened, check_laws, opened_around, opened_with, plain, told

KEPT_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
ADAPTERS: list[tuple[type[HTTPAdapter], dict[str, Any]]] = [
    (SourceAddressAdapter, {"source_address": "127.0.0.2"}),
    (SocketOptionsAdapter, {"socket_options": KEPT_ALIVE}),
    (TCPKeepAliveAdapter, {"idle": 30}),
    (SSLAdapter, {"ssl_version": ssl.PROTOCOL_TLS_CLIENT}),
    (HostHeaderSSLAdapter, {}),
]


def inherited(other: type[HTTPAdapter], **own: Any) -> Opened:
    return opened_with(type(f"Retrying{other.__name__}", (RetryAdapter, other), {}), **own)


def around(other: type[HTTPAdapter], **own: Any) -> Opened:
    return opened_around(lambda: other(**own))


SHAPES = pytest.mark.parametrize("shape", [inherited, around])


@SHAPES
@pytest.mark.parametrize(("other", "own"), ADAPTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_laws(shape: Any, other: type[HTTPAdapter], own: dict[str, Any]) -> None:
    # What an adapter does in a `send` of its own can't be known, so from the outside its wire is not watched.
    check_laws(shape(other, **own), watched=shape is inherited or "send" not in vars(other))


@SHAPES
def test_their_work_is_done_on_every_attempt(shape: Any) -> None:
    """The source address and the socket options are on the connections that serve the attempts."""
    seen = []

    def look(response: requests.Response, **kwargs: Any) -> None:
        sock = response.raw.connection.sock
        seen.append((sock.getsockname()[0], sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))

    for other, own in ADAPTERS[:2]:
        with FaultServer([BUSY, Answer(200, b"x")]) as server, shape(other, **own)() as session:
            session.post(server.url(), data=b"x", stream=True, hooks={"response": look}).close()
            assert server.complete == 2
    assert seen == [("127.0.0.2", 0), ("127.0.0.1", 1)]


@SHAPES
def test_a_fingerprint_that_does_not_match_is_no_reason_to_ask_again(shape: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf = authority.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    right = hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())).hexdigest()
    with FaultServer([BUSY, Answer(200)], tls=context) as server:
        check = {"data": b"pay", "verify": str(tmp_path / "ca.pem")}
        wrong = shape(FingerprintAdapter, fingerprint="00" * 32)
        with wrong() as session, pytest.raises(requests.exceptions.SSLError) as caught:
            session.post(server.url(), **check)
        assert (server.connections, server.complete) == (1, 0)
        with shape(FingerprintAdapter, fingerprint=right)() as session:
            assert session.post(server.url(), **check).status_code == 200
        assert server.complete == 2
    found = told(caught.value)
    assert (found.effect, found.reason) == (Effect.NOT_APPLIED, Reason.PERMANENT)


@SHAPES
def test_the_host_header_chooses_the_name_in_the_certificate(shape: Any) -> None:
    with FaultServer([BUSY, Answer(200)], tls=True) as server, shape(HostHeaderSSLAdapter)() as session:

        def post(host: str) -> requests.Response:
            response = session.post(server.url(), data=b"x", headers={"Host": host}, verify=server.ca)
            assert isinstance(response, requests.Response)
            return response

        assert post("localhost").status_code == 200
        for _ in range(2):
            before = server.connections
            with pytest.raises(requests.exceptions.SSLError) as caught:
                post("elsewhere.example")
            assert server.connections == before + 1
            assert post("localhost").status_code == 200
        assert {request.header("Host") for request in server.requests} == {"localhost"}
    found = told(caught.value)
    assert (found.effect, found.total_attempts) == (Effect.NOT_APPLIED, 1)


@SHAPES
def test_an_adapter_that_can_be_pickled_still_can(shape: Any) -> None:
    """The fingerprint is in the pickle, beside what is ours."""
    made = Retrying("00" * 32) if shape is inherited else RetryAdapter(AT_ONCE, transport=FingerprintAdapter("00" * 32))
    again = pickle.loads(pickle.dumps(made))
    assert again.policy == AT_ONCE
    other = again if shape is inherited else again.transport
    assert other.fingerprint == "00" * 32
    assert other.poolmanager.connection_pool_kw["assert_fingerprint"] == "00" * 32


class Retrying(RetryAdapter, FingerprintAdapter):
    def __init__(self, fingerprint: str) -> None:
        super().__init__(AT_ONCE, fingerprint=fingerprint)


def encoder() -> MultipartEncoder:
    return MultipartEncoder({"file": ("name", io.BytesIO(b"content"), "text/plain")})


@pytest.mark.parametrize(
    "make",
    [
        encoder,
        lambda: MultipartEncoderMonitor(encoder()),
        lambda: StreamingIterator(5, iter([b"con", b"te"])),
    ],
)
def test_bodies_that_can_be_read_once_are_never_sent_again(make: Any) -> None:
    """facts: urllib3 sends such a body again, with its length and without its bytes."""
    with FaultServer([BUSY, Answer(200)]) as server, plain() as session:
        body = make()
        response = session.put(server.url(), data=body, headers={"Content-Type": getattr(body, "content_type", "a/b")})
        assert response.status_code == 503
        assert [(request.complete, b"conte" in request.body) for request in server.requests] == [(True, True)]
    assert told(response).reason is Reason.BODY_NOT_REPLAYABLE
