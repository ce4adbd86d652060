"""A mail provider's API on a bad day: a real HTTP server in a process of its own, and the only one who counts.

It answers the process that started it line by line, in JSON. To the plan: its ports, one for each way of sending. To
the id of a sender's process: that it is known, and will be killed when its moment comes. To "counts": the book. The end
of the input ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from attrs import asdict, define, field

from retrypolicy.demo import LATE, MESSAGE_HEADER, MODES
from retrypolicy.demo.weather import REFUSALS, Fault, fault

PATHS = {"mandrill": b"/api/1.0/messages/send.json", "resend": b"/emails"}
_REQUEST_LINE = re.compile(rb"POST (\S+) HTTP/1\.1\r\n")
_MESSAGE = re.compile(rb'"' + MESSAGE_HEADER.encode() + rb'": ?"(\d+)"')
_PEEK = 1 << 20
_IDLE = 60.0  # seconds that a client may keep a connection without a request


@define
class Count:
    """What the server saw of one message over one way of sending."""

    arrived: int = 0
    received: int = 0  # read whole
    accepted: int = 0  # applied: this many e-mails go out


@define
class Day:
    """Everything that one way of sending did, as the server saw it."""

    counts: dict[tuple[str, int], Count] = field(factory=dict)
    sender: int = 0  # the id of the process that sends
    kills: int = 0
    first: float | None = None  # when the first request arrived, when the last one was over
    last: float = 0.0
    answers: dict[str, Answer] = field(factory=dict)  # by idempotency key


@define
class Answer:
    """What an idempotency key stands for."""

    digest: str
    body: bytes
    in_flight: bool = True


class Server:
    """Listens on one port for each way of sending, and keeps the book."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.seed: int = plan["seed"]
        self.kills: Mapping[str, int] = plan["kills"]
        self.days = {mode: Day() for mode in MODES}
        self.lock = threading.Lock()

    def start(self) -> dict[str, int]:
        """Open the ports, which the system chooses; returns them by way of sending."""
        ports = {}
        for mode in self.days:
            listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            ports[mode] = listener.getsockname()[1]
            threading.Thread(target=self._listen, args=(mode, listener), daemon=True).start()
        return ports

    def _listen(self, mode: str, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(mode, connection), daemon=True).start()

    def _serve(self, mode: str, connection: socket.socket) -> None:
        connection.settimeout(_IDLE)
        with connection, contextlib.suppress(OSError):
            while (seen := _look(connection)) and self._handle(mode, connection, *seen):
                pass

    def _handle(self, mode: str, connection: socket.socket, api: str, message: int) -> bool:
        """One request; False when its connection is over."""
        day = self.days[mode]
        with self.lock:
            count = day.counts.setdefault((api, message), Count())
            count.arrived += 1
            day.first = day.first or time.monotonic()
            what = fault(self.seed, api, message, count.arrived)
            if self.kills[api] == message and count.arrived == 1:
                what = Fault.KILL
        try:
            if what is Fault.UNREAD:
                return _reset(connection)
            headers, body = _read(connection)
            with self.lock:
                count.received += 1
            if what in REFUSALS:
                return _send(connection, *_refusal(api, what))
            return self._accept(mode, connection, api, message, headers, body, what)
        finally:
            day.last = time.monotonic()

    def _accept(
        self, mode: str, connection: socket.socket, api: str, message: int,
        headers: Mapping[str, str], body: bytes, what: Fault,
    ) -> bool:  # fmt: skip
        day = self.days[mode]
        key = headers.get("idempotency-key") if api == "resend" else None
        digest = hashlib.sha256(body).hexdigest()
        with self.lock:
            known = day.answers.get(key) if key else None
            if known is None:
                day.counts[api, message].accepted += 1
                known = Answer(digest=digest, body=_success(api, body))
                if key:
                    day.answers[key] = known
            elif known.digest != digest:
                return _send(connection, 409, _resend_error(409, "invalid_idempotent_request"))
            elif known.in_flight:
                return _send(connection, 409, _resend_error(409, "concurrent_idempotent_requests"))
        try:
            return self._answer(mode, connection, known.body, what)
        finally:
            known.in_flight = False

    def _answer(self, mode: str, connection: socket.socket, body: bytes, what: Fault) -> bool:
        if what is Fault.KILL:
            self.days[mode].kills += 1
            os.kill(self.days[mode].sender, signal.SIGKILL)
            return False
        if what is Fault.FIN:
            return False
        if what is Fault.RST:
            return _reset(connection)
        if what is Fault.LATE:
            time.sleep(LATE)
        if what is Fault.GATEWAY:
            return _send(connection, 504, b"<html><h1>504 Gateway Time-out</h1></html>", kind="text/html")
        if what is Fault.CUT:
            connection.sendall(_head(200, len(body)) + body[: len(body) // 2])
            return False
        return _send(connection, 200, body)

    def report(self) -> dict[str, Any]:
        """The book: for each way of sending the seconds it took, and what became of each message."""
        with self.lock:
            return {
                mode: {
                    "kills": day.kills,
                    "seconds": round(day.last - day.first, 3) if day.first else 0.0,
                    "messages": [
                        {"api": api, "message": message, **asdict(count)}
                        for (api, message), count in sorted(day.counts.items())
                    ],
                }
                for mode, day in self.days.items()
            }  # fmt: skip


def _look(connection: socket.socket) -> tuple[str, int] | None:
    """Which API and message the next request is for, without taking a byte of it. None: no request, or not ours."""
    deadline = time.monotonic() + 5
    while data := connection.recv(_PEEK, socket.MSG_PEEK):
        line, number = _REQUEST_LINE.match(data), _MESSAGE.search(data)
        if line and number:
            api = next((name for name, path in PATHS.items() if path == line[1]), None)
            return (api, int(number[1])) if api else None
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)  # the rest is on its way
    return None


def _read(connection: socket.socket) -> tuple[dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection, 1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    chunks, missing = [body], int(headers["content-length"]) - len(body)
    while missing > 0:
        chunks.append(_some(connection, min(missing, 1 << 20)))
        missing -= len(chunks[-1])
    return headers, b"".join(chunks)


def _some(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size)
    if not data:
        raise ConnectionAbortedError("the request ended early")
    return data


def _success(api: str, body: bytes) -> bytes:
    """What the real API answers to a message that it accepted."""
    if api == "resend":
        return json.dumps({"id": str(uuid.uuid4())}).encode()
    recipients = json.loads(body)["message"]["to"]
    return json.dumps(
        [{"email": to["email"], "status": "sent", "_id": uuid.uuid4().hex, "reject_reason": None} for to in recipients]
    ).encode()


def _refusal(api: str, what: Fault) -> tuple[int, bytes, dict[str, str]]:
    status = 429 if what is Fault.LIMIT else 503
    hint = {} if what is Fault.BUSY else {"Retry-After": "1"}
    if api == "resend":
        name = "rate_limit_exceeded" if status == 429 else "service_unavailable"
        return status, _resend_error(status, name), hint
    return status, json.dumps({"status": "error", "message": "Try again later"}).encode(), hint


def _resend_error(status: int, name: str) -> bytes:
    return json.dumps({"statusCode": status, "name": name, "message": name.replace("_", " ")}).encode()


def _head(status: int, length: int, extra: Mapping[str, str] | None = None, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} Demo", f"Content-Type: {kind}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in (extra or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _send(
    connection: socket.socket, status: int, body: bytes, extra: Mapping[str, str] | None = None,
    kind: str = "application/json",
) -> bool:  # fmt: skip
    connection.sendall(_head(status, len(body), extra, kind) + body)
    return True


def _reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def main() -> None:
    """Serve until the input ends."""
    server = Server(json.loads(sys.stdin.readline()))
    print(json.dumps(server.start()), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "counts":
            answer = server.report()
        else:
            server.days[asked["mode"]].sender = asked["sender"]
            answer = asked
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
