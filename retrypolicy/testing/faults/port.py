"""One TCP port on loopback that can listen, refuse, or swallow connections, and stays the same port."""

from __future__ import annotations

import contextlib
import socket
from typing import Literal

HOST = "127.0.0.1"
Mode = Literal["open", "refuse", "blackhole"]


class Port:
    """Belongs to the thread that accepts."""

    def __init__(self) -> None:
        # Bound but never listening: it keeps the port ours while nobody listens on it.
        self._holder = _bound(0)
        self.number: int = self._holder.getsockname()[1]
        self.listener: socket.socket | None = None
        self._extra: list[socket.socket] = []

    def become(self, mode: Mode) -> None:
        """Change over. Connections that nobody accepted yet are reset by the kernel."""
        self._shut()
        if mode == "refuse":
            return
        listener = _bound(self.number)
        if mode == "open":
            listener.listen(128)
            listener.setblocking(False)
            self.listener = listener
            return
        # A backlog of 0 holds one connection; behind it the kernel drops every SYN.
        listener.listen(0)
        self._extra.append(listener)
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            self._extra.append(filler)
            with contextlib.suppress(BlockingIOError):
                filler.connect((HOST, self.number))

    def close(self) -> None:
        self._shut()
        self._holder.close()

    def _shut(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        while self._extra:
            self._extra.pop().close()


def _bound(number: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, number))
    return sock
