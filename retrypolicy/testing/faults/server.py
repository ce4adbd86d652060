"""The fault server: one port, one thread that accepts, one thread per connection."""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.testing.faults.acceptor import Acceptor, readable
from retrypolicy.testing.faults.board import Board
from retrypolicy.testing.faults.certificates import authority
from retrypolicy.testing.faults.connection import Drop
from retrypolicy.testing.faults.incoming import Request
from retrypolicy.testing.faults.port import HOST
from retrypolicy.testing.faults.steps import Handshake, Step, as_script

Script = Step | int | Callable[[Request], Any] | Iterable[Step | int | Callable[[Request], Any]]


class FaultServer:
    """A scripted HTTP server on loopback for tests of HTTP clients. A context manager; everything ends with it.

    `script` is a list of steps. Each request takes one when its first byte arrives; a step about connecting
    (`after="accept"`, `"hello"` or `"handshake"`, and `Handshake`) is taken by a connection instead, `Refuse` and
    `Blackhole` by the port. Before a step about connecting, idle connections are closed. The last step is repeated for
    ever; without a script every request gets an empty 200. A status code stands for `Answer(code)`. A function is
    called with the complete `Request` and returns the step; what it raises is raised again at the end of the `with`.

    The server is also a proxy, forward and CONNECT, and plays every origin behind it: see `proxy_url` and `Tunnel`.

    `tls` is True (certificates by trustme) or an `ssl.SSLContext` of your own.

    Raises PolicyError for a script that isn't one, ImportError if TLS is asked for and trustme isn't installed.
    """

    def __init__(self, script: Script = (), *, tls: bool | ssl.SSLContext = False) -> None:
        if not isinstance(tls, (bool, ssl.SSLContext)):
            raise PolicyError.of("tls", tls, "True, False or an ssl.SSLContext")
        self._board = Board(as_script(script))
        self._tls = tls
        if tls is True:
            authority()  # says at once if trustme is missing
        self._acceptor: Acceptor | None = None
        self._files: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._acceptor = Acceptor(self._board, tls=self._tls, contexts=self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._board.errors:
            raise self._board.errors[0]

    def close(self) -> None:
        """End every connection and thread. What was read stays readable."""
        if self._acceptor is not None:
            self._acceptor.close()
        if self._files is not None:
            self._files.cleanup()
            self._files = None

    # What the server has seen

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request of which at least one byte was read, without CONNECTs, in the order of their first bytes."""
        with self._board.changed:
            return tuple(each.seen() for each in self._board.requests)

    @property
    def tunnels(self) -> tuple[Request, ...]:
        """Every CONNECT."""
        with self._board.changed:
            return tuple(each.seen() for each in self._board.tunnels)

    @property
    def complete(self) -> int:
        """How many requests were read to their last byte: the truth about what an application could act on."""
        with self._board.changed:
            return sum(each.complete for each in self._board.requests)

    @property
    def applied(self) -> int:
        """How many requests an application would have acted on (see `Answer.applied`)."""
        with self._board.changed:
            return sum(each.applied for each in self._board.requests)

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        return self._board.accepted

    @property
    def played(self) -> int:
        """How many steps of the script were taken, repetitions of the last one included."""
        return self._board.played

    def settle(self, timeout: float = 5.0) -> Self:
        """Wait until everything that clients have sent was read, as far as the script reads at all.

        Then every connection has ended, has fallen silent, still answers a complete request, or waits for one of
        which nothing has come.
        Raises TimeoutError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._board.changed:
            while not self._settled():
                left = deadline - time.monotonic()
                if left <= 0:
                    states = sorted(connection.state for connection in self._board.connections)
                    raise TimeoutError(
                        f"the fault server has not settled in {timeout} s; connections: {', '.join(states)}"
                    )
                self._board.changed.wait(min(left, 0.005))  # a client's bytes in the kernel notify nobody
        return self

    def _settled(self) -> bool:
        connections = self._board.connections
        if any(each.state == "reading" for each in connections) or (self._acceptor and self._acceptor.has_backlog()):
            return False
        try:
            return not readable([each.socket for each in connections if each.state in ("waiting", "answering")], 0.0)
        except (OSError, ValueError):
            return False  # one of them is being closed

    # What a test can do meanwhile

    def skip(self) -> None:
        """Go on to the next step of the script without waiting for somebody to take the present one."""
        self._board.skip()

    def play(self, script: Script) -> None:
        """Replace the script by another one."""
        self._board.replace(as_script(script))

    def drop_idle(self, how: Drop = "fin") -> None:
        """Close every connection that waits for a request, now: with FIN, or with RST.

        Called from a hook in the client just before it writes, this is the race between a request and an idle close.
        """
        self._board.drop_idle(how)

    # Where it is, and whom to trust

    def url(self, path: str = "/") -> str:
        """The address of a resource on this server."""
        return f"{self.proxy_url}{path}"

    @property
    def proxy_url(self) -> str:
        """The address of this server as a proxy."""
        if self._acceptor is None:
            raise ConfigurationError("the fault server has no address before its `with` block")
        return f"{'https' if self._tls else 'http'}://{HOST}:{self._acceptor.port.number}"

    @property
    def ca(self) -> str:
        """Path of a file with the authority that signs this server's certificates, and those inside its tunnels."""
        return self._file("ca.pem", authority().ca_pem)

    @property
    def client_certificate(self) -> str:
        """Path of a file with a certificate and key that `Handshake(client_certificate=True)` accepts."""
        return self._file("client.pem", authority().client_pem)

    def client_context(self, *, certificate: bool = False) -> ssl.SSLContext:
        """A client's context that trusts this server, and shows a certificate of its own if asked to."""
        context = ssl.create_default_context(cafile=self.ca)
        if certificate:
            context.load_cert_chain(self.client_certificate)
        return context

    def _file(self, name: str, content: Callable[[], bytes]) -> str:
        if self._files is None:
            self._files = tempfile.TemporaryDirectory(prefix="fault-server-")
        path = Path(self._files.name, name)
        if not path.exists():
            path.write_bytes(content())
        return str(path)

    def _context(self, handshake: Handshake, host: str) -> ssl.SSLContext:
        if isinstance(self._tls, ssl.SSLContext) and handshake == Handshake():
            return self._tls
        return authority().context(handshake, host)
