"""What a fault server does under TLS, and inside the tunnels of a proxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
from typing import Any

import pytest
import requests
import trustme

from retrypolicy.testing import Answer, Close, FaultServer, Handshake, Raw, Reset, Stall, Tunnel
from tests.testing.faultclient import GET, OK, POST, connect, connect_tls, exchange, raw_end, read, rest

CONNECT = b"CONNECT example.test:443 HTTP/1.1\r\nHost: example.test:443\r\n\r\n"
OPEN = b"HTTP/1.1 200 OK\r\n\r\n"


def tunnelled(server: FaultServer, sock: socket.socket) -> ssl.SSLSocket:
    sock.sendall(CONNECT)
    read(sock, OPEN)
    return server.client_context().wrap_socket(sock, server_hostname="example.test")


def session(server: FaultServer, *, proxy: bool = False) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.verify = server.ca
    if proxy:
        made.proxies = {"http": server.proxy_url, "https": server.proxy_url}
    return made


# Handshakes


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (Close("accept"), "fin"),
        (Reset("accept"), "rst"),
        (Close("hello"), "fin"),
        (Reset("hello"), "rst"),
        (Close("hello", how="alert"), "tls"),
        (Close("hello", how="garbage"), "tls"),
        (Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", after="hello"), "tls"),
        (Answer(400, after="hello"), "tls"),
    ],
)
def test_the_handshake_fails(step: Any, error: str) -> None:
    with FaultServer([step, Answer()], tls=True) as server:
        with pytest.raises(OSError) as caught:  # told apart below
            connect_tls(server)
        kind = type(caught.value)
        seen = "rst" if issubclass(kind, ConnectionError) else "fin" if issubclass(kind, ssl.SSLEOFError) else "tls"
        # A FIN while a hello is on its way, and a reset, look the same to some versions of Python.
        assert seen == error or {seen, error} == {"fin", "rst"}
        assert server.settle().requests == ()
        assert exchange(server, GET.replace(b"1.1\r\n", b"1.0\r\n"))[0] == OK


@pytest.mark.parametrize("step", [Stall("accept"), Stall("hello")])
def test_silence_in_the_handshake(step: Stall) -> None:
    with FaultServer(step, tls=True) as server:
        sock = connect(server, timeout=0.05)
        with sock, pytest.raises(TimeoutError):
            server.client_context().wrap_socket(sock, server_hostname="127.0.0.1")
        server.settle()


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [("untrusted", "self-signed|issuer"), ("expired", "expired"), ("wrong_host", "IP address mismatch")],
)
def test_certificates_that_must_not_be_trusted(certificate: Any, reason: str) -> None:
    with FaultServer([Handshake(certificate), Answer()], tls=True) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            connect_tls(server)
        assert server.settle().requests == ()
        with connect_tls(server) as sock:
            sock.sendall(GET)
            read(sock, OK)


def test_a_careless_client_is_served_behind_a_bad_certificate() -> None:
    with FaultServer(Handshake("untrusted"), tls=True) as server:
        context = ssl._create_unverified_context()
        for _ in range(2):
            with context.wrap_socket(connect(server)) as sock:
                for _ in range(2):
                    sock.sendall(GET)
                    read(sock, OK)
        assert server.complete == 4


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_client_certificates(version: Any) -> None:
    script = [Handshake(client_certificate=True, version=version)] * 2 + [Answer()]
    with FaultServer(script, tls=True) as server:
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake.failure"):
            send_and_hear(server)
        assert server.settle().requests == ()
        with connect_tls(server, certificate=True) as sock:
            assert sock.version() == f"TLSv{version}"
            sock.sendall(POST)
            read(sock, OK)
        assert server.complete == 1


def send_and_hear(server: FaultServer) -> None:
    """TLS 1.3 refuses a client's certificate only after the client may have sent its request."""
    with connect_tls(server) as sock:
        sock.sendall(POST)
        sock.recv(1)


def test_plain_http_on_a_tls_port() -> None:
    with FaultServer(tls=True) as server, connect(server) as sock:
        sock.sendall(GET)
        assert rest(sock)[0] == b"\x15\x03\x03\x00\x02\x02\x28"
        assert server.settle().requests == ()


def test_a_context_of_ones_own() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with FaultServer(tls=context) as server, client.wrap_socket(connect(server), server_hostname="127.0.0.1") as sock:
        sock.sendall(GET)
        read(sock, OK)


# After the handshake


@pytest.mark.parametrize(
    ("step", "end"),
    [
        (Close("handshake"), "fin"),
        (Reset("handshake"), "rst"),
        (Reset("arrival"), "rst"),
        (Reset("head", 5), "rst"),
        (Close("request"), "fin"),
        (Close("request", how="close_notify"), "fin"),
        (Reset("request"), "rst"),
        (Close("request", how="alert"), "tls"),
        (Close("request", how="garbage"), "tls"),
        (Answer(200, b"abc", cut=("body", 1), then="garbage"), "tls"),
    ],
)
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_end_of_a_tls_connection(step: Any, end: str, version: Any) -> None:
    with FaultServer([Handshake(version=version), step], tls=True) as server:
        with connect_tls(server) as sock:
            if step.after != "handshake":
                sock.sendall(POST)
            assert (rest(sock)[1] if end == "tls" else raw_end(sock)) == end
        assert server.settle().complete == (step.after == "request")


def test_close_notify_can_be_told_from_a_bare_fin() -> None:
    """A client that insists on close_notify (RFC 8446 section 6.1) sees the difference."""
    seen = {}
    for how in ("fin", "close_notify"):
        with FaultServer(Answer(200, b"abc", framing="close", then=how), tls=True) as server:  # type: ignore[arg-type]
            raw = connect(server)
            context = server.client_context()
            with context.wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as sock:
                sock.sendall(GET)
                seen[how] = rest_strictly(sock)
    assert seen == {"fin": "cut", "close_notify": "whole"}


def rest_strictly(sock: ssl.SSLSocket) -> str:
    try:
        while sock.recv(100):
            pass
    except ssl.SSLEOFError:
        return "cut"
    return "whole"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_that_says_goodbye_is_no_request(version: Any) -> None:
    """Under TLS 1.3 its close_notify looks like data from outside."""
    with FaultServer([Handshake(version=version), Answer()], tls=True) as server:
        with connect_tls(server) as sock:
            sock.sendall(GET)
            read(sock, OK)
            with contextlib.suppress(OSError):
                sock.unwrap()
        assert server.settle().played == 2


def test_bodies_larger_than_a_record() -> None:
    body = bytes(range(256)) * 2000
    with FaultServer(lambda request: Answer(200, request.body), tls=True) as server:
        assert session(server).post(server.url("/echo"), data=body).content == body
        assert server.requests[0].body == body


def test_reading_stops_at_the_byte_under_tls_too() -> None:
    with FaultServer(Reset("body", 2), tls=True) as server:
        exchange(server, POST)
        (request,) = server.settle().requests
        assert request.body == b"he"


# Proxies


def test_a_forward_proxy_plays_every_origin() -> None:
    with FaultServer([Answer(502), Close(), Reset(), Answer(200, b"from afar")]) as server:
        client = session(server, proxy=True)
        assert client.get("http://example.test/a").status_code == 502
        for _ in range(2):
            with pytest.raises(requests.exceptions.ProxyError):
                client.post("http://example.test/b", data=b"x")
        assert client.get("http://other.test/c").text == "from afar"
        assert [each.target for each in server.requests] == [
            "http://example.test/a", "http://example.test/b", "http://example.test/b", "http://other.test/c",
        ]  # fmt: skip
        assert server.tunnels == ()


@pytest.mark.parametrize(
    ("act", "seen", "end"),
    [
        (Answer(503, b"busy", then="fin"), b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy", "fin"),
        (Close(), b"", "fin"),
        (Reset(), b"", "rst"),
        (Reset("arrival"), b"", "rst"),
        (Raw(b"nonsense"), b"nonsense", "fin"),
        (Answer(200, cut=("status", 7)), b"HTTP/1.", "fin"),
        (Answer(200, then="rst"), OPEN, "rst"),
    ],
)
def test_a_tunnel_is_not_opened(act: Any, seen: bytes, end: str) -> None:
    with FaultServer([Tunnel(act), Answer()]) as server:
        assert exchange(server, CONNECT) == (seen, end)
        assert server.settle().requests == ()
        assert (server.complete, server.applied) == (0, 0)
        with connect(server) as sock, tunnelled(server, sock) as inner:
            inner.sendall(GET)
            read(inner, OK)


def test_a_refused_tunnel_leaves_the_connection_to_the_client() -> None:
    with FaultServer([Tunnel(Answer(407)), Answer()]) as server, connect(server) as sock:
        sock.sendall(CONNECT)
        read(sock, b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        with tunnelled(server, sock) as inner:
            inner.sendall(GET)
            read(inner, OK)


@pytest.mark.parametrize("step", [Close("hello"), Reset("hello"), Handshake("untrusted"), Close("hello", how="alert")])
def test_handshakes_fail_inside_a_tunnel(step: Any) -> None:
    with FaultServer([Answer(), step, Answer()]) as server:
        with connect(server) as sock, tunnelled(server, sock) as inner:
            inner.sendall(GET)
            read(inner, OK)
            assert rest(inner) == (b"", "fin")  # the next step is about a handshake, so this tunnel is closed
        with connect(server) as sock, pytest.raises(OSError):  # of any kind
            tunnelled(server, sock)
        with connect(server) as sock, tunnelled(server, sock) as inner:
            inner.sendall(GET)
            read(inner, OK)
        server.settle()
        assert (server.complete, len(server.tunnels), server.connections) == (2, 3, 3)


@pytest.mark.parametrize("step", [Close(), Reset(), Close(how="garbage"), Stall()])
def test_requests_inside_a_tunnel_meet_the_script(step: Any) -> None:
    with FaultServer([step, Answer(200, b"secret")]) as server:
        client = session(server, proxy=True)
        with pytest.raises(requests.ConnectionError if not isinstance(step, Stall) else requests.ReadTimeout):
            client.post("https://example.test/pay", data=b"x", timeout=0.2 if isinstance(step, Stall) else 5)
        assert client.get("https://example.test/pay").text == "secret"
        assert [(each.tunnel, each.target, each.position) for each in server.settle().requests] == [
            ("example.test:443", "/pay", 1)
        ] * 2


def test_a_tunnel_for_plain_http() -> None:
    with FaultServer() as server, connect(server) as sock:
        sock.sendall(CONNECT)
        read(sock, OPEN)
        sock.sendall(GET)
        read(sock, OK)
        assert server.requests[0].tunnel == "example.test:443"


def test_a_proxy_that_speaks_tls_itself() -> None:
    with FaultServer([Close(how="garbage"), Answer(200, b"deep")], tls=True) as server:
        client = session(server, proxy=True)
        with pytest.raises(requests.ConnectionError):
            client.get("https://example.test/")
        assert client.get("https://example.test/").text == "deep"


def test_tls_needs_trustme_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from retrypolicy.testing.faults import certificates

    certificates.authority.cache_clear()
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ImportError, match=r"retrypolicy\[testing\]"):
        FaultServer(tls=True)
