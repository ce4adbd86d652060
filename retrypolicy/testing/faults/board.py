"""What all connections of a fault server share: the script, what was read, and the signal to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retrypolicy.testing.faults.incoming import Incoming, Request
from retrypolicy.testing.faults.steps import (
    BEFORE_REQUEST,
    Act,
    After,
    Answer,
    Blackhole,
    Close,
    Handshake,
    Refuse,
    Step,
    Tunnel,
)

if TYPE_CHECKING:
    from retrypolicy.testing.faults.connection import Connection, Drop

_PATIENCE = 2.0  # seconds for an idle connection to end

Entry = Step | Callable[[Request], Any]


class Board:
    """`changed` guards everything in here, and is notified at every change of a connection's state."""

    def __init__(self, script: tuple[Entry, ...]) -> None:
        self.changed = threading.Condition()
        self.stop = threading.Event()
        self.script: tuple[Entry, ...] = script or (Answer(),)
        self.position = 0
        self.played = 0
        self.played_last = False
        self.moved: Callable[[], None] = lambda: None
        self.accepted = 0
        self.connections: set[Connection] = set()
        self.requests: list[Incoming] = []
        self.tunnels: list[Incoming] = []
        self.errors: list[Exception] = []

    @property
    def current(self) -> Entry:
        return self.script[self.position]

    def replace(self, script: tuple[Entry, ...]) -> None:
        with self.changed:
            self.script, self.position = script or (Answer(),), 0
            self.played_last = False
        self._move()

    def skip(self) -> None:
        """Go on to the next step, if there is one."""
        with self.changed:
            self._advance()
        self._move()

    def take_for_connection(self, *, accepting: bool, tls: bool) -> tuple[Handshake | None, Act | None]:
        """What the script has for a connection before its first request: as it is accepted, or as TLS begins."""
        handshake: Handshake | None = None
        act: Act | None = None
        with self.changed:
            points: set[After] = {"hello", "handshake"} if tls else set()
            if accepting:
                points.add("accept")
            step: Entry | None = self.current
            if tls and isinstance(step, Handshake):
                handshake, last = step, self._is_last
                self._take()
                step = None if last else self.current
            if isinstance(step, Act) and step.after in points:
                act = step
                self._take()
        self._move()
        return handshake, act

    def take_for_request(self) -> Act | Callable[[Request], Any]:
        """The step for a request that has arrived."""
        with self.changed:
            while isinstance(self.current, (Handshake, Tunnel)) and not self._is_last:
                self._advance()  # it doesn't concern this request
            step = self.current
            if isinstance(step, (Handshake, Tunnel)):
                return Answer()
            if isinstance(step, (Refuse, Blackhole)):
                return Close("arrival")  # on a connection made just before the port changed
            self._take()
        self._move()
        return step

    def take_for_tunnel(self) -> Act:
        """How a CONNECT is answered."""
        with self.changed:
            step = self.current
            if not isinstance(step, Tunnel):
                return Answer()
            self._take()
        self._move()
        return step.act

    def wants_new_connection(self, *, secured: bool, tunnel: bool) -> bool:
        """Is the present step about connecting, so that a connection of this kind can't be used for it?"""
        with self.changed:
            step = self.current
            if isinstance(step, (Refuse, Blackhole)):
                return True
            if self._is_last and self.played_last:
                return False  # the connection is as the step wanted it
            if isinstance(step, Tunnel):
                return tunnel
            if isinstance(step, Handshake):
                return secured
            return isinstance(step, Act) and (step.after == "accept" or (secured and step.after in BEFORE_REQUEST))

    def drop_idle(self, how: Drop) -> None:
        """End the connections that wait for a request, or will when they have answered; back when they have ended."""
        with self.changed:
            dropped = {each for each in self.connections if each.state in ("waiting", "answering")}
            for connection in dropped:
                connection.end_when_idle(how)
            self.changed.wait_for(lambda: not dropped & self.connections, _PATIENCE)

    def _drop_unfit(self) -> None:
        """End the idle connections that are of no use for the present step."""
        with self.changed:
            unfit = {
                each
                for each in self.connections
                if each.state in ("waiting", "answering")
                and self.wants_new_connection(secured=each.secured, tunnel=each.tunnel is not None)
            }
            idle = {each for each in unfit if each.state == "waiting"}
            for connection in unfit:
                connection.end_when_idle("fin")
            self.changed.wait_for(lambda: not idle & self.connections, _PATIENCE)

    @property
    def _is_last(self) -> bool:
        return self.position + 1 == len(self.script)

    def _take(self) -> None:
        self.played += 1
        self.played_last = self._is_last
        self._advance()

    def _advance(self) -> None:
        if not self._is_last:
            self.position += 1

    def _move(self) -> None:
        self._drop_unfit()
        self.moved()
