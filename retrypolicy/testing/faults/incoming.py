"""Reads one request up to any byte of it, and tells what was read."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from retrypolicy.testing.faults.steps import Act, After, refuses
from retrypolicy.testing.faults.stream import CHUNK, Stream


@attrs.frozen(kw_only=True)
class Request:
    """What the server has read of one request. A request of which no byte was read has none.

    `body` has no chunk sizes in it; `size` counts every byte on the wire. `connection` and `position` count from 1.
    `complete`: it was read to its last byte. `applied`: an application would have acted on it.
    `tunnel` is the authority of the CONNECT that it came through; `position` counts anew inside.
    """

    method: str | None
    target: str | None
    headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    size: int
    connection: int
    position: int
    tunnel: str | None
    complete: bool
    applied: bool

    def header(self, name: str) -> str | None:
        """The first header of that name, whatever its case."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)


class BadRequest(ValueError):
    """The request breaks its own framing; it can't be read further."""


class Incoming:
    """A request on its way in. Reads exactly what it is asked for; belongs to one thread, `seen()` is for all."""

    def __init__(
        self, stream: Stream, records: list[Incoming], *, connection: int, position: int, tunnel: str | None
    ) -> None:
        self._stream = stream
        self._records = records
        self._where = {"connection": connection, "position": position, "tunnel": tunnel}
        self._head = bytearray()
        self._body = bytearray()
        self._body_size = 0
        self._left = 0  # bytes of a body with a Content-Length that are still to come
        self._chunks: Chunks | None = None
        self._headers: tuple[tuple[str, str], ...] = ()
        self._line: tuple[str | None, str | None, str] = (None, None, "")
        self._expects_continue = False
        self.head_complete = False
        self.complete = False
        self.act: Act | None = None

    @property
    def method(self) -> str | None:
        return self._line[0]

    @property
    def target(self) -> str | None:
        return self._line[1]

    @property
    def keeps_alive(self) -> bool:
        """May the connection go on after this request? (RFC 9112 section 9.3)"""
        wish = ",".join(value for name, value in self._headers if name.lower() == "connection").lower()
        return "close" not in wish and (self._line[2] != "HTTP/1.0" or "keep-alive" in wish)

    @property
    def applied(self) -> bool:
        if self.act is None or self.act.applied is False or self.method == "CONNECT":
            return False
        if self.act.applied:
            return self.head_complete
        return self.complete and not refuses(self.act)

    def seen(self) -> Request:
        complete = self.complete  # first: once it is true, nothing else changes
        return Request(
            method=self.method,
            target=self.target,
            headers=self._headers,
            body=bytes(self._body),
            size=len(self._head) + self._body_size,
            complete=complete,
            applied=self.applied,
            **self._where,  # type: ignore[arg-type]  # ints and the authority, by name
        )

    def read_to(self, after: After, count: int | None = None) -> bool:
        """Read up to that point; False if the client left before it. Raises BadRequest."""
        if after == "head":
            return self._read_head(count)
        if after == "body":
            return self._read_head(None) and self._read_body(count)
        if after == "request":
            return self._read_head(None) and self._read_body(None)
        return True

    def _read_head(self, count: int | None) -> bool:
        while not self.head_complete and (count is None or len(self._head) < count):
            seen = self._stream.peek(CHUNK)
            if not seen:
                return False
            before = bytes(self._head[-3:])
            end = (before + seen).find(b"\r\n\r\n")
            take = len(seen) if end < 0 else end + 4 - len(before)
            if count is not None:
                take = min(take, count - len(self._head))
            if not self._head:
                self._records.append(self)
            self._head += self._stream.read(take)
            if self._head.endswith(b"\r\n\r\n"):
                self._parse()
        return True

    def _parse(self) -> None:
        first, *rest = self._head.decode("latin-1").rstrip("\r\n").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            raise BadRequest("request line")
        self._line = (words[0], words[1], words[2])
        self._headers = tuple(
            (name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in rest)
        )
        framing = {name.lower(): value.lower() for name, value in self._headers}
        if "chunked" in framing.get("transfer-encoding", ""):
            self._chunks = Chunks()
        elif "content-length" in framing:
            if not framing["content-length"].isdecimal():
                raise BadRequest("Content-Length")
            self._left = int(framing["content-length"])
        self._expects_continue = framing.get("expect") == "100-continue"
        self.head_complete = True
        self._check_complete()

    def _read_body(self, count: int | None) -> bool:
        if self._expects_continue and not self.complete:
            self._expects_continue = False
            self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.complete and (count is None or self._body_size < count):
            room = CHUNK if count is None else min(CHUNK, count - self._body_size)
            piece = self._read_chunked(room) if self._chunks else self._stream.read(min(room, self._left))
            if not piece:
                return False
            self._body_size += len(piece)
            if self._chunks:
                self._body += self._chunks.take(piece)
            else:
                self._body += piece
                self._left -= len(piece)
            self._check_complete()
        return True

    def _read_chunked(self, room: int) -> bytes:
        assert self._chunks is not None
        if self._chunks.data_left:
            return self._stream.read(min(room, self._chunks.data_left))
        seen = self._stream.peek(room)
        return self._stream.read(seen.find(b"\n") + 1 or len(seen)) if seen else b""

    def _check_complete(self) -> None:
        self.complete = self._chunks.complete if self._chunks else self._left == 0


class Chunks:
    """The chunked coding (RFC 9112 section 7.1), fed with pieces that go no further than a line or a chunk."""

    def __init__(self) -> None:
        self._line = b""
        self._next: Callable[[bytes], None] = self._size
        self.data_left = 0
        self.complete = False

    def take(self, piece: bytes) -> bytes:
        """What of this piece is content."""
        if self.data_left:
            self.data_left -= len(piece)
            return piece
        self._line += piece
        if piece.endswith(b"\n"):
            line, self._line = self._line.strip(), b""
            self._next(line)
        return b""

    def _size(self, line: bytes) -> None:
        try:
            self.data_left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadRequest("chunk size") from None
        self._next = self._end_of_chunk if self.data_left else self._trailer

    def _end_of_chunk(self, line: bytes) -> None:
        if line:
            raise BadRequest("chunk end")
        self._next = self._size

    def _trailer(self, line: bytes) -> None:
        self.complete = not line
