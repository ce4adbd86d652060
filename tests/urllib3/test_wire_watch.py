"""The watch itself: its hook, what it refuses to claim, and life among other tools."""

from __future__ import annotations

import contextvars
import http.client
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from retrypolicy.outcome import Stage
from retrypolicy.testing import Answer, Close, FaultServer, Stall
from retrypolicy.urllib3.wire import Watch, track, watching
from tests.urllib3.wireclient import KINDS, LARGE, SMALL, attempt, pool


class Refused(Exception):
    """What a guard may raise."""


# on_ready


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [False, True])
def test_the_hook_comes_between_connection_and_first_byte(kind, used):
    with FaultServer([Answer(200)], tls=kind == "tls") as server, pool(server, kind) as target:
        if used:
            attempt(target)
        seen = []

        def ready():
            server.settle()
            seen.append((server.connections + len(server.tunnels), len(server.requests), watch.stage))

        watch = Watch(on_ready=ready)
        assert attempt(target, watch=watch).response.status == 200
        connections = 2 if kind == "tunnel" else 1
        assert seen == [(connections, int(used), Stage.NOT_SENT)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [False, True])
def test_what_the_hook_raises_reaches_the_caller_and_nothing_is_sent(kind, used):
    def refuse():
        raise Refused

    with FaultServer([Answer(200)], tls=kind == "tls") as server, pool(server, kind) as target:
        if used:
            attempt(target)
        result = attempt(target, watch=Watch(on_ready=refuse))
        assert type(result.error) is Refused
        assert result.watch.stage is Stage.NOT_SENT
        assert not result.watch.body_begun
        assert len(server.settle().requests) == int(used)
        assert attempt(target).response.status == 200


def test_the_hook_is_asked_again_when_it_did_not_agree():
    """It raised something that urllib3 retries: the retry must not pass it by."""
    calls = []

    def refuse():
        calls.append(1)
        raise ConnectionResetError

    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target, watch=Watch(on_ready=refuse), method="GET", retries=urllib3.Retry(2, backoff_factor=0))
        assert len(calls) == 3
        assert not server.settle().requests


def test_a_connection_that_was_closed_during_the_hook_is_not_written_to():
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target)
        sock = target.pool.queue[-1].sock

        def ready():
            server.drop_idle()
            assert urllib3.util.wait.wait_for_read(sock, 5)

        result = attempt(target, watch=Watch(on_ready=ready))
        assert isinstance(result.error, urllib3.exceptions.ProtocolError)
        assert result.watch.stage is Stage.NOT_SENT
        assert result.watch.reused
        assert server.settle().complete == 1


# What is not claimed


def test_no_watch_no_claim():
    assert Watch().stage is Stage.UNOBSERVED
    assert not Watch().observed


def test_an_error_before_any_connection_is_unobserved():
    with urllib3.PoolManager() as manager:
        target = manager.connection_from_url("http://127.0.0.1:1/")
        target.close()
        result = attempt(target)
    assert isinstance(result.error, urllib3.exceptions.ClosedPoolError)
    assert not result.watch.observed


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(104, "reset"), ConnectionResetError(), Refused()])
def test_what_a_signal_handler_raises_proves_nothing(error):
    """It may come after the last byte, as here."""

    def handler(*_):
        raise error

    class Body:
        def __iter__(self):
            yield SMALL
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
            result = attempt(target, body=Body(), headers={"Content-Length": "100"})
            assert result.body_error is None
            assert result.watch.stage in (Stage.SENT, Stage.ANSWERING)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(104, "reset"), ConnectionResetError(), Refused()])
def test_a_signal_inside_a_send_proves_nothing(kind, error):
    def handler(*_):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with FaultServer([Stall("head")], tls=kind == "tls") as server, pool(server, kind) as target:
            watch = Watch(on_ready=lambda: (signal.setitimer(signal.ITIMER_REAL, 0.2), None)[1])
            result = attempt(target, watch=watch, body=LARGE, timeout=1.0)
            assert result.watch.stage is Stage.SENT
            assert result.watch.body_begun
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_error_of_the_body_itself_proves_nothing():
    def body():
        yield SMALL
        raise ConnectionRefusedError(111, "of another socket")

    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        result = attempt(target, body=body(), headers={"Content-Length": "100"})
        assert result.error is not None
        assert result.watch.stage is Stage.SENT
        assert result.watch.body_begun


@pytest.mark.parametrize("pieces", [[LARGE], [SMALL, LARGE], [SMALL, b"x", LARGE]])
def test_more_bytes_than_declared_prove_nothing(pieces):
    """The server has all the bytes that it was told of."""
    with FaultServer([Stall("request")]) as server, pool(server, "plain") as target:
        result = attempt(target, body=iter(pieces), headers={"Content-Length": "100"}, timeout=0.3)
        assert result.watch.stage is Stage.SENT
        assert not result.watch.request_complete
        assert server.settle().complete == 1


def test_bytes_beyond_what_was_declared_may_be_the_ones_that_were_refused():
    headers = {"Content-Length": str(len(LARGE))}
    with FaultServer([Stall("head")]) as server, pool(server, "plain") as target:
        result = attempt(target, body=iter([SMALL, LARGE]), headers=headers, timeout=0.3)
        assert result.watch.stage is Stage.SENT


def test_a_body_of_several_pieces_is_unfinished():
    with FaultServer([Stall("head")]) as server, pool(server, "plain") as target:
        result = attempt(target, body=iter([SMALL, LARGE]), timeout=0.3)
        assert result.watch.stage is Stage.BODY_UNFINISHED
        assert result.watch.body_begun


def test_two_requests_under_one_watch_claim_the_weakest():
    """urllib3's own retries: the first request was read, the second never connected."""
    with FaultServer([Close("request")]) as server, pool(server, "plain") as target:
        watch = Watch()
        assert track(target)
        with watching(watch):
            with pytest.raises(urllib3.exceptions.ProtocolError):
                target.urlopen("GET", "/", retries=False)
            server.settle()
            server.close()
            with pytest.raises(urllib3.exceptions.NewConnectionError):
                target.urlopen("GET", "/", retries=False)
        assert watch.stage is Stage.SENT
        assert server.complete == 1


def test_what_is_claimed_of_two_requests_is_not_what_the_second_proves():
    with FaultServer([Close("request"), Stall("head")]) as server, pool(server, "plain") as target:
        watch = Watch()
        assert track(target)
        with watching(watch):
            for body in (SMALL, LARGE):
                with pytest.raises(urllib3.exceptions.HTTPError):
                    target.urlopen("PUT", "/", body=body, timeout=0.3, retries=False)
        assert watch.stage is Stage.SENT
        assert server.complete == 1


def test_nothing_can_be_sent_once_the_attempt_was_judged():
    """A helper thread in a copy of the context goes on when the attempt has been given up."""
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        judged = threading.Event()
        watch = Watch(on_ready=lambda: judged.wait(5) or None)
        assert track(target)
        with ThreadPoolExecutor(1) as threads:
            with watching(watch):
                future = threads.submit(contextvars.copy_context().run, target.urlopen, "POST", "/", retries=False)
                while watch.stage is not Stage.NOT_SENT:
                    time.sleep(0.001)
            judged.set()
            with pytest.raises(RuntimeError, match="given up"):
                future.result()
        assert not server.settle().requests


# The body


def test_a_body_is_begun_only_after_the_head():
    taken = []

    def body():
        taken.append(1)
        yield SMALL

    with urllib3.PoolManager() as manager, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        result = attempt(manager.connection_from_url(f"http://127.0.0.1:{port}/"), body=body())
        assert result.watch.stage is Stage.NOT_CONNECTED
        assert not taken
        assert not result.watch.body_begun
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        assert attempt(target, body=body()).watch.body_begun
        assert not attempt(target, method="GET", body=None).watch.body_begun


def test_an_early_answer_leaves_the_request_incomplete():
    script = [Answer(413, b"too big", after="head", then="fin")]
    with FaultServer(script) as server, pool(server, "plain") as target:
        result = attempt(target, body=LARGE)
        if result.response is not None:
            assert result.watch.head_complete
        assert not result.watch.request_complete


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_an_unfinished_request_ends_in_a_reset(kind):
    """A FIN would make it look complete to servers that read to the end of the stream."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = []

        def serve():
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(5)
                time.sleep(0.3)
                try:
                    while conn.recv(1 << 20):
                        pass
                    ends.append("fin")
                except ConnectionResetError:
                    ends.append("rst")

        thread = threading.Thread(target=serve)
        thread.start()
        with urllib3.PoolManager() as manager:
            target = manager.connection_from_url(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            attempt(target, body=LARGE, timeout=0.1)
        thread.join()
    assert ends == ["rst"]


# Pooled connections


def test_an_idle_connection_is_not_reused_for_long():
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target)
        assert attempt(target, watch=Watch(max_idle=60)).watch.reused
        assert not attempt(target, watch=Watch(max_idle=0)).watch.reused
        assert attempt(target, watch=Watch()).watch.reused
        assert server.connections == 2


@pytest.mark.parametrize("when", ["idle", "in use"])
def test_a_connection_from_before_is_not_used_under_a_watch(when):
    with FaultServer([Answer(200, b"ok")]) as server, pool(server, "plain") as target:
        response = target.urlopen("GET", "/", preload_content=False)
        if when == "idle":
            response.read()
            response.release_conn()
            assert track(target)
        else:
            assert track(target)
            response.read()
            response.release_conn()
        armed = []
        result = attempt(target, watch=Watch(on_ready=lambda: armed.append(1)))
        assert armed
        assert result.watch.observed
        assert not result.watch.reused
        assert attempt(target).watch.reused


def test_a_forked_child_opens_its_own_connection():
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target)
        child = os.fork()
        if child == 0:
            reused = True
            try:
                reused = attempt(target).watch.reused
            finally:
                os._exit(int(reused))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert attempt(target).watch.reused


def test_threads_share_a_pool():
    with FaultServer([Answer(200, b"ok")]) as server, pool(server, "plain", maxsize=8) as target:

        def work(number):
            return [attempt(target, watch=Watch(max_idle=5)).watch.head_complete for _ in range(20)]

        with ThreadPoolExecutor(8) as threads:
            assert all(all(done) for done in threads.map(work, range(8)))
        assert server.settle().complete == 160


# Whom it can watch


class _Stub(urllib3.connection.HTTPConnection):
    def send(self, data):
        raise AssertionError("never called")


def test_a_class_that_writes_by_itself_is_not_tracked(monkeypatch):
    target = urllib3.HTTPConnectionPool("127.0.0.1")
    assert track(target)
    monkeypatch.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", _Stub)  # as vcrpy does
    assert not track(target)
    assert target.ConnectionCls is _Stub
    monkeypatch.undo()
    assert track(target)
    assert issubclass(target.ConnectionCls, urllib3.connection.HTTPConnection)


def test_a_pool_that_makes_its_own_connections_is_not_tracked():
    class Pool(urllib3.HTTPConnectionPool):
        def _new_conn(self):
            return super()._new_conn()

    assert not track(Pool("127.0.0.1"))


def test_a_class_chosen_for_one_pool_is_left_alone():
    class Own(urllib3.connection.HTTPConnection):
        pass

    target = urllib3.HTTPConnectionPool("127.0.0.1")
    target.ConnectionCls = Own
    assert not track(target)
    assert target.ConnectionCls is Own


def test_a_class_chosen_for_a_pool_that_has_none_is_left_alone():
    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = None

    target = Pool("127.0.0.1")
    target.ConnectionCls = urllib3.connection.HTTPConnection
    assert not track(target)


def test_a_class_that_does_without_http_client_is_not_tracked():
    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = object

    assert not track(Pool("127.0.0.1"))


def test_a_connection_class_of_somebodys_own_is_watched_and_stays_what_it_is():
    class OwnResponse(http.client.HTTPResponse):
        pass

    class Own(urllib3.connection.HTTPConnection):
        response_class = OwnResponse

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Own

    with FaultServer([Answer(200)]) as server, Pool("127.0.0.1", urllib3.util.parse_url(server.url()).port) as target:
        result = attempt(target)
        assert (result.watch.stage, result.watch.head_complete) == (Stage.ANSWERING, True)
        watched = target.ConnectionCls
        for found, own in ((watched, Own), (watched.response_class, OwnResponse)):
            assert issubclass(found, own)
            assert (found.__name__, found.__module__) == (own.__name__, __name__)
        with Pool("127.0.0.1", 1) as another:
            assert track(another)
            assert another.ConnectionCls is watched


def test_a_response_that_reads_in_a_way_of_its_own_is_left_to_it():
    """Nothing can be seen of it beforehand: it has no buffer."""

    class OwnResponse(http.client.HTTPResponse):
        def __init__(self, sock, *args, **kwargs):
            super().__init__(sock, *args, **kwargs)
            self.fp = sock.makefile("rb", buffering=0)

    class Own(urllib3.connection.HTTPConnection):
        response_class = OwnResponse

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Own

    with (
        FaultServer([Answer(200, b"ok")]) as server,
        Pool("127.0.0.1", urllib3.util.parse_url(server.url()).port) as target,
    ):
        result = attempt(target)
    assert result.content == b"ok"
    assert (result.watch.stage, result.watch.head_complete) == (Stage.SENT, False)


def test_names_stay_as_they_were():
    target = urllib3.HTTPSConnectionPool("127.0.0.1", 1)
    assert track(target)
    assert str(target._new_conn()) == "HTTPSConnection(host='127.0.0.1', port=1)"


def test_http_client_may_be_patched(monkeypatch):
    """As Sentry does: putrequest, send and getresponse, after and before tracking."""
    calls = []
    for name in ("putrequest", "getresponse", "send"):
        original = getattr(http.client.HTTPConnection, name)

        def patched(self, *args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(http.client.HTTPConnection, name, patched)
    with FaultServer([Answer(200), Close("request"), Stall("head")]) as server, pool(server, "plain") as target:
        assert attempt(target).response.status == 200
        assert calls == ["putrequest", "send", "send", "getresponse"]
        assert attempt(target).watch.stage is Stage.SENT
        assert attempt(target, body=LARGE, timeout=0.2).watch.stage is Stage.BODY_UNFINISHED
