"""The thread that accepts connections, and keeps the port as the script wants it."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time

from retrypolicy.testing.faults.board import Board
from retrypolicy.testing.faults.connection import Connection, Contexts
from retrypolicy.testing.faults.port import Port
from retrypolicy.testing.faults.steps import Blackhole, Refuse

_PATIENCE = 10.0  # seconds for a thread to end after its socket was shut down


class Acceptor:
    """Only its own thread touches the port; others ask it to follow the script, and wait until it has."""

    def __init__(self, board: Board, *, tls: bool | ssl.SSLContext, contexts: Contexts) -> None:
        self._board = board
        self._tls = bool(tls)
        self._contexts = contexts
        self._wake_in, self._wake_out = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self._following: tuple[int, Refuse | Blackhole] | None = None
        self._until: float | None = None
        self.port = Port()
        self._follow(first=True)
        board.moved = self.follow
        self._thread = threading.Thread(target=self._run, name="fault-server", daemon=True)
        self._thread.start()

    def follow(self) -> None:
        """Make the port what the script's present step wants, before anybody learns that the script has moved."""
        if threading.current_thread() is self._thread:
            self._follow()
            return
        self._wake_in.send(b".")
        with self._board.changed:
            self._board.changed.wait_for(
                lambda: self._following == self._wanted() or self._board.stop.is_set(), timeout=_PATIENCE
            )

    def has_backlog(self) -> bool:
        """Does a connection wait to be accepted?"""
        listener = self.port.listener
        return listener is not None and bool(readable([listener], 0.0))

    def close(self) -> None:
        if self._board.stop.is_set():
            return
        self._board.stop.set()
        self._wake_in.send(b".")
        self._thread.join(_PATIENCE)
        self._wake_in.close()
        self._wake_out.close()
        with self._board.changed:
            for connection in self._board.connections:
                connection.abort()
        for thread in self._threads:
            thread.join(_PATIENCE)
        if any(thread.is_alive() for thread in [self._thread, *self._threads]):
            raise RuntimeError("a fault server's thread does not end: a function in its script is still running")

    def _run(self) -> None:
        try:
            while not self._board.stop.is_set():
                self._follow()
                self._turn()
        finally:
            self.port.close()

    def _turn(self) -> None:
        listener = self.port.listener
        wait = None if self._until is None else max(0.0, self._until - time.monotonic())
        ready = readable([self._wake_out] if listener is None else [self._wake_out, listener], wait)
        if self._wake_out in ready:
            self._wake_out.recv(4096)
        if self._until is not None and time.monotonic() >= self._until:
            self._board.skip()
        elif listener in ready:
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        board = self._board
        with board.changed:  # settle() must find it either in the backlog or on the board
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # the client has already left again
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            board.accepted += 1
            connection = Connection(board, sock, board.accepted, contexts=self._contexts, tls=self._tls)
            board.connections.add(connection)
        connection.handshake, connection.first = board.take_for_connection(accepting=True, tls=self._tls)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=connection.run, name=f"fault-server-{board.accepted}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wanted(self) -> tuple[int, Refuse | Blackhole] | None:
        """The step that rules the port, told apart from its equals by its place."""
        step = self._board.current
        return (self._board.position, step) if isinstance(step, (Refuse, Blackhole)) else None

    def _follow(self, *, first: bool = False) -> None:
        with self._board.changed:
            wanted = self._wanted()
            if wanted == self._following and not first:
                return
            step = wanted[1] if wanted else None
            self.port.become("refuse" if isinstance(step, Refuse) else "blackhole" if step else "open")
            self._until = time.monotonic() + step.seconds if step and step.seconds is not None else None
            self._following = wanted
            self._board.changed.notify_all()


def readable(sockets: list[socket.socket], timeout: float | None) -> list[socket.socket]:
    """Those with something to read, or at their end."""
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(timeout) if isinstance(key.fileobj, socket.socket)]
