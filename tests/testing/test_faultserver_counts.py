"""The ground truth of a fault server, what a test can do with it, and that nothing of it is left over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import retrypolicy.testing
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.testing import (
    FAULTS,
    PORT_FAULTS,
    TLS_FAULTS,
    TUNNEL_FAULTS,
    Answer,
    Blackhole,
    Close,
    FaultServer,
    Handshake,
    Interim,
    Raw,
    Refuse,
    Request,
    Reset,
    Stall,
    Tunnel,
)
from tests.testing.faultclient import GET, OK, POST, POST_HEAD, connect, exchange, read

# What is counted


@pytest.mark.parametrize(
    ("step", "applied"),
    [
        (Answer(200), 1),
        (Answer(303), 1),
        (Answer(500), 1),
        (Answer(502), 1),
        (Answer(503), 1),
        (Answer(503, headers={"retry-after": "1"}), 0),
        (Answer(429), 0),
        (Answer(307), 0),
        (Answer(501), 0),
        (Answer(400, applied=True), 1),
        (Answer(200, applied=False), 0),
        (Close(), 1),
        (Reset(), 1),
        (Raw(b"?"), 1),
        (Close(applied=False), 0),
        (Close("head"), 0),
        (Close("head", applied=True), 1),
        (Close("head", 5, applied=True), 0),
    ],
)
def test_what_an_application_would_have_acted_on(step: Any, applied: int) -> None:
    with FaultServer(step) as server:
        exchange(server, POST, timeout=0.2 if step.then is None else 5)
        assert server.settle().applied == applied
        assert server.requests[0].applied == bool(applied)


def test_a_request_is_on_record_before_its_answer_can_be_seen() -> None:
    with FaultServer() as server, connect(server) as sock:
        for number in range(1, 200):
            sock.sendall(POST)
            read(sock, OK)
            assert server.complete == server.applied == number


def test_records() -> None:
    with FaultServer() as server, connect(server) as sock:
        sock.sendall(POST)
        read(sock, OK)
        (request,) = server.requests
        assert (request.method, request.target, request.body) == ("POST", "/send", b"hello")
        assert request.header("content-length") == "5"
        assert request.header("Missing") is None
        assert "hello" not in repr(request)
        assert "Content-Length" not in repr(request)


def test_settle_waits_for_bytes_that_nobody_has_read_yet() -> None:
    for _ in range(50):
        with FaultServer(Close()) as server, connect(server) as sock:
            sock.sendall(POST)
            assert server.settle().complete == 1


def test_settle_gives_up_on_a_request_that_never_ends() -> None:
    with FaultServer() as server, connect(server) as sock:
        sock.sendall(POST_HEAD)
        with pytest.raises(TimeoutError, match="reading"):
            server.settle(timeout=0.05)
        sock.sendall(b"hello")
        assert server.settle().complete == 1


def test_many_clients_at_once() -> None:
    script: list[Any] = [Answer(), Reset(), Close("head"), Answer(503, headers={"Retry-After": "0"})] * 25 + [Answer()]
    with FaultServer(script) as server, ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda _: exchange(server, POST.replace(b"1.1\r\n", b"1.0\r\n"))[0][:12], range(100)))
        server.settle()
        assert server.played == server.connections == len(server.requests) == 100
        assert server.complete == 75
        assert server.applied == 50
        assert {answer: ends.count(answer) for answer in set(ends)} == {
            b"HTTP/1.1 200": 25,
            b"HTTP/1.1 503": 25,
            b"": 50,
        }


# Scripts


def test_without_a_script_and_with_a_short_one() -> None:
    with FaultServer() as server, FaultServer([503, 404]) as other:
        assert exchange(server, GET.replace(b"1.1\r\n", b"1.0\r\n"))[0] == OK
        seen = [exchange(other, GET.replace(b"1.1\r\n", b"1.0\r\n"))[0][9:12] for _ in range(4)]
        assert seen == [b"503", b"404", b"404", b"404"]
        assert other.played == 4


def test_functions_choose_by_the_request() -> None:
    def by_size(request: Request) -> Answer | int:
        return Answer(200, request.body.upper()) if request.body else 411

    with FaultServer(by_size) as server, connect(server) as sock:
        sock.sendall(GET)
        read(sock, b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n")
        sock.sendall(POST)
        read(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHELLO")
        assert server.applied == 1


@pytest.mark.parametrize("wrong", [lambda request: "nonsense", lambda request: Refuse(), lambda request: 1 / 0, open])
def test_what_a_function_does_wrong_is_raised_by_the_with_block(wrong: Any) -> None:
    expected = (PolicyError, ZeroDivisionError, TypeError)
    with pytest.raises(expected), FaultServer(wrong) as server:
        assert exchange(server, GET) == (b"", "fin")


def test_the_script_can_be_replaced() -> None:
    with FaultServer(Refuse()) as server:
        server.play([Answer(204), Refuse()])
        assert exchange(server, GET)[0].startswith(b"HTTP/1.1 204 ")
        with pytest.raises(ConnectionRefusedError):
            connect(server)


ALL = [*FAULTS.values(), *PORT_FAULTS.values(), *TLS_FAULTS.values(), *TUNNEL_FAULTS.values()]


@pytest.mark.parametrize("step", [*ALL, Answer(200, b"x"), Stall("body"), Interim(102, times=3), Blackhole(seconds=1)])
def test_a_step_prints_as_the_code_that_makes_it(step: Any) -> None:
    again = eval(repr(step), vars(retrypolicy.testing) | {name: globals()[name] for name in names()})
    assert again == step
    assert hash(again) == hash(step)


def names() -> list[str]:
    return [name for name in retrypolicy.testing.__all__ if name in globals()]


def test_only_what_was_said_is_printed() -> None:
    assert repr(Answer()) == "Answer()"
    assert repr(Answer(body="x", then="rst")) == "Answer(200, b'x', then='rst')"
    assert repr(Close("head", how="half")) == "Close('head', how='half')"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Answer(99), "Answer.status"),
        (lambda: Answer(True), "Answer.status"),
        (lambda: Answer(200, 5), "Answer.body"),
        (lambda: Answer(200, headers={"X": 5}), "Answer.headers"),
        (lambda: Answer(200, headers=7), "Answer.headers"),
        (lambda: Answer(200, headers={"X": "\u20ac"}), "Answer.headers"),
        (lambda: Answer(200, framing="none"), "Answer.framing"),
        (lambda: Answer(200, chunk=0), "Answer.chunk"),
        (lambda: Answer(200, interim=[200]), "Interim.status"),
        (lambda: Answer(200, interim=["x"]), "Answer.interim"),
        (lambda: Answer(200, interim=None), "Answer.interim"),
        (lambda: Answer(200, after="never"), "Answer.after"),
        (lambda: Answer(200, count=-1), "Answer.count"),
        (lambda: Answer(200, delay=float("nan")), "Answer.delay"),
        (lambda: Answer(200, drip=("tail", 1)), "Answer.drip"),
        (lambda: Answer(200, drip=("body", -1)), "Answer.drip"),
        (lambda: Answer(200, cut=("body", 1.5)), "Answer.cut"),
        (lambda: Answer(200, cut="body"), "Answer.cut"),
        (lambda: Answer(200, then="explode"), "Answer.then"),
        (lambda: Answer(200, applied=1), "Answer.applied"),
        (lambda: Close(how="rst"), "Close.how"),
        (lambda: Refuse(seconds=-1), "Refuse.seconds"),
        (lambda: Handshake("stolen"), "Handshake.certificate"),
        (lambda: Handshake(version="1.1"), "Handshake.version"),
        (lambda: Tunnel(Close("hello")), "Tunnel.act"),
        (lambda: Tunnel(Refuse()), "Tunnel.act"),
        (lambda: FaultServer("text"), "script"),
        (lambda: FaultServer({"status": 200}), "script"),
        (lambda: FaultServer([None]), "script"),
        (lambda: FaultServer(tls="yes"), "tls"),
    ],
)
def test_what_is_not_allowed_is_named(make: Any, name: str) -> None:
    with pytest.raises(PolicyError, match="is not allowed; must be") as caught:
        make()
    assert caught.value.field == name


# Nothing is left over


@pytest.mark.parametrize("name", [*FAULTS, *PORT_FAULTS])
def test_every_fault_ends_with_the_server(name: str) -> None:
    """Threads, sockets, and the client that waits: all are free at once."""
    step = FAULTS.get(name) or PORT_FAULTS[name]
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with FaultServer(step) as server:
        sock = socket.socket()
        sock.settimeout(0.05)
        host, port = server.proxy_url.removeprefix("http://").split(":")
        try:
            sock.connect((host, int(port)))
            sock.sendall(POST)
            sock.recv(1)
        except OSError:
            pass  # that is the fault
        start = time.monotonic()
    assert time.monotonic() - start < 2
    sock.close()
    # What an earlier test left behind may come to its end meanwhile.
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    with FaultServer(Answer(200, b"x" * 30_000_000)) as server, connect(server) as sock:
        sock.sendall(GET)
        sock.recv(1)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 2


def test_what_was_read_can_be_read_after_the_end() -> None:
    with FaultServer(Close()) as server:
        exchange(server, POST)
    server.close()
    assert server.complete == 1
    assert server.url("/x").endswith("/x")


def test_no_address_before_the_start() -> None:
    with pytest.raises(ConfigurationError, match="with"):
        FaultServer().url()


def test_the_names_load_lightly() -> None:
    code = (
        "import sys, retrypolicy.testing as testing; assert 'FaultServer' in dir(testing)\n"
        "testing.VirtualClock; before = set(sys.modules); assert 'ssl' not in before and 'socket' not in before\n"
        "testing.FaultServer; testing.FAULTS; assert not {'trustme', 'hypothesis', 'requests'} & set(sys.modules)\n"
        "for name in testing.__all__: assert getattr(testing, name) is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = retrypolicy.testing.no_such_name
