"""The deadline: it holds against everything that a peer can do slowly, and only while it is set."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time

import pytest
import urllib3

from retrypolicy.outcome import Stage
from retrypolicy.testing import Answer, Blackhole, FaultServer, Stall, Tunnel
from retrypolicy.testing.faults.steps import Interim
from retrypolicy.urllib3.wire import Watch, track, watching
from tests.urllib3.wireclient import KINDS, LARGE, SMALL, attempt, pool

LIMIT = 0.4
# Under tests/mutating.py what only the machine makes late must not look like a find.
LATE = LIMIT + (1.5 if os.environ.get("HYPOTHESIS_PROFILE") == "mutation" else 0.15)

SLOW = {
    "silence": (Stall("request"), SMALL),
    "silence_before_the_head": (Stall("arrival"), SMALL),
    "dripped_head": (Answer(200, b"ok", headers={"X-Long": "x" * 200}, drip=("head", 0.02)), SMALL),
    "dripped_body": (Answer(200, b"x" * 200, drip=("body", 0.02)), SMALL),
    "dripped_chunks": (Answer(200, b"x" * 200, framing="chunked", chunk=1, drip=("body", 0.01)), SMALL),
    "dripped_to_the_end": (Answer(200, b"x" * 200, framing="close", drip=("body", 0.02)), SMALL),
    "stalled_body": (Answer(200, b"x" * 200, cut=("body", 50), then="stall"), SMALL),
    "stalled_upload": (Stall("head"), LARGE),
    "informational": (Answer(200, interim=[Interim(103, times=8, every=0.2)]), SMALL),
}


def timed(*args, **options):
    watch = Watch(deadline=time.monotonic() + LIMIT)
    started = time.monotonic()
    result = attempt(*args, watch=watch, timeout=30.0, **options)
    return result, time.monotonic() - started


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SLOW)
def test_it_holds(name, kind):
    fault, body = SLOW[name]
    with FaultServer([fault], tls=kind == "tls") as server, pool(server, kind) as target:
        result, took = timed(target, body=body)
        assert LIMIT * 0.5 < took < LATE
        error = result.error or result.body_error
        assert isinstance(error, (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ProtocolError))
        if isinstance(error, urllib3.exceptions.ProtocolError):  # as urllib3 wraps a timeout of send()
            assert isinstance(error.args[1], TimeoutError)
            assert result.watch.stage is Stage.BODY_UNFINISHED


@pytest.mark.parametrize("name", SLOW)
def test_it_holds_on_a_used_connection(name):
    fault, body = SLOW[name]
    with FaultServer([Answer(200), fault]) as server, pool(server, "plain") as target:
        attempt(target)
        result, took = timed(target, body=body)
        assert result.watch.reused
        assert took < LATE


def test_it_holds_against_a_file_that_is_sent_slowly():
    def body():
        while True:
            yield b"x"
            time.sleep(0.01)

    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        result, took = timed(target, body=body(), chunked=True)
        assert took < LATE
        assert result.watch.stage is Stage.BODY_UNFINISHED
        assert server.settle().complete == 0


def test_it_holds_while_connecting():
    with FaultServer([Blackhole()]) as server, pool(server, "plain") as target:
        result, took = timed(target)
        assert took < LATE
        assert isinstance(result.error, urllib3.exceptions.ConnectTimeoutError)


def test_it_holds_over_several_addresses(monkeypatch):
    with FaultServer([Blackhole()]) as server, pool(server, "plain") as target:
        real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: real(*args, **kwargs) * 3)
        result, took = timed(target)
        assert took < LATE
        assert isinstance(result.error, urllib3.exceptions.ConnectTimeoutError)


def test_a_slow_resolver_leaves_less_for_the_handshake(monkeypatch):
    real = socket.getaddrinfo

    def slow(*args, **kwargs):
        time.sleep(LIMIT * 0.75)
        return real(*args, **kwargs)

    with FaultServer([Stall("hello")], tls=True) as server:
        context = server.client_context()
        with urllib3.PoolManager(ssl_context=context) as manager:
            target = manager.connection_from_url(server.url())
            monkeypatch.setattr(socket, "getaddrinfo", slow)
            result, took = timed(target)
    assert took < LATE
    assert result.watch.stage is Stage.NOT_CONNECTED


@contextlib.contextmanager
def dripping(first: bytes, then: bytes):
    """A server that reads nothing and drips."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve() -> None:
            conn, _ = listener.accept()
            with conn, contextlib.suppress(OSError):
                conn.sendall(first)
                while not over.wait(0.02):
                    conn.sendall(then)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        thread.join()


def test_it_holds_against_a_dripped_handshake():
    context = ssl.create_default_context()  # made beforehand: it takes its time, and no socket can be asked to hurry
    with (
        dripping(b"\x16\x03\x03\x40\x00\x02", b"\x00") as port,
        urllib3.PoolManager(ssl_context=context) as manager,
    ):
        result, took = timed(manager.connection_from_url(f"https://127.0.0.1:{port}/"))
    assert took < LATE
    assert result.watch.stage is Stage.NOT_CONNECTED


def test_it_holds_against_a_dripped_answer_of_the_proxy():
    proxy = urllib3.ProxyManager
    with dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n") as port, proxy(f"http://127.0.0.1:{port}") as manager:
        result, took = timed(manager.connection_from_url("https://origin.test/"))
    assert took < LATE
    assert result.watch.stage is Stage.NOT_CONNECTED


def test_it_holds_against_a_silent_handshake_behind_the_tunnel():
    with FaultServer([Tunnel(Answer(200, then="stall"))]) as server, pool(server, "tunnel") as target:
        result, took = timed(target)
    assert took < LATE
    assert result.watch.stage is Stage.NOT_CONNECTED


def test_a_deadline_that_has_passed_sends_nothing():
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target)
        result = attempt(target, watch=Watch(deadline=time.monotonic() - 1))
        assert result.watch.stage is Stage.NOT_SENT
        assert server.settle().complete == 1


@pytest.mark.parametrize(
    ("fault", "body", "stage"), [(Stall("request"), SMALL, Stage.SENT), (Stall("head"), LARGE, Stage.BODY_UNFINISHED)]
)
def test_the_callers_own_timeout_stays_in_force(fault, body, stage):
    with FaultServer([fault]) as server, pool(server, "plain") as target:
        started = time.monotonic()
        result = attempt(target, watch=Watch(deadline=time.monotonic() + 30), body=body, timeout=0.2)
        assert time.monotonic() - started < 5
        assert result.watch.stage is stage


def test_lifted_it_leaves_the_reader_their_own_time():
    script = [Answer(200, b"x" * 20, drip=("body", 0.02))]
    with FaultServer(script) as server, pool(server, "plain") as target:
        watch = Watch(deadline=time.monotonic() + 0.25)
        assert track(target)
        with watching(watch):
            response = target.urlopen("GET", "/", preload_content=False, timeout=5.0, retries=False)
        watch.deadline = None
        assert response.read() == b"x" * 20


def test_the_next_request_has_its_own_deadline():
    with FaultServer([Answer(200, b"ok"), Answer(200, b"ok", delay=0.3)]) as server, pool(server, "plain") as target:
        attempt(target, watch=Watch(deadline=time.monotonic() + 0.2))
        result = attempt(target)
        assert result.watch.reused
        assert result.content == b"ok"


def test_the_socket_has_the_options_that_it_has_without_a_deadline():
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target, watch=Watch(deadline=time.monotonic() + 30))
        assert target.pool.queue[-1].sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
