"""Redirects under a `RetryPoolManager`, and what the `retries` of a request do."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from urllib3 import exceptions
from urllib3.util import Retry

from retrypolicy import Effect, Guard, Reason, Rule, operation, report
from retrypolicy.errors import ConfigurationError, DuplicateRisk
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import Answer, Close, FaultServer, Refuse, Stall
from retrypolicy.urllib3 import RetryPoolManager
from tests.urllib3.managers import AT_ONCE, BUSY, LATE, TIMED, honouring, moved

# -- redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_a_redirect_to_the_same_origin_goes_on_with_its_call(by: str) -> None:
    ledger = MemoryLedger()
    with FaultServer([BUSY, moved(307), BUSY, Answer(200)]) as server:
        with RetryPoolManager(AT_ONCE, ledger=ledger, provider=honouring()) as manager, operation(key="k"):
            if by == "manager":
                response = manager.request("POST", server.url("/here"), body=b"x")
            else:
                response = manager.connection_from_url(server.url()).request("POST", "/here", body=b"x")
        assert response.status == 200
        assert [(r.target, dict(r.headers)["X-Key"]) for r in server.requests] == [
            ("/here", "k"),
            ("/here", "k"),
            ("/elsewhere", "k"),
            ("/elsewhere", "k"),
        ]
    assert [r.phase for r in ledger.records()] == [Phase.DONE]
    assert response.geturl() == "/elsewhere"
    assert response.retries is not None
    history = [(entry.status, entry.redirect_location) for entry in response.retries.history]
    assert history == [(503, None), (307, "/elsewhere"), (503, None)]
    found = report(response)
    assert found is not None
    assert [(a.number, a.status) for a in found.attempts] == [(1, 503), (2, 307), (3, 503), (4, 200)]
    assert found.total_attempts == 4


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_after_a_303_comes_a_get_without_body_and_key(by: str) -> None:
    with FaultServer([moved(303), Answer(200)]) as server:
        headers = {"X-Key": "mine", "Idempotency-Key": "mine", "Content-Type": "text/plain", "X-Other": "1"}
        with RetryPoolManager(AT_ONCE, ledger=MemoryLedger()) as manager:
            opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
            url = server.url() if by == "manager" else "/"
            assert opener.request("POST", url, body=b"x", headers=headers).status == 200
        first, second = server.requests
        assert (second.method, second.body) == ("GET", b"")
        assert dict(first.headers)["Idempotency-Key"] == "mine"
        assert {"X-Other"} <= {*dict(second.headers)}
        assert {"Idempotency-Key", "Content-Type", "Content-Length"}.isdisjoint(dict(second.headers))
        assert headers["Idempotency-Key"] == "mine"


def test_no_key_goes_along_to_another_origin() -> None:
    with FaultServer([Answer(200)]) as other, FaultServer([moved(307, other.url())]) as server:
        ledger = MemoryLedger()
        with RetryPoolManager(AT_ONCE, provider=honouring(), ledger=ledger) as manager:
            headers = {"X-Key": "mine", "Authorization": "Bearer hush"}
            assert manager.request("POST", server.url(), body=b"x", headers=headers).status == 200
            with operation(key="k"):
                assert manager.request("POST", server.url(), body=b"x").status == 200
        assert [dict(r.headers)["X-Key"] for r in server.requests] == ["mine", "k"]
        for request in other.requests:
            assert {"X-Key", "Authorization"}.isdisjoint(dict(request.headers))
        assert [r.phase for r in ledger.records()] == [Phase.FAILED] * 2


def test_the_hop_to_another_origin_is_not_repeated_where_that_is_not_safe() -> None:
    with FaultServer([Close("request")]) as other, FaultServer([moved(307, other.url())]) as server:
        manager = RetryPoolManager(AT_ONCE, provider=honouring())
        with manager, operation(key="k"), pytest.raises(exceptions.ProtocolError):
            manager.request("POST", server.url(), body=b"x")
        assert (server.complete, other.complete) == (1, 1)


@pytest.mark.parametrize("by", ["manager", "pool"])
@pytest.mark.parametrize("preload", [True, False])
def test_what_may_have_taken_effect_is_not_sent_again_to_where_a_redirect_leads(by: str, preload: bool) -> None:
    """urllib3 does that after a 301 or 302, with any method."""
    with FaultServer([moved(302)]) as server, RetryPoolManager(TIMED) as manager:
        opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
        url = server.url() if by == "manager" else "/"
        response = opener.request("POST", url, body=b"pay", preload_content=preload)
        assert (response.status, response.data, server.complete) == (302, b"over there", 1)
    found = report(response)
    assert found is not None
    assert found.effect is Effect.UNKNOWN


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("PUT", {"policy": AT_ONCE}),
        ("POST", {"policy": AT_ONCE.with_(idempotent_methods={"POST"})}),
        ("POST", {"policy": AT_ONCE.with_(rules=[Rule(status=302, effect=Effect.NOT_APPLIED)])}),
        ("POST", {"provider": honouring()}),
        ("POST", {"provider": honouring(), "ledger": "memory:"}),
    ],
    ids=["idempotent", "accepted", "said to be nothing", "keyed", "keyed in a ledger"],
)
def test_what_may_be_sent_again_is(method: str, options: dict[str, Any]) -> None:
    with FaultServer([moved(302), Answer(200)]) as server, RetryPoolManager(**options) as manager:
        headers = {"X-Key": "k"} if "provider" in options else {}
        assert manager.request(method, server.url(), body=b"pay", headers=headers).status == 200
        assert [(r.method, r.body) for r in server.requests] == [(method, b"pay")] * 2


def test_after_a_lost_answer_not_even_a_307_leads_to_another_origin() -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as other, FaultServer([Close("request"), moved(307, other.url())]) as server:
        with RetryPoolManager(AT_ONCE, provider=honouring(), ledger=ledger) as manager, operation(key="k"):
            assert manager.request("POST", server.url(), body=b"pay").status == 307
        assert (server.complete, other.complete) == (2, 0)
    assert [r.phase for r in ledger.records()] == [Phase.HELD]


def test_a_lost_answer_is_remembered_over_a_hop_to_the_same_origin() -> None:
    with FaultServer([Answer(200)]) as other, RetryPoolManager(AT_ONCE, provider=honouring()) as manager:
        script = [Close("request"), moved(307), moved(307, other.url())]
        with FaultServer(script) as server, operation(key="k"):
            response = manager.request("POST", server.url(), body=b"pay")
        assert (response.status, server.complete, other.complete) == (307, 3, 0)
    found = report(response)
    assert found is not None
    assert (found.effect, found.total_attempts) == (Effect.UNKNOWN, 3)


def test_an_operations_policy_holds_on_every_hop() -> None:
    once = AT_ONCE.with_(max_attempts=1)
    with FaultServer([BUSY]) as other, FaultServer([moved(307, other.url())]) as server:
        with RetryPoolManager(AT_ONCE) as manager, operation(policy=once):
            assert manager.request("POST", server.url(), body=b"x").status == 503
        assert other.complete == 1


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_too_many_redirects_are_the_error_that_urllib3_raises(by: str) -> None:
    with FaultServer([moved(302)]) as server, RetryPoolManager(AT_ONCE) as manager:
        opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
        url = server.url() if by == "manager" else "/"
        with pytest.raises(exceptions.MaxRetryError, match="too many redirects") as caught:
            opener.request("GET", url)
        assert report(caught.value) is not None
        assert server.complete == 4
        assert opener.request("GET", url, redirect=False).status == 302
        assert opener.request("GET", url, retries=False).status == 302
        assert opener.request("GET", url, retries=Retry(5, redirect=2, other=0, raise_on_redirect=False)).status == 302
        assert server.complete == 9


def test_a_pool_does_not_follow_to_another_host() -> None:
    with FaultServer([moved(307, "http://other.test/")]) as server, RetryPoolManager(AT_ONCE) as manager:
        with pytest.raises(exceptions.HostChangedError) as caught:
            manager.connection_from_url(server.url()).request("POST", "/", body=b"x")
        found = report(caught.value)
        assert found is not None
        assert (found.effect, found.reason) == (Effect.NOT_APPLIED, Reason.PERMANENT)
        assert server.complete == 1


def test_a_pool_that_is_told_to_follows_to_another_host_without_secrets() -> None:
    with FaultServer([moved(307, "http://other.test/"), Answer(200)]) as server:
        pool = RetryPoolManager(AT_ONCE, ledger=MemoryLedger()).connection_from_url(server.url())
        headers = {"Authorization": "Bearer hush", "Idempotency-Key": "mine", "X-Other": "1"}
        assert pool.request("POST", "/", body=b"x", headers=headers, assert_same_host=False).status == 200
        first, second = server.requests
        assert (first.header("Authorization"), first.header("Idempotency-Key")) == ("Bearer hush", "mine")
        assert (second.target, second.header("X-Other")) == ("http://other.test/", "1")
        assert second.header("Authorization") is second.header("Idempotency-Key") is None


@pytest.mark.parametrize("by", ["manager", "pool"])
def test_bodies_on_redirects(by: str) -> None:
    """urllib3 sends what is left of a file: nothing."""
    with FaultServer([moved(307), Answer(200)]) as server, RetryPoolManager(AT_ONCE) as manager:
        opener: Any = manager if by == "manager" else manager.connection_from_url(server.url())
        url = server.url() if by == "manager" else "/"
        file = io.BytesIO(b"skipped, sent")
        file.seek(9)
        assert opener.request("POST", url, body=file).status == 200
        assert [r.body for r in server.requests] == [b"sent", b"sent"]
        server.play([moved(307), Answer(200)])
        with pytest.raises(exceptions.UnrewindableBodyError) as caught:
            opener.request("POST", url, body=(part for part in [b"a", b"b"]))
        assert report(caught.value) is not None
        assert server.complete == 3


# -- retries --------------------------------------------------------------------------------------------------------


def test_retries_of_a_request_change_the_policy_for_it(client: RetryPoolManager) -> None:
    slow = Retry(2, status_forcelist=[500], allowed_methods=None, other=0, backoff_factor=0)
    with FaultServer([Answer(500)]) as server:
        with pytest.warns(DuplicateRisk), pytest.raises(exceptions.MaxRetryError, match="too many 500") as caught:
            client.request("GET", server.url(), retries=slow)
        assert server.complete == 3
        found = report(caught.value)
        assert found is not None
        assert [a.status for a in found.attempts] == [500] * 3
        assert caught.value.response.status == 500  # type: ignore[attr-defined]  # put there by us
        with pytest.warns(DuplicateRisk), pytest.raises(exceptions.MaxRetryError):
            client.request("POST", server.url(), body=b"x", retries=slow)
        assert server.complete == 4
        assert client.request("GET", server.url(), retries=0).status == 500
        assert client.request("GET", server.url(), retries=False).status == 500
        assert server.complete == 6
        assert client.policy == AT_ONCE


def test_retries_false_means_one_attempt_and_its_bare_error(client: RetryPoolManager) -> None:
    with FaultServer([Refuse()]) as server:
        with pytest.raises(exceptions.NewConnectionError) as caught:
            client.request("GET", server.url(), retries=False)
        found = report(caught.value)
        assert found is not None
        assert found.total_attempts == 1


def test_retries_leave_guard_time_and_meanings_as_they_are() -> None:
    strict = TIMED.with_(guard=Guard(unkeyed="refuse"))
    with FaultServer([Stall("request")]) as server, RetryPoolManager(strict, timeout=30.0) as manager:
        with pytest.raises(ConfigurationError, match="has no key"):
            manager.request("POST", server.url(), body=b"x", retries=False)
        began = time.monotonic()
        with pytest.raises(exceptions.HTTPError):
            manager.request("GET", server.url(), retries=False)
        assert time.monotonic() - began < LATE


def test_the_policy_of_an_operation_goes_before_retries(client: RetryPoolManager) -> None:
    with FaultServer([BUSY]) as server, operation(policy=AT_ONCE.with_(max_attempts=3)):
        assert client.request("GET", server.url(), retries=False).status == 503
        assert server.complete == 3


def test_retries_of_the_manager_become_its_policy() -> None:
    with pytest.warns(DuplicateRisk):
        manager = RetryPoolManager(retries=Retry(1, redirect=0, status_forcelist=[500], raise_on_status=False))
    assert manager.policy.max_attempts == 2
    with FaultServer([Answer(500)]) as server, manager:
        assert manager.request("GET", server.url()).status == 500
        assert server.complete == 2
        server.play([moved(302)])
        with pytest.raises(exceptions.MaxRetryError, match="too many redirects"):
            manager.request("GET", server.url())


def test_a_subclass_of_retry_counts_redirects_its_own_way(client: RetryPoolManager) -> None:
    seen = []

    class Watching(Retry):
        def increment(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs["response"].status)
            return super().increment(*args, **kwargs)

    with FaultServer([moved(302), moved(301), Answer(200)]) as server:
        response = client.request("GET", server.url(), retries=Watching(3, other=0))
    assert (response.status, seen) == (200, [302, 301])
    assert isinstance(response.retries, Watching)
