"""RetryAdapter against real servers that misbehave. Ground truth is what the server read."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from retrypolicy import Constant, Effect, Guard, Reason, RetryPolicy, Stage, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import (
    AlreadyDone,
    ConfigurationError,
    DuplicateRisk,
    KeyReused,
    LedgerUnavailable,
    PolicyError,
    SendHeld,
    UnprotectedKey,
)
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import FAULTS, Answer, Close, FaultServer, Reset, deactivated

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))
BUSY = Answer(503, headers={"Retry-After": "0"})


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        mount(session, AT_ONCE)
        yield session


def honouring(host: str = "127.0.0.1", **more: Any) -> Provider:
    placement = KeyPlacement(header="X-Key", window=60.0, margin=5.0)
    return Provider(name="made-up", hosts=(host,), key=placement, **more)


# -- decisions, on the wire --------------------------------------------------------------


def test_a_post_is_repeated_after_a_refusal(client: requests.Session) -> None:
    with FaultServer([BUSY, Answer(429), Answer(200, body=b"thanks")]) as server:
        response = client.post(server.url(), data=b"pay")
        assert (response.status_code, response.content) == (200, b"thanks")
        assert [r.body for r in server.requests] == [b"pay"] * 3
        assert server.applied == 1
    found = report(response)
    assert found is not None
    assert [a.status for a in found.attempts] == [503, 429, 200]
    assert found.effect is Effect.APPLIED


def test_a_post_whose_answer_is_lost_is_not_repeated(client: requests.Session) -> None:
    with FaultServer([Close("request")]) as server:
        with pytest.raises(requests.ConnectionError) as caught:
            client.post(server.url(), data=b"pay")
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert (found.stage, found.effect, found.reason) == (Stage.SENT, Effect.UNKNOWN, Reason.UNSAFE)
    assert "retrypolicy: 1 attempt(s)" in caught.value.__notes__[0]


def test_a_get_whose_answer_is_lost_is_repeated(client: requests.Session) -> None:
    with FaultServer([Close("request"), Reset("request"), Answer(200)]) as server:
        assert client.get(server.url()).status_code == 200
        assert server.complete == 3


def test_the_last_response_is_returned_and_the_last_error_raised(client: requests.Session) -> None:
    with FaultServer([Answer(500)] * 4) as server:
        response = client.get(server.url())
        assert response.status_code == 500
    found = report(response)
    assert found is not None
    assert (found.total_attempts, found.reason) == (4, Reason.ATTEMPTS_EXHAUSTED)


def test_a_lost_body_is_applied_and_its_error_is_raised(client: requests.Session) -> None:
    with FaultServer([Answer(200, body=b"0123456789", cut=("body", 5))]) as server:
        with pytest.raises(requests.RequestException) as caught:
            client.post(server.url(), data=b"pay")
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert found.effect is Effect.APPLIED


def test_a_generator_that_was_read_is_never_sent_again(client: requests.Session) -> None:
    """facts: urllib3 sends it again, empty, and reports 200."""
    with FaultServer([BUSY, Answer(200)]) as server:
        response = client.put(server.url(), data=(part for part in [b"a", b"b"]))
        assert response.status_code == 503
        assert server.complete == 1
    found = report(response)
    assert found is not None
    assert found.reason is Reason.BODY_NOT_REPLAYABLE


def test_a_generator_of_which_nothing_was_read_is_sent(client: requests.Session) -> None:
    with FaultServer([Answer(200)]) as server:
        url = server.url()
        adapter = client.get_adapter(url)
        assert isinstance(adapter, RetryAdapter)
        real, failures = adapter.get_connection_with_tls_context, iter([1, 1])

        def refused_twice(request: Any, *args: Any, **kwargs: Any) -> Any:
            pool = real(request, *args, **kwargs)
            pool.host, pool.port = (
                ("127.0.0.1", 9) if next(failures, None) else ("127.0.0.1", int(url.split(":")[2][:-1]))
            )
            return pool

        adapter.get_connection_with_tls_context = refused_twice  # type: ignore[method-assign]
        assert client.post(url, data=(part for part in [b"a", b"b"])).status_code == 200
        assert server.complete == 1


def test_a_file_is_sent_again_from_where_it_stood(client: requests.Session) -> None:
    with FaultServer([BUSY, Answer(200)]) as server:
        file = io.BytesIO(b"skipped, sent")
        file.seek(9)
        assert client.post(server.url(), data=file).status_code == 200
        assert [r.body for r in server.requests] == [b"sent", b"sent"]


def test_streaming_stays_lazy(client: requests.Session) -> None:
    with FaultServer([BUSY, Answer(200, body=b"x" * 100_000)]) as server:
        with client.get(server.url(), stream=True) as response:
            assert not response._content_consumed
            assert response.content == b"x" * 100_000
        assert server.complete == 2


def test_a_bad_url_is_the_error_that_requests_raises(client: requests.Session) -> None:
    for url, error in [("http://", requests.exceptions.InvalidURL), ("ftp://x/", requests.exceptions.InvalidSchema)]:
        with pytest.raises(error):
            client.get(url)


@pytest.mark.parametrize("name", sorted(FAULTS))
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_no_fault_applies_a_post_twice(name: str, size: int) -> None:
    """Design: an unkeyed request that is not idempotent is read whole at most once, unless the server refused it."""
    policy = AT_ONCE.with_(attempt_timeout=0.3, pushback="cap", max_wait=0.01)
    with FaultServer([FAULTS[name]] * 4) as server, requests.Session() as session:
        session.trust_env = False
        mount(session, policy)
        refused = 0
        try:
            response = session.post(server.url(), data=b"x" * size, timeout=5)
            found = report(response)
        except requests.RequestException as error:
            found = report(error)
        assert found is not None
        refused = sum(a.effect is Effect.NOT_APPLIED and a.status is not None for a in found.attempts)
        server.settle()
        assert server.applied <= 1
        assert server.complete <= 1 + refused


# -- keys and the ledger --------------------------------------------------------------


def test_a_key_that_the_provider_honours_lets_a_lost_answer_be_asked_for_again() -> None:
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, provider=honouring())
        with operation(key="receipt-42"):
            response = session.post(server.url(), data=b"pay")
        assert response.status_code == 200
        assert [dict(r.headers).get("X-Key") for r in server.requests] == ["receipt-42"] * 2
    found = report(response)
    assert found is not None
    assert found.attempts[0].reason is Reason.KEYED


def test_the_key_is_not_placed_on_other_hosts_or_safe_methods() -> None:
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, provider=honouring())
        with operation(key="k"):
            session.get(server.url())
        with warnings.catch_warnings(), operation(key="k"):
            warnings.simplefilter("ignore", UnprotectedKey)
            session.post(server.url().replace("127.0.0.1", "localhost"), data=b"x")
        assert all("X-Key" not in dict(r.headers) for r in server.requests)
        assert server.complete == 2


@pytest.mark.parametrize("own", ["mine", b"mine"])
def test_the_callers_own_header_is_the_key(own: Any) -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger)
        headers = {"Idempotency-Key": own}
        session.post(server.url(), data=b"x", headers=headers)
        with pytest.raises(AlreadyDone):
            session.post(server.url(), data=b"x", headers=headers)
        with pytest.raises(ConfigurationError, match="differ"), operation(key="other"):
            session.post(server.url(), data=b"x", headers=headers)
        assert server.complete == 1


def test_a_key_that_protects_nothing_is_said_once_and_refused_where_keys_are_demanded() -> None:
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE)
        with pytest.warns(UnprotectedKey, match="nothing uses it"), operation(key="k"):
            session.post(server.url(), data=b"x")
        with operation(key="k"):
            session.post(server.url(), data=b"x")  # an error here would be a second warning
        mount(session, AT_ONCE.with_(guard=Guard(unkeyed="refuse")))
        with pytest.raises(requests.RequestException) as caught, operation(key="k"):
            session.post(server.url(), data=b"x")
        assert isinstance(caught.value, ConfigurationError)
        with pytest.raises(ConfigurationError, match="has no key"):
            session.post(server.url(), data=b"x")
        assert server.complete == 2


def test_held_in_one_session_is_held_in_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sends.db"
    with FaultServer([Close("request"), Answer(200)]) as server:
        for error in (requests.ConnectionError, SendHeld, SendHeld):
            with requests.Session() as session, operation(key="k"):
                mount(session, AT_ONCE, ledger=url, secret="s")
                with pytest.raises(error):
                    session.post(server.url(), data=b"pay")
        assert server.complete == 1


def test_no_byte_leaves_before_the_arm() -> None:
    """Invariant 1: the server sees nothing when the ledger can't be reached."""

    class Away(MemoryLedger):
        def arm(self, take: Any) -> Any:
            raise LedgerUnavailable("away")

    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=Away())
        with pytest.raises(LedgerUnavailable) as caught, operation(key="k"):
            session.post(server.url(), data=b"x" * 1_000_000)
        assert isinstance(caught.value, requests.RequestException)
        server.settle()
        assert server.requests == ()


def test_the_ledger_may_be_away_where_the_provider_honours_the_key() -> None:
    class Away(MemoryLedger):
        def arm(self, take: Any) -> Any:
            raise LedgerUnavailable("away")

    policy = AT_ONCE.with_(guard=Guard(on_ledger_down="open"))
    with FaultServer([Close("request"), Answer(200)]) as server, requests.Session() as session:
        mount(session, policy, ledger=Away(), provider=honouring())
        with operation(key="k"):
            response = session.post(server.url(), data=b"x")
        assert response.status_code == 200
        assert server.complete == 2
    found = report(response)
    assert found is not None
    assert found.recorded is False


def test_what_fails_before_the_first_byte_needs_no_arm(unused_port: int) -> None:
    ledger = MemoryLedger()
    with requests.Session() as session, operation(key="k"):
        mount(session, AT_ONCE, ledger=ledger)
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(f"http://127.0.0.1:{unused_port}/", data=b"x")
    found = report(caught.value)
    assert found is not None
    assert (found.total_attempts, found.effect) == (4, Effect.NOT_APPLIED)
    assert list(ledger.records()) == []


@pytest.mark.parametrize(("answer", "error"), [(Answer(200), AlreadyDone), (Close("request"), SendHeld)])
def test_a_settled_call_is_said_to_be_even_if_its_server_is_gone(answer: Any, error: type[Exception]) -> None:
    """The attempt ends before its arm, which would have refused it: the ledger is read, and says so at once."""
    ledger = MemoryLedger()
    with FaultServer([answer]) as server, requests.Session() as session, operation(key="k"):
        mount(session, AT_ONCE, ledger=ledger)
        with suppress(requests.ConnectionError):
            session.post(server.url(), data=b"x")
    [before] = ledger.records()
    with requests.Session() as session, operation(key="k"):
        mount(session, AT_ONCE, ledger=ledger)
        with pytest.raises(error) as caught:
            session.post(server.url(), data=b"x")
    found = report(caught.value)
    assert found is not None
    assert found.total_attempts <= 1
    assert list(ledger.records()) == [before]


def test_a_call_refused_for_good_may_come_again_with_other_content() -> None:
    """Design, section 6: failed is armed again, with new content under a new outgoing key."""
    with FaultServer([Answer(422), Answer(422), Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=MemoryLedger(), provider=honouring())
        for body in (b"bad", b"bad", b"good"):
            with operation(key="k"):
                response = session.post(server.url(), data=body)
        assert response.status_code == 200
        keys = [dict(r.headers)["X-Key"] for r in server.requests]
        assert keys[0] == keys[1] == "k"
        assert keys[2] not in ("k", "")


def test_a_replayed_answer_is_marked() -> None:
    with FaultServer([Answer(200, body=json.dumps({"id": "e1"}).encode())]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=MemoryLedger(), provider="resend", hosts=["127.0.0.1"])
        for _ in range(2):
            with operation(key="k"):
                response = session.post(server.url("/emails"), json={"to": "a@example.com"})
            assert response.json() == {"id": "e1"}
        assert response.headers["X-Retrypolicy-Replayed"] == "true"
        found = report(response)
        assert found is not None
        assert found.replayed
        assert server.complete == 1


def test_two_contents_in_one_operation() -> None:
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=MemoryLedger())
        with operation(key="k"):
            session.get(server.url())
            session.post(server.url(), data=b"one")
            with pytest.raises(KeyReused):
                session.post(server.url(), data=b"two")
        assert [r.body for r in server.requests if r.method == "POST"] == [b"one"]


def test_a_redirect_to_the_same_origin_goes_on_with_its_call() -> None:
    moved = Answer(307, headers={"Location": "/elsewhere"})
    with FaultServer([moved, Answer(200)]) as server, requests.Session() as session:
        ledger = MemoryLedger()
        mount(session, AT_ONCE, ledger=ledger, provider=honouring())
        with operation(key="k"):
            assert session.post(server.url(), data=b"x").status_code == 200
        assert [dict(r.headers)["X-Key"] for r in server.requests] == ["k", "k"]
        assert [r.phase for r in ledger.records()] == [Phase.DONE]


def test_no_key_goes_along_to_another_origin() -> None:
    with FaultServer([Answer(200)]) as other:
        moved = Answer(307, headers={"Location": other.url()})
        with FaultServer([moved]) as server, requests.Session() as session:
            mount(session, AT_ONCE, provider=honouring())
            with operation(key="k"):
                assert session.post(server.url(), data=b"x").status_code == 200
            own = {"X-Key": "mine", "Idempotency-Key": "mine"}
            assert session.post(server.url(), data=b"x", headers=own).status_code == 200
            server.play([Answer(303, headers={"Location": "/elsewhere"}), Answer(200)])
            assert session.post(server.url(), data=b"x", headers=own).status_code == 200
        for request in (*other.requests, server.requests[-1]):
            assert request.header("X-Key") is request.header("Idempotency-Key") is None
        assert [r.header("X-Key") for r in server.requests] == ["k", "mine", "mine", None]


def test_digest_goes_through_the_adapter_and_stays_one_call() -> None:
    asked = Answer(401, headers={"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'})
    with FaultServer([asked, BUSY, Answer(200)]) as server, requests.Session() as session:
        ledger = MemoryLedger()
        mount(session, AT_ONCE, ledger=ledger)
        with operation(key="k"):
            response = session.post(server.url(), data=b"x", auth=requests.auth.HTTPDigestAuth("u", "p"))
        assert response.status_code == 200
        assert server.complete == 3
        assert [r.phase for r in ledger.records()] == [Phase.DONE]


# -- a drop-in --------------------------------------------------------------


def test_adapters_and_sessions_are_pickled(client: requests.Session) -> None:
    again = pickle.loads(pickle.dumps(client))
    adapter = again.get_adapter("http://x")
    assert isinstance(adapter, RetryAdapter)
    assert adapter.policy == AT_ONCE
    with FaultServer([BUSY, Answer(200)]) as server:
        response = again.post(server.url(), data=b"x")
        assert response.status_code == 200
        assert pickle.loads(pickle.dumps(response)).status_code == 200
        assert server.complete == 2


def test_a_secret_is_never_pickled() -> None:
    with pytest.raises(TypeError, match="RETRYPOLICY_SECRET"):
        pickle.dumps(RetryAdapter(secret="hush"))


def test_urllib3s_retry_is_taken_over_and_never_stacked() -> None:
    with pytest.warns(DuplicateRisk):
        adapter = RetryAdapter(max_retries=Retry(total=2, status_forcelist=[500], allowed_methods=None))
    assert adapter.policy.max_attempts == 3
    assert adapter.max_retries.total == 0
    with FaultServer([Answer(500)] * 3) as server, requests.Session() as session:
        session.mount("http://", adapter)
        with pytest.raises(requests.exceptions.RetryError) as caught:
            session.get(server.url())
        assert server.complete == 3
        assert caught.value.response is not None
        assert report(caught.value) is not None


def test_bad_parts_are_refused_when_the_adapter_is_made() -> None:
    with pytest.raises(PolicyError):
        RetryAdapter(3)  # type: ignore[arg-type]
    for part in (
        {"hosts": "api.example.com", "provider": "resend"},
        {"listeners": 3},
        {"max_idle": "4"},
        {"max_idle": -1},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(part))):
            RetryAdapter(**part)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="beside a policy"):
        RetryAdapter(AT_ONCE, max_retries=3)
    with pytest.raises(ConfigurationError, match="a requests adapter"):
        RetryAdapter(transport=print)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="retries by itself"):
        RetryAdapter(transport=HTTPAdapter(max_retries=3))
    with pytest.raises(ConfigurationError, match="Session"):
        mount(print)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_retries"):
        RetryAdapter(max_retries=-1)


def test_another_adapter_can_be_the_transport() -> None:
    with FaultServer([BUSY, Close("request"), Answer(200)]) as server, requests.Session() as session:
        ledger = MemoryLedger()
        mount(session, AT_ONCE, transport=HTTPAdapter(), ledger=ledger)
        with pytest.raises(requests.ConnectionError) as caught, operation(key="k"):
            session.post(server.url(), data=b"x")
        found = report(caught.value)
        assert found is not None
        assert found.effect is Effect.UNKNOWN
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"x")
        assert server.complete == 2


def test_waits_are_virtual_where_the_clock_is() -> None:
    clock = VirtualClock()
    with (
        FaultServer([Answer(429, headers={"Retry-After": "30"}), Answer(200)]) as server,
        requests.Session() as session,
    ):
        mount(session, AT_ONCE, clock=clock)
        assert session.post(server.url(), data=b"x").status_code == 200
    assert clock.sleeps == [30.0]


def test_deactivated_makes_one_plain_attempt(client: requests.Session) -> None:
    with FaultServer([Answer(503, headers={"Retry-After": "30"})]) as server:
        with deactivated():
            response = client.post(server.url(), data=b"x")
        assert response.status_code == 503
        assert server.complete == 1
        assert report(response) is None


def test_no_log_line_shows_header_body_or_key(client: requests.Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "retrypolicy")
    with FaultServer([BUSY, Close("request")]) as server, requests.Session() as session:
        mount(session, AT_ONCE.with_(backoff=Constant(seconds=0.001)), ledger=MemoryLedger())
        with pytest.raises(requests.ConnectionError), operation(key="secret-key", label="order 42\nforged"):
            session.post(server.url("/?token=hidden"), data=b"a secret body", headers={"Authorization": "Bearer hush"})
    assert "waiting" in caplog.text
    assert "is held" in caplog.text
    assert "[order 42\N{REPLACEMENT CHARACTER}forged]" in caplog.text
    for word in ("hush", "secret", "hidden"):
        assert word not in caplog.text
