"""The demo's server tells the truth: what it counts is what went over its sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.demo import LATE, MESSAGE_HEADER, MODES
from retrypolicy.demo.weather import Fault, fault

SEED = 3


class Api:
    """The real process, and requests to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.ports = self.told({"seed": SEED, "kills": {"mandrill": 10_000, "resend": 10_000}})

    def told(self, line: object) -> Any:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def counts(self, api: str, number: int, mode: str = "plain") -> tuple[int, int, int]:
        lines = self.told("counts")[mode]["messages"]
        line = next(one for one in lines if (one["api"], one["message"]) == (api, number))
        return line["arrived"], line["received"], line["accepted"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports["plain"]), timeout=10)

    def send(self, api: str, number: int, key: str = "", text: str = "Hello", end: int | None = None) -> bytes:
        """One request over a connection of its own; everything that came back."""
        with self.connect() as connection:
            connection.sendall(request(api, number, key, text)[:end])
            return everything(connection)


def request(api: str, number: int, key: str = "", text: str = "Hello") -> bytes:
    headers = {MESSAGE_HEADER: str(number)}
    recipient = {"email": "to@example.com"}
    body = {"headers": headers, "to": [recipient], "text": text}
    document = json.dumps({"key": "demo", "message": body} if api == "mandrill" else body).encode()
    path = "/api/1.0/messages/send.json" if api == "mandrill" else "/emails"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(document)}\r\n"
    return (head + (f"Idempotency-Key: {key}\r\n" if key else "") + "\r\n").encode() + document


def everything(connection: socket.socket) -> bytes:
    """What comes until the end, or until nothing has come for a while (a kept connection)."""
    data = b""
    connection.settimeout(LATE + 0.5)
    try:
        while part := connection.recv(65536):
            data += part
            head, _, body = data.partition(b"\r\n\r\n")
            if body and len(body) == int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]):
                break
    except TimeoutError:
        pass
    return data


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def message_with(api: str, kind: Fault) -> int:
    """A message that this happens to first, and nothing the next four times."""
    wanted = [kind, *[Fault.NONE] * 4]
    return next(n for n in range(1, 9999) if [fault(SEED, api, n, arrival) for arrival in range(1, 6)] == wanted)


@pytest.fixture
def api() -> Iterator[Api]:
    process = subprocess.Popen(
        [sys.executable, "-m", "retrypolicy.demo.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        yield Api(process)
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_each_way_of_sending_has_a_port_of_its_own(api: Api) -> None:
    assert set(api.ports) == set(MODES)
    assert len(set(api.ports.values())) == len(MODES)


@pytest.mark.parametrize("name", ["mandrill", "resend"])
def test_a_good_request_is_accepted_once(api: Api, name: str) -> None:
    number = message_with(name, Fault.NONE)
    answer = api.send(name, number)
    assert status(answer) == 200
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["id"] if name == "resend" else document[0]["email"] == "to@example.com"
    assert api.counts(name, number) == (1, 1, 1)
    api.send(name, number)
    assert api.counts(name, number) == (2, 2, 2)


@pytest.mark.parametrize("kind", [Fault.BUSY, Fault.BUSY_HINT, Fault.LIMIT])
def test_a_refusal_accepts_nothing(api: Api, kind: Fault) -> None:
    number = message_with("resend", kind)
    answer = api.send("resend", number)
    assert status(answer) == (429 if kind is Fault.LIMIT else 503)
    assert (b"Retry-After: 1\r\n" in answer) is (kind is not Fault.BUSY)
    assert api.counts("resend", number) == (1, 1, 0)


def test_an_unread_request_is_neither_received_nor_accepted(api: Api) -> None:
    number = message_with("mandrill", Fault.UNREAD)
    with api.connect() as connection:
        connection.sendall(request("mandrill", number))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert api.counts("mandrill", number) == (1, 0, 0)


@pytest.mark.parametrize("kind", [Fault.FIN, Fault.RST])
def test_a_dropped_answer_was_accepted(api: Api, kind: Fault) -> None:
    number = message_with("mandrill", kind)
    with api.connect() as connection:
        connection.sendall(request("mandrill", number))
        if kind is Fault.FIN:
            assert connection.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    assert api.counts("mandrill", number) == (1, 1, 1)


def test_a_cut_answer_was_accepted(api: Api) -> None:
    number = message_with("mandrill", Fault.CUT)
    answer = api.send("mandrill", number)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert 0 < len(body) < int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
    assert api.counts("mandrill", number) == (1, 1, 1)


def test_a_gateway_error_was_accepted(api: Api) -> None:
    number = message_with("mandrill", Fault.GATEWAY)
    assert status(api.send("mandrill", number)) == 504
    assert api.counts("mandrill", number) == (1, 1, 1)


def test_half_a_request_is_not_accepted(api: Api) -> None:
    number = message_with("mandrill", Fault.NONE)
    with api.connect() as connection:
        connection.sendall(request("mandrill", number, text="x" * 1000)[:-500])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert api.counts("mandrill", number) == (1, 0, 0)


def test_several_requests_fit_one_connection(api: Api) -> None:
    number = message_with("resend", Fault.NONE)
    with api.connect() as connection:
        for _ in range(2):
            connection.sendall(request("resend", number))
            assert status(everything(connection)) == 200
    assert api.counts("resend", number) == (2, 2, 2)


def test_a_key_is_honoured(api: Api) -> None:
    """Replayed for the same content; 409 for another."""
    number = message_with("resend", Fault.FIN)
    assert api.send("resend", number, key="k") == b""
    replay = api.send("resend", number, key="k")
    assert api.send("resend", number, key="k") == replay
    other = api.send("resend", number, key="k", text="Good bye")
    assert status(other) == 409
    assert b"invalid_idempotent_request" in other
    assert api.counts("resend", number) == (4, 4, 1)


def test_a_key_in_flight_is_refused(api: Api) -> None:
    number = message_with("resend", Fault.LATE)
    with api.connect() as slow:
        slow.sendall(request("resend", number, key="k"))
        deadline = time.monotonic() + 5
        while True:  # until the first one has been accepted
            try:
                if api.counts("resend", number)[2] == 1:
                    break
            except StopIteration:
                assert time.monotonic() < deadline
        second = api.send("resend", number, key="k")
        assert (status(second), b"concurrent_idempotent_requests" in second) == (409, True)
        assert status(everything(slow)) == 200
    assert api.counts("resend", number)[2] == 1


def test_mandrill_honours_no_key(api: Api) -> None:
    number = message_with("mandrill", Fault.NONE)
    for _ in range(2):
        assert status(api.send("mandrill", number, key="k")) == 200
    assert api.counts("mandrill", number) == (2, 2, 2)
