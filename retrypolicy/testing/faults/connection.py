"""Carries a script out on one connection, in a thread of its own."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
from collections.abc import Callable
from typing import Literal

from retrypolicy.errors import PolicyError
from retrypolicy.testing.faults.board import Board
from retrypolicy.testing.faults.incoming import BadRequest, Incoming, Request
from retrypolicy.testing.faults.outgoing import asks_to_close, render, render_interim
from retrypolicy.testing.faults.port import HOST
from retrypolicy.testing.faults.steps import (
    Act,
    Answer,
    End,
    Handshake,
    Raw,
    as_step,
)
from retrypolicy.testing.faults.stream import (
    CHUNK,
    CLOSE_ALERT,
    FATAL_ALERT,
    GARBAGE,
    TLS_HANDSHAKE,
    PlainStream,
    Stream,
    TLSStream,
    cork,
    read_record,
    reset,
)

State = Literal["reading", "answering", "waiting", "silent", "ended"]
Drop = Literal["fin", "rst"]
Contexts = Callable[[Handshake, str], ssl.SSLContext]


class Connection:
    """`state` is what `FaultServer.settle()` looks at; `handshake` and `first` are steps for the connection itself."""

    def __init__(
        self,
        board: Board,
        sock: socket.socket,
        number: int,
        *,
        contexts: Contexts,
        tls: bool,
    ) -> None:
        self.socket = sock
        self.state: State = "reading"
        self._drop: Drop | None = None
        self._board = board
        self._number = number
        self._contexts = contexts
        self._tls = tls
        self.handshake: Handshake | None = None
        self.first: Act | None = None
        self._plain = PlainStream(sock)
        self._below: Stream = self._plain  # what the present TLS stands on
        self._stream: Stream = self._plain
        self.secured = False
        self.tunnel: str | None = None
        self._position = 0

    def run(self) -> None:
        try:
            self._serve()
        except (OSError, BadRequest):
            pass  # the client left, or can't be understood: what was read stands in the records
        except Exception as error:
            self._fail(error)
        finally:
            self.socket.close()
            with self._board.changed:
                self.state = "ended"
                self._board.connections.discard(self)
                self._board.changed.notify_all()

    def end_when_idle(self, how: Drop) -> None:
        """End the connection unless it has something to read or to answer. Called under the board's lock."""
        self._drop = how
        if self.state == "waiting":
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RD)  # ends the read that waits, and says nothing on the wire

    def abort(self) -> None:
        """End every blocking call, from another thread."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        if self.first is not None and self.first.after == "accept":
            first, self.first = self.first, None
            if not self._carry_out(first, None):
                return
        if self._tls and not (self._wait(self._hears) and self._secure(HOST)):
            return
        while self._wait(self._stream.arrived):
            if not self._exchange():
                return

    def _wait(self, arrived: Callable[[], bool]) -> bool:
        """Wait until the client begins something new; False if it left, or the connection is to be dropped."""
        self._become("waiting")
        begun = self._drop is None and arrived()
        self._become("reading")
        if self._drop == "rst":
            reset(self.socket)
        return begun and self._drop is None

    def _hears(self) -> bool:
        return bool(self._stream.peek(1))

    def _become(self, state: State) -> None:
        with self._board.changed:
            self.state = state
            self._board.changed.notify_all()

    def _secure(self, host: str) -> bool:
        """The TLS handshake, and the steps that meet it; True if a request may follow."""
        first, self.first = self.first, None
        if self._stream.peek(1) != TLS_HANDSHAKE:
            self._stream.send(FATAL_ALERT)  # plain HTTP on a TLS port
            return False
        hello = read_record(self._stream)
        if first is not None and first.after == "hello":
            return self._carry_out(first, None)
        tls = TLSStream(self._stream, self._contexts(self.handshake or Handshake(), host))
        try:
            tls.handshake(hello)
        except ssl.SSLError:
            # A real server closes at once, and its RST may overtake the alert that tests want to see.
            return self._end("half", None)
        self._below, self._stream, self.secured = self._stream, tls, True
        return first is None or self._carry_out(first, None)

    def _exchange(self) -> bool:
        """One request and what the script has for it; True if another one may follow."""
        self._position += 1
        connect = self._is_connect()
        records = self._board.tunnels if connect else self._board.requests
        incoming = Incoming(self._stream, records, connection=self._number, position=self._position, tunnel=self.tunnel)
        if connect:
            return self._open_tunnel(incoming)
        step = self._board.take_for_request()
        if isinstance(step, Act):
            incoming.act = step
        elif incoming.read_to("request"):
            incoming.act = self._chosen(step, incoming.seen())
        return incoming.act is not None and self._carry_out(incoming.act, incoming)

    def _chosen(self, function: Callable[[Request], object], request: Request) -> Act | None:
        """What a function in the script wants; if it fails, None, and the test will hear of it."""
        try:
            step = as_step(function(request))
            if isinstance(step, Act):
                return step
            raise PolicyError.of("script", step, "a step about the request, from a function that has seen it")
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        with self._board.changed:
            self._board.errors.append(error)

    def _is_connect(self) -> bool:
        if self.tunnel is not None:
            return False
        step = self._board.current
        if self.secured and isinstance(step, Act) and step.after == "arrival":
            return False  # looking would mean reading the record
        return self._stream.peek(8) == b"CONNECT "

    def _open_tunnel(self, incoming: Incoming) -> bool:
        act = incoming.act = self._board.take_for_tunnel()
        opens = isinstance(act, Answer) and act.status // 100 == 2 and act.then in (None, "keep") and act.cut is None
        if not self._carry_out(act, incoming):
            return False
        if not opens:
            return True
        self.tunnel, self._position = incoming.target or "", 0
        if not self._wait(self._hears):
            return False
        if self._stream.peek(1) != TLS_HANDSHAKE:
            return True
        self.handshake, self.first = self._board.take_for_connection(accepting=False, tls=True)
        return self._secure(self.tunnel.rpartition(":")[0].strip("[]"))

    def _carry_out(self, act: Act, incoming: Incoming | None) -> bool:
        if incoming is not None and not incoming.read_to(act.after, act.count):
            return False
        end = act.then or self._usual_end(act, incoming)
        if end == "keep" and act.then is None and self._must_reconnect(incoming):
            end = "fin"
        if incoming is None or incoming.complete:
            self._become("answering")
        if isinstance(act, Raw):
            self._stream.send(act.data)
        elif isinstance(act, Answer):
            # Corked bytes are lost if the kernel answers unread ones with RST, so only what is whole may be corked.
            whole = incoming is not None and incoming.complete
            self._send(act, incoming, last=whole and end in ("fin", "half", "close_notify"))
        return self._end(end, incoming)

    def _usual_end(self, act: Act, incoming: Incoming | None) -> End:
        assert isinstance(act, Answer)
        if incoming is None and not self.secured and self._tls:
            return "fin"
        if act.cut is not None:
            return "fin"
        if incoming is not None and incoming.method == "CONNECT" and act.status // 100 == 2:
            return "keep"  # even if asked by HTTP/1.0, as http.client does
        if asks_to_close(act) or (incoming is not None and incoming.head_complete and not incoming.keeps_alive):
            return "close_notify"
        return "keep"

    def _must_reconnect(self, incoming: Incoming | None) -> bool:
        if incoming is not None and incoming.method == "CONNECT":
            return False  # the tunnel itself is such a connection
        return self._board.wants_new_connection(secured=self.secured, tunnel=self.tunnel is not None)

    def _send(self, answer: Answer, incoming: Incoming | None, *, last: bool) -> None:
        self._board.stop.wait(answer.delay)
        for interim in answer.interim:
            for _ in itertools.repeat(None) if interim.times is None else range(interim.times):
                self._stream.send(render_interim(interim))
                self._board.stop.wait(interim.every)
        status, headers, body = render(answer, incoming.method if incoming else None)
        part, pause = answer.drip or ("", 0.0)
        if part == "head":
            self._drip(status + headers, pause)
        elif part == "body":
            self._stream.send(status + headers)
            self._drip(body, pause)
        elif last:
            cork(self.socket)
        rest = {"head": body, "body": b"", "": status + headers + body}[part]
        self._stream.send(rest + answer.extra)

    def _drip(self, data: bytes, pause: float) -> None:
        for at in range(len(data)):
            self._stream.send(data[at : at + 1])
            self._board.stop.wait(pause)

    def _end(self, end: End, incoming: Incoming | None) -> bool:
        if end == "keep":
            return incoming is None or incoming.read_to("request")
        if end == "rst":
            reset(self.socket)
        elif end == "stall":
            self._become("silent")
            self._board.stop.wait()
        elif end == "half":
            self.socket.shutdown(socket.SHUT_WR)
            if incoming is not None:
                incoming.read_to("request")
            self._become("silent")
            while self._plain.read(CHUNK):
                pass
        elif end == "garbage":
            self._below.send(GARBAGE)
        elif end == "alert":
            self._stream.alert()
        elif end == "close_notify":
            if self.secured:
                self._stream.close_notify()
            elif self._tls:
                self._stream.send(CLOSE_ALERT)
        return False
