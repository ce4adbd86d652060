"""A client that is nothing but a socket: it shows what a fault server really puts on the wire."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

from retrypolicy.testing import FaultServer

GET = b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"
POST_HEAD = b"POST /send HTTP/1.1\r\nHost: example.test\r\nContent-Length: 5\r\n\r\n"
POST = POST_HEAD + b"hello"
CHUNKED = (
    b"POST /send HTTP/1.1\r\nHost: example.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nX-Trailer: t\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def connect(server: FaultServer, *, timeout: float = 5.0) -> socket.socket:
    host, port = server.proxy_url.split("//")[1].split(":")
    return socket.create_connection((host, int(port)), timeout)


def connect_tls(server: FaultServer, **options: Any) -> ssl.SSLSocket:
    return server.client_context(**options).wrap_socket(connect(server), server_hostname="127.0.0.1")


def rest(sock: socket.socket) -> tuple[bytes, str]:
    """Everything that still comes, and how it ends: fin, rst, tls (an error of TLS), or silence.

    Python up to 3.12 reports a reset under TLS as the end of the stream: `raw_end` knows better.
    """
    seen = b""
    while True:
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            return seen, "silence"
        except ssl.SSLError as error:
            return seen, "fin" if isinstance(error, ssl.SSLEOFError) else "tls"
        except ConnectionError:
            return seen, "rst"
        if not piece:
            return seen, "fin"
        seen += piece


def raw_end(sock: socket.socket) -> str:
    """How the connection under TLS ends: fin or rst."""
    try:
        while socket.socket.recv(sock, 65536):
            pass
    except ConnectionError:
        return "rst"
    return "fin"


def read(sock: socket.socket, expected: bytes) -> None:
    """Read exactly these bytes."""
    seen = b""
    while len(seen) < len(expected):
        piece = sock.recv(len(expected) - len(seen))
        assert piece, f"the end after {seen!r}"
        seen += piece
    assert seen == expected


def exchange(server: FaultServer, *pieces: bytes, timeout: float = 5.0) -> tuple[bytes, str]:
    """Send the pieces on a new connection (as far as the server lets us), and read all that comes."""
    with connect_tls(server) if server.proxy_url.startswith("https") else connect(server) as sock:
        sock.settimeout(timeout)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                sock.sendall(piece)
        return rest(sock)
