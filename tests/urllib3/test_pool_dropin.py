"""A `RetryPoolManager` is used like the `PoolManager` that it is."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from urllib3 import exceptions

from retrypolicy import Constant, Reason, RetryPolicy, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, PolicyError, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer, Reset, deactivated
from retrypolicy.urllib3 import RetryPoolManager, RetryProxyManager
from tests.requests.socks import socks_proxy
from tests.urllib3.managers import AT_ONCE, BUSY, manager_for, moved


def test_pools_are_what_a_manager_makes() -> None:
    with FaultServer([BUSY, Answer(200)]) as server, RetryPoolManager(AT_ONCE, maxsize=3, block=True) as manager:
        pool = manager.connection_from_url(server.url())
        assert pool is manager.connection_from_host(pool.host, pool.port)
        assert isinstance(pool, urllib3.HTTPConnectionPool)
        assert type(pool).__name__ == "HTTPConnectionPool"
        assert (pool.block, pool.pool.maxsize if pool.pool else 0) == (True, 3)
        response = pool.request("POST", "/path", body=b"x")
        assert (response.status, server.complete) == (200, 2)
        assert report(response) is not None
        assert len(manager.pools) == 1
        manager.clear()
        assert len(manager.pools) == 0
        assert manager.request("GET", server.url()).status == 200
    assert len(manager.pools) == 0


def test_connections_go_back_to_the_pool() -> None:
    with FaultServer([BUSY, Answer(200, b"x"), Answer(204), Answer(404, b"no"), Answer(200, b"")]) as server:
        with RetryPoolManager(AT_ONCE, maxsize=1, block=True) as manager:
            for method, data in {"POST": b"x", "DELETE": b"", "HEAD": b"", "GET": b""}.items():
                response = manager.request(method, server.url(), pool_timeout=1)
                assert (response.data, response.connection) == (data, None)
            with manager.request("GET", server.url(), preload_content=False) as response:
                with pytest.raises(exceptions.EmptyPoolError):
                    manager.request("GET", server.url(), pool_timeout=0, retries=False)
                response.drain_conn()
            assert manager.request("GET", server.url(), pool_timeout=1).status == 200
        assert server.connections == 1


def test_no_connection_is_held_while_a_call_waits() -> None:
    """facts: urllib3 waits with the slot taken, so that others wait with it."""
    free = []

    class Looking(VirtualClock):
        def sleep(self, seconds: float, wake: Any = None) -> bool:
            pool = manager.connection_from_url(server.url())
            assert pool.pool is not None
            free.append(pool.pool.qsize())
            return super().sleep(seconds, wake)

    refusal = Answer(503, b"x" * 2_000_000, headers={"Retry-After": "1"})
    with FaultServer([BUSY, refusal, Reset("request"), Answer(200)]) as server:
        policy = RetryPolicy(backoff=Constant(seconds=1))
        manager = RetryPoolManager(policy, clock=Looking(), maxsize=1, block=True)
        with manager, manager.request("GET", server.url(), preload_content=False) as response:
            assert response.status == 200
    assert free == [1, 1, 1]


def test_an_idle_connection_is_not_used_again() -> None:
    with FaultServer([Answer(200)]) as server:
        for max_idle, connections in ((None, 1), (0.0, 2)):
            with RetryPoolManager(AT_ONCE, max_idle=max_idle) as manager:
                before = server.connections
                for _ in range(2):
                    manager.request("GET", server.url())
                assert server.connections - before == connections


def test_a_manager_that_is_dropped_takes_its_pools_with_it() -> None:
    """At once: whoever makes many managers need not wait for the garbage collector to close their connections."""
    gc.disable()
    try:
        with FaultServer([BUSY, moved(307), Answer(200)]) as server:
            manager = RetryPoolManager(AT_ONCE, ledger=MemoryLedger())
            with operation(key="k"):
                manager.request("POST", server.url(), body=b"x")
            pool = weakref.ref(manager.connection_from_url(server.url()))
            del manager
            assert pool() is None
    finally:
        gc.enable()


def test_threads_share_a_manager() -> None:
    """Each call has its own evidence, and its own key."""
    threads, each = 8, 10
    ledger = MemoryLedger()
    start = threading.Barrier(threads)

    busy = {f"{thread}/{n}".encode() for thread in range(threads) for n in range(0, each, 3)}

    def flaky(request: Any) -> Any:
        if request.body in busy:
            busy.remove(request.body)  # the first time
            return BUSY
        return Answer(200, request.body)

    with FaultServer([flaky]) as server, RetryPoolManager(AT_ONCE, ledger=ledger, maxsize=4) as manager:

        def work(thread: int) -> list[bool]:
            start.wait()
            found = []
            for n in range(each):
                body = f"{thread}/{n}".encode()
                with operation(key=body.decode()):
                    found.append(manager.request("POST", server.url(), body=body).data == body)
            return found

        with ThreadPoolExecutor(threads) as executor:
            assert all(itertools.chain(*executor.map(work, range(threads))))
        assert server.applied == threads * each
        assert not busy
    assert [r.phase for r in ledger.records()] == [Phase.DONE] * threads * each


def test_two_threads_with_one_key_send_once(tmp_path: Path) -> None:
    with FaultServer([Answer(200, delay=0.2)]) as server:
        with RetryPoolManager(AT_ONCE, ledger=f"sqlite:///{tmp_path}/sends.db", secret="s") as manager:

            def send(_: int) -> str:
                try:
                    with operation(key="k"):
                        return str(manager.request("POST", server.url(), body=b"x").status)
                except exceptions.HTTPError as error:
                    return type(error).__name__

            with ThreadPoolExecutor(4) as executor:
                answers = sorted(executor.map(send, range(4)))
        assert server.complete == 1
    assert answers[0] == "200"
    assert {*answers[1:]} <= {"SendInProgress", "AlreadyDone"}


def test_before_another_manager_it_works_there_too() -> None:
    from urllib3.contrib.socks import SOCKSProxyManager

    class Mine(RetryPoolManager, SOCKSProxyManager):
        pass

    with FaultServer([BUSY, Answer(200)]) as server, socks_proxy() as proxy:
        with Mine(AT_ONCE, proxy_url=proxy) as manager:
            response = manager.request("POST", server.url(), body=b"x")
        assert (response.status, server.complete) == (200, 2)
    assert report(response) is not None


def test_a_proxy_manager_has_the_options_of_both() -> None:
    with FaultServer([BUSY, Answer(200)]) as server:
        proxy_headers = urllib3.make_headers(proxy_basic_auth="user:word")
        with RetryProxyManager(server.proxy_url, AT_ONCE, proxy_headers=proxy_headers, num_pools=3) as manager:
            assert manager.proxy is not None
            assert manager.request("POST", "http://origin.test/x", body=b"x").status == 200
        assert [r.target for r in server.requests] == ["http://origin.test/x"] * 2
        assert all(r.header("Proxy-Authorization") for r in server.requests)


@pytest.mark.parametrize("kind", ["plain", "forward", "tunnel"])
def test_the_same_call_has_the_same_content_under_requests(kind: str) -> None:
    """A key goes on from one client to the other."""
    ledger = MemoryLedger()
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        manager, url = manager_for(server, kind, AT_ONCE, ledger=ledger)
        session.trust_env, session.verify = False, server.ca
        if kind != "plain":
            session.proxies = {"http": server.proxy_url, "https": server.proxy_url}
        mount(session, AT_ONCE, ledger=ledger)
        with operation(key="k"), pytest.raises(requests.ConnectionError):
            session.post(url + "a?b=c", data=b"x")
        with manager, operation(key="k"), pytest.raises(SendHeld):
            manager.request("POST", url + "a?b=c", body=b"x")
        assert server.complete == 1


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("http://", {}, exceptions.LocationValueError),
        ("ftp://x/", {}, exceptions.URLSchemeUnknown),
        ("http://[x/", {}, exceptions.LocationParseError),
        (None, {"timeout": "soon"}, ValueError),
        (None, {"timeout": -1}, ValueError),
        (None, {"body": 7}, TypeError),
        (None, {"headers": {"A": "b\nc"}}, ValueError),
        (None, {"headers": {"A": "b\nc"}, "retries": False}, ValueError),
        (None, {"retries": "many"}, ConfigurationError),
        (None, {"retries": -1}, ConfigurationError),
    ],
)
def test_bad_input_is_an_error_before_a_key_is_armed(
    url: str | None, options: dict[str, Any], error: type[Exception]
) -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, RetryPoolManager(AT_ONCE, ledger=ledger) as manager:
        manager.request("GET", server.url())
        with operation(key="k"), pytest.raises(error):
            manager.request("POST", server.url() if url is None else url, **{"body": b"x", **options})
        server.settle()
        assert server.complete == 1
    assert list(ledger.records()) == []


def test_bad_parts_are_refused_when_the_manager_is_made() -> None:
    with pytest.raises(PolicyError):
        RetryPoolManager(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="retries: not allowed beside a policy"):
        RetryPoolManager(AT_ONCE, retries=3)
    with pytest.raises(ConfigurationError, match="retries: 'x' is not allowed"):
        RetryPoolManager(retries="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="hosts"):
        RetryPoolManager(hosts=["x"])
    with pytest.raises(exceptions.ProxySchemeUnknown):
        RetryProxyManager("ftp://x", AT_ONCE)


def test_deactivated_makes_one_plain_attempt(client: RetryPoolManager) -> None:
    with FaultServer([BUSY, moved(302), Answer(200)]) as server, deactivated():
        response = client.request("POST", server.url(), body=b"x")
        assert (response.status, server.complete, report(response)) == (503, 1, None)
        response = client.request("GET", server.url())
        assert (response.status, response.url) == (200, "/elsewhere")
        assert response.retries is not None
        assert response.retries.total == 2


def test_observing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
    with FaultServer([BUSY, Answer(200)]) as server, RetryPoolManager(AT_ONCE, ledger=MemoryLedger()) as manager:
        with operation(key="k"):
            response = manager.request("POST", server.url(), body=b"x")
        assert (response.status, server.complete) == (503, 1)
    found = report(response)
    assert found is not None
    assert found.reason is Reason.OBSERVED
