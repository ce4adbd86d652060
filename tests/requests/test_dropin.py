"""What people use beside the retries goes on as with a bare HTTPAdapter."""

from __future__ import annotations

import gc
import gzip
import io
import os
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from retrypolicy import Constant, Effect, Reason, RetryPolicy, Stage, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, DuplicateRisk
from retrypolicy.guard import MemoryLedger
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.requests.pools import Pools
from retrypolicy.requests.unbuilt import Unbuilt
from retrypolicy.testing import Answer, Close, FaultServer, Handshake
from tests.requests.socks import socks_proxy

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))
BUSY = Answer(503, headers={"Retry-After": "0"})


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        mount(session, AT_ONCE)
        yield session


# -- responses -------------------------------------------------------------------------------------------------------


def test_cookies_of_retried_answers_are_kept(client: requests.Session) -> None:
    first = Answer(503, headers=[("Retry-After", "0"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=1")])
    second = Answer(503, headers=[("Retry-After", "0"), ("Set-Cookie", "c=1")])
    with FaultServer([first, second, Answer(200, headers={"Set-Cookie": "b=2"})]) as server:
        response = client.get(server.url())
        assert client.cookies.get_dict() == {"a": "1", "b": "2", "c": "1"}
        assert response.headers["Set-Cookie"] == "b=2"
        client.get(server.url())
        assert dict(server.requests[-1].headers)["Cookie"] == "a=1; b=2; c=1"


def test_hooks_fire_once(client: requests.Session) -> None:
    seen = []
    with FaultServer([BUSY, BUSY, Answer(200)]) as server:
        client.get(server.url(), hooks={"response": lambda response, **kwargs: seen.append(response.status_code)})
    assert seen == [200]


def test_urllib3s_history_tells_the_attempts(client: requests.Session) -> None:
    with FaultServer([BUSY, Close("request"), Answer(200)]) as server:
        response = client.get(server.url())
        history = response.raw.retries.history
        assert [(h.method, h.status, h.error is None) for h in history] == [("GET", 503, True), ("GET", None, False)]
        assert {h.url for h in history} == {server.url()}
        assert response.raw.retries.total == 0
        assert client.get(server.url()).raw.retries.history == ()
        assert response.history == []


def test_the_last_of_several_refusals_is_a_whole_response(client: requests.Session) -> None:
    refusal = Answer(503, b"caf\xc3\xa9", headers={"Content-Type": "text/plain; charset=utf-8", "Set-Cookie": "a=1"})
    with FaultServer([refusal]) as server:
        response = client.get(server.url("/path?query"))
        bare = requests.get(server.url("/path?query"))
        assert server.complete == 5
    assert type(response) is requests.Response
    assert isinstance(response.connection, RetryAdapter)
    for name in ("status_code", "text", "encoding", "reason", "url", "ok", "headers", "history", "is_redirect"):
        assert getattr(response, name) == getattr(bare, name), name
    assert response.cookies.get_dict() == {"a": "1"}
    assert vars(response).keys() - vars(bare).keys() == {"_retrypolicy_report"}


def test_an_unbuilt_response_is_built_when_looked_at(client: requests.Session) -> None:
    """A subclass sees every answer, also those that are retried."""
    seen = []

    class Curious(RetryAdapter):
        def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
            response = super().build_response(req, resp)
            seen.append((type(response), response.headers["Retry-After"], type(response)))
            return response

    client.mount("http://", Curious(AT_ONCE))
    with FaultServer([BUSY, Answer(200, headers={"Retry-After": "no"})]) as server:
        assert client.get(server.url()).status_code == 200
    assert seen == [(Unbuilt, "0", requests.Response), (requests.Response, "no", requests.Response)]


def test_a_stream_is_retried_up_to_its_head(client: requests.Session) -> None:
    small = Answer(503, b"x" * 100, headers={"Retry-After": "0"})
    huge = Answer(503, b"x" * 1_000_000, headers={"Retry-After": "0"})
    with FaultServer([small, huge, Answer(200, b"y" * 100_000)]) as server:
        with client.get(server.url(), stream=True) as response:
            assert not response._content_consumed
            assert b"".join(response.iter_content(1000)) == b"y" * 100_000
        # What is little is drained, and its connection used again; what is much costs a new connection.
        assert [r.connection for r in server.requests] == [1, 1, 2]


def test_a_huge_refusal_is_read_only_if_it_is_the_last_word(client: requests.Session) -> None:
    huge = Answer(503, b"x" * 3_000_000, headers={"Retry-After": "0"})
    with FaultServer([huge]) as server:
        response = client.get(server.url())
        assert (response.status_code, len(response.content)) == (503, 3_000_000)
        assert server.connections == 4


def test_a_huge_refusal_that_breaks_is_the_error_that_requests_raises(client: requests.Session) -> None:
    with FaultServer([Answer(404, b"x" * 3_000_000, cut=("body", 2_000_000))]) as server:
        with pytest.raises(requests.exceptions.ChunkedEncodingError) as caught:
            client.get(server.url())
        assert report(caught.value) is not None


TEXT = b"0123456789" * 1000
ZIPPED = gzip.compress(TEXT, mtime=0)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(
    ("body", "encoding", "whole"),
    [
        (ZIPPED, "gzip", True),
        (ZIPPED[:-1], "gzip", False),
        (ZIPPED[:-8], "gzip", False),
        (ZIPPED[: len(ZIPPED) // 2], "gzip", False),
        (ZIPPED[:11], "gzip", False),
        (ZIPPED + ZIPPED, "gzip", True),
        (ZIPPED + b"\0" * 20, "gzip", True),
        (zlib.compress(TEXT), "deflate", True),
        (zlib.compress(TEXT)[:-4], "deflate", False),
        (zlib.compress(TEXT)[2:-4], "deflate", True),
        (b"", "gzip", True),
    ],
    ids=lambda value: str(value) if not isinstance(value, bytes) else f"{len(value)} bytes",
)
def test_a_compressed_body_that_was_cut_short_is_lost(
    client: requests.Session, framing: Any, body: bytes, encoding: str, whole: bool
) -> None:
    with FaultServer([Answer(200, body, headers={"Content-Encoding": encoding}, framing=framing)]) as server:
        if whole or (framing == "chunked" and len(body) < 12):  # nothing but a gzip header: can't be told from nothing
            response = client.post(server.url(), data=b"x")
            assert response.content in (TEXT, TEXT * 2, b"")
            return
        with pytest.raises(requests.exceptions.ContentDecodingError) as caught:
            client.post(server.url(), data=b"x")
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert found.effect is Effect.APPLIED


def test_the_head_of_a_compressed_body_is_no_body_cut_short(client: requests.Session) -> None:
    with FaultServer([Answer(200, ZIPPED, headers={"Content-Encoding": "gzip"})]) as server:
        assert client.head(server.url()).content == b""


# -- bodies and connections ----------------------------------------------------------------------------------------


def test_multipart_files_are_sent_again_whole(client: requests.Session) -> None:
    with FaultServer([BUSY, Answer(200)]) as server:
        client.post(server.url(), files={"file": ("name", io.BytesIO(b"content"))})
        first, second = (r.body for r in server.requests)
        assert first == second
        assert b"content" in first


def test_no_connection_is_held_while_a_call_waits() -> None:
    """facts: urllib3 waits with the slot taken, so that others wait with it."""
    free = []

    class Looking(VirtualClock):
        def sleep(self, seconds: float, wake: Any = None) -> bool:
            pool = next(iter(adapter.poolmanager.pools._container.values()))
            free.append(sum(1 for conn in pool.pool.queue))
            return super().sleep(seconds, wake)

    policy = RetryPolicy(backoff=Constant(seconds=1))
    refusal = Answer(503, b"x" * 1_000_000)
    with FaultServer([BUSY, Close("request"), refusal, Answer(200)]) as server, requests.Session() as session:
        adapter = mount(session, policy, clock=Looking(), pool_maxsize=1, pool_block=True)
        with session.get(server.url(), stream=True) as response:
            assert response.status_code == 200
    assert free == [1, 1, 1]


def test_one_slot_is_enough_for_many_threads() -> None:
    turns: dict[str, int] = {}

    def every_second(request: Any) -> Answer:
        turns[request.target] = turns.get(request.target, 0) + 1
        return Answer(200) if turns[request.target] % 2 == 0 else BUSY

    with FaultServer(every_second) as server, requests.Session() as session:
        mount(session, AT_ONCE, pool_maxsize=1, pool_block=True)
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda n: session.post(server.url(f"/{n}"), data=b"x").status_code, range(40)))
        assert found == [200] * 40
        assert server.complete == 80
        assert server.connections == 1


def test_threads_share_a_session() -> None:
    """Every call gets its own answer and its own report."""
    turns: dict[str, int] = {}
    lock = threading.Lock()

    def script(request: Any) -> Any:
        with lock:
            turn = turns[request.target] = turns.get(request.target, 0) + 1
        number = int(request.target[1:])
        return Answer(200, request.target) if turn > number % 3 else BUSY

    with FaultServer(script) as server, requests.Session() as session:
        mount(session, AT_ONCE)

        def call(number: int) -> None:
            response = session.post(server.url(f"/{number}"), data=b"x")
            assert response.text == f"/{number}"
            found = report(response)
            assert found is not None
            assert found.total_attempts == 1 + number % 3

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(call, range(60)))


def test_connections_that_rested_too_long_are_not_used_again() -> None:
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        adapter = mount(session, AT_ONCE, max_idle=60.0)
        for _ in range(2):
            session.get(server.url())
        assert server.connections == 1
        adapter.max_idle = 0.0
        session.get(server.url())
        assert server.connections == 2


@pytest.mark.parametrize(("method", "sent"), [("GET", 2), ("PUT", 2), ("POST", 1)])
def test_a_connection_that_closes_under_a_request(client: requests.Session, method: str, sent: int) -> None:
    """Go's rule (net/http, Transport): repeated if it is idempotent, or nothing of it was written."""
    with FaultServer([Answer(200), Close("arrival"), Answer(200)]) as server:
        client.get(server.url())
        try:
            assert client.request(method, server.url(), data=b"x").status_code == 200
        except requests.ConnectionError as error:
            found = report(error)
            assert found is not None
            assert (found.attempts[0].reused, found.reason) == (True, Reason.UNSAFE)
        assert server.played - 1 == sent


# -- ways to the server ----------------------------------------------------------------------------------------------


def test_socks() -> None:
    pytest.importorskip("socks")
    with FaultServer([BUSY, Close("request")]) as server, requests.Session() as session:
        mount(session, AT_ONCE)
        with socks_proxy(refuse=2) as proxy, pytest.raises(requests.ConnectionError) as caught:
            session.post(server.url(), data=b"x", proxies={"http": proxy})
        assert server.complete == 2
    found = report(caught.value)
    assert found is not None
    stages = [a.stage for a in found.attempts]
    assert stages == [Stage.NOT_CONNECTED, Stage.NOT_CONNECTED, None, Stage.SENT]
    assert found.effect is Effect.UNKNOWN


def test_verify_and_cert() -> None:
    with FaultServer([Handshake(client_certificate=True)], tls=True) as server, requests.Session() as session:
        mount(session, AT_ONCE)
        with pytest.raises(requests.exceptions.SSLError):
            session.get(server.url())
        pem = server.client_certificate
        assert session.get(server.url(), verify=server.ca, cert=pem).status_code == 200
        with pytest.warns(Warning, match="Unverified"):
            assert session.get(server.url(), verify=False, cert=(pem, pem)).status_code == 200
        with pytest.raises(OSError, match="invalid path"):
            session.get(server.url(), verify="/no/such/file")


# -- what is assigned, subclassed, forked ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, Retry(3, allowed_methods=None, other=0, status=0)])
def test_max_retries_that_is_assigned_becomes_the_policy(value: Any) -> None:
    adapter = RetryAdapter(AT_ONCE)
    with pytest.warns(DuplicateRisk):
        adapter.max_retries = value
    assert adapter.policy.max_attempts == 4
    assert isinstance(adapter.max_retries, Retry)
    with FaultServer([Close("request")]) as server, requests.Session() as session:
        session.mount("http://", adapter)
        with pytest.raises(requests.ConnectionError):
            session.get(server.url())
        assert server.complete == 4


def test_another_adapters_class_can_stand_behind() -> None:
    class Other(HTTPAdapter):
        def __init__(self, tag: str, **options: Any) -> None:
            self.tag = tag
            super().__init__(**options)

        def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]  # as many adapters do
            request.headers["X-Tag"] = self.tag
            return super().send(request, **options)

    class Both(RetryAdapter, Other):
        pass

    with FaultServer([BUSY, Answer(200)]) as server, requests.Session() as session:
        session.mount("http://", Both(AT_ONCE, tag="other", pool_maxsize=3))
        assert session.post(server.url()).status_code == 200
        assert [dict(r.headers)["X-Tag"] for r in server.requests] == ["other"] * 2


def test_pools_are_remembered_only_where_nothing_else_has_a_say(client: requests.Session) -> None:
    with FaultServer([Answer(200)]) as server:
        adapter = client.get_adapter(server.url())
        assert isinstance(adapter, RetryAdapter)
        client.get(server.url())
        client.get(server.url("/other"))
        assert server.connections == 1
        adapter.poolmanager.connection_pool_kw["block"] = True  # chooses another pool from now on
        client.get(server.url())
        assert server.connections == 2
        adapter.poolmanager.clear()
        client.get(server.url())
        assert server.connections == 3


def test_a_call_leaves_no_garbage(client: requests.Session) -> None:
    """Whatever a call made is freed with its response, without the help of the garbage collector."""
    with FaultServer([BUSY, Answer(200)]) as server:
        client.get(server.url())
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            client.post(server.url(), data=b"x")
            gc.collect()
            left = [
                each for each in gc.garbage if type(each).__module__.startswith(("retrypolicy", "urllib3", "requests"))
            ]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert left == []


def test_no_more_pools_are_remembered_than_are_kept() -> None:
    adapter = RetryAdapter(pool_connections=2)
    pools, asked = Pools(adapter), []

    def find(request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        asked.append(request.url)
        return HTTPAdapter.get_connection_with_tls_context(adapter, request, verify, proxies, cert)

    find.__func__ = HTTPAdapter.get_connection_with_tls_context  # type: ignore[attr-defined]  # as a bound method has
    for host in "aabbaccc":
        pools.get(requests.Request("GET", f"http://{host}/").prepare(), True, {}, None, find)
    assert [url[7] for url in asked] == ["a", "b", "c", "c", "c"]


def test_parts_that_cant_be_used_are_refused_before_a_key_is_armed() -> None:
    ledger = MemoryLedger()
    with requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger)
        for url in ("http://", "http://[::1/", "http://a:b:c/"):
            with pytest.raises((requests.exceptions.InvalidURL, ValueError)), operation(key="k"):
                session.post(url, data=b"x")
        unprepared = session.prepare_request(requests.Request("POST", "http://127.0.0.1:9/"))
        for none in ("http://[::1/", "http://127.0.0.1:abc/", "", None):
            unprepared.url = none
            with pytest.raises((requests.exceptions.InvalidURL, ValueError)), operation(key="k"):
                session.get_adapter("http://").send(unprepared)
        for options in ({"verify": "/no/such/file"}, {"cert": "/no/such/file"}):
            with pytest.raises(OSError, match="invalid path"), operation(key="k"):
                session.post("https://127.0.0.1:9/", data=b"x", **options)
        with pytest.raises(ValueError, match="timeout"), operation(key="k"):
            session.post("http://127.0.0.1:9/", data=b"x", timeout=(1, 2, 3))  # type: ignore[arg-type]  # on purpose
        with pytest.raises(requests.exceptions.InvalidHeader), operation(key="k"):
            session.post("http://127.0.0.1:9/", data=b"x", headers={"X": "a\nb"})
    assert list(ledger.records()) == []
    with pytest.raises(ConfigurationError, match="retries by itself"):
        RetryAdapter(transport=RetryAdapter())


def test_a_closed_session_can_be_used_again_as_a_bare_one_can(client: requests.Session) -> None:
    with FaultServer([BUSY, Answer(200)]) as server:
        client.close()
        assert client.post(server.url()).status_code == 200
        client.close()
        assert client.post(server.url()).status_code == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_an_adapter_made_before_a_fork_works_on_both_sides() -> None:
    """gunicorn --preload: the child must not write to the parent's connection."""
    code = """
        import os, requests, sys
        from retrypolicy import RetryPolicy, Constant
        from retrypolicy.requests import mount
        session = requests.Session()
        session.trust_env = False
        mount(session, RetryPolicy(backoff=Constant(seconds=0)), ledger="memory:")
        url = sys.argv[1]
        assert session.get(url).status_code == 200
        child = os.fork()
        if child == 0:
            ok = all(session.post(url, data=b"child").status_code == 200 for _ in range(3))
            os._exit(0 if ok else 1)
        ok = all(session.post(url, data=b"parent").status_code == 200 for _ in range(3))
        sys.exit(os.waitpid(child, 0)[1] or not ok)
    """
    with FaultServer([Answer(200), BUSY, Answer(200)]) as server:
        run(code, server.url())
        by = {r.body: {q.connection for q in server.requests if q.body == r.body} for r in server.requests}
        assert server.complete == 8
        assert not by[b"child"] & by[b"parent"]


def test_gevent() -> None:
    pytest.importorskip("gevent")
    code = """
        from gevent import monkey
        monkey.patch_all()
        import gevent, requests, sys, time
        from retrypolicy import RetryPolicy, Constant, report
        from retrypolicy.requests import mount
        session = requests.Session()
        session.trust_env = False
        mount(session, RetryPolicy(backoff=Constant(seconds=0.2)), pool_maxsize=20)
        url = sys.argv[1]

        def call(number):
            response = session.post(url + str(number), data=b"x")
            assert response.text == "/" + str(number), response.text
            return report(response).total_attempts

        began = time.monotonic()
        jobs = [gevent.spawn(call, number) for number in range(20)]
        gevent.joinall(jobs, raise_error=True)
        assert [job.value for job in jobs] == [2] * 20
        assert time.monotonic() - began < 20 * 0.2  # they waited at the same time
    """
    seen: set[str] = set()

    def first_busy(request: Any) -> Answer:
        if request.target in seen:
            return Answer(200, request.target)
        seen.add(request.target)
        return BUSY

    with FaultServer(first_busy) as server:
        run(code, server.url())
        assert server.complete == 40


def run(code: str, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
