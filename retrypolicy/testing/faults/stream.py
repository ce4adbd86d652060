"""Byte streams that read no more than they are asked for: TCP, and TLS over any stream."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import Protocol

CHUNK = 65536
FATAL_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # handshake_failure, in the clear
CLOSE_ALERT = b"\x15\x03\x03\x00\x02\x01\x00"  # close_notify, in the clear
GARBAGE = b"\x17\x03\x03\x00\x20" + b"\xa5" * 32  # a well-formed record of noise
TLS_HANDSHAKE = b"\x16"  # how a TLS hello begins
_APPLICATION_DATA = 23
_LONGEST_ALERT = 40  # an encrypted alert's record is shorter than any that holds a request's head


class Stream(Protocol):
    """Bytes both ways, and the goodbyes of TLS."""

    def arrived(self) -> bool:
        """Wait for the first byte of a request without reading it; False if the client left instead."""
        ...

    def peek(self, size: int) -> bytes:
        """Wait for bytes and look at them; b"" at the end of the stream."""
        ...

    def read(self, size: int) -> bytes: ...

    def send(self, data: bytes) -> None: ...

    def close_notify(self) -> None: ...

    def alert(self) -> None: ...


class PlainStream:
    """A TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def arrived(self) -> bool:
        return bool(self.peek(1))

    def peek(self, size: int) -> bytes:
        return self._socket.recv(size, socket.MSG_PEEK)

    def read(self, size: int) -> bytes:
        return self._socket.recv(min(size, CHUNK))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close_notify(self) -> None:
        pass

    def alert(self) -> None:
        self.send(FATAL_ALERT)


class TLSStream:
    """The server's side of TLS over another stream, record by record."""

    def __init__(self, lower: Stream, context: ssl.SSLContext) -> None:
        self._lower = lower
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._buffer = bytearray()

    def handshake(self, hello: bytes = b"") -> None:
        """Raises ssl.SSLError where the two sides can't agree; the alert has been sent then."""
        self._in.write(hello)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._feed():
                    raise ConnectionResetError("the client left during the handshake") from None
            except ssl.SSLError:
                self._flush()
                raise
            else:
                self._flush()
                return

    def arrived(self) -> bool:
        while not self._buffer:
            header = self._lower.peek(5)
            if not header:
                return False
            if len(header) < 5 or (header[0] == _APPLICATION_DATA and header[4] + 256 * header[3] > _LONGEST_ALERT):
                return True
            if not self._fill():
                return False
        return True

    def peek(self, size: int) -> bytes:
        if not self._buffer:
            self._fill()
        return bytes(self._buffer[:size])

    def read(self, size: int) -> bytes:
        data = self.peek(size)
        del self._buffer[: len(data)]
        return data

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            self._tls.write(data[start : start + CHUNK])
            self._flush()

    def close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # it waits for the client's own, which nobody needs
            self._tls.unwrap()
        self._flush()

    def alert(self) -> None:
        # The ssl module can't be told to send an alert, but it does when its input turns out to be broken.
        self._in.write(GARBAGE)
        with contextlib.suppress(ssl.SSLError):
            while self._tls.read(CHUNK):
                pass
        self._flush()

    def _fill(self) -> bool:
        while True:
            try:
                data = self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                self._flush()
                if not self._feed():
                    return False
            except ssl.SSLZeroReturnError:
                return False
            else:
                self._buffer += data
                return bool(data)

    def _feed(self) -> bool:
        record = read_record(self._lower)
        self._in.write(record)
        return bool(record)

    def _flush(self) -> None:
        if self._out.pending:
            self._lower.send(self._out.read())


def read_record(stream: Stream) -> bytes:
    """One whole TLS record; b"" if the client left before its end."""
    header = _read_exactly(stream, 5)
    return header and header + _read_exactly(stream, header[4] + 256 * header[3])


def _read_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cork(sock: socket.socket) -> None:
    """Hold the last bytes back until the FIN, so that no client can see the answer and miss its end (Linux)."""
    if hasattr(socket, "TCP_CORK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
