"""Redirects and second tries of an auth handler: hops of one call. Ground truth is what the servers read."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import requests
from requests.auth import HTTPDigestAuth

from retrypolicy import Effect, Guard, Report, operation, report
from retrypolicy.errors import LedgerUnavailable, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.ledger import Refused, Take, Taken
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import Answer, Close, FaultServer, Request, VirtualClock
from tests.requests.test_adapter import AT_ONCE, BUSY, honouring

ASKED = Answer(401, headers={"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'})
LOST = Close("request")


def moved(status: int, to: str = "/elsewhere") -> Answer:
    return Answer(status, b"over there", headers={"Location": to})


def told(of: object) -> Report:
    found = report(of)
    assert found is not None
    return found


# -- what may have taken effect is not sent to another origin -------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_after_a_lost_answer_not_even_a_307_leads_to_another_origin(stream: bool) -> None:
    """The second server would not know the key, and might do it again."""
    with FaultServer([Answer(200)]) as other, FaultServer([LOST, moved(307, other.url())]) as server:
        with requests.Session() as session:
            mount(session, AT_ONCE, provider=honouring())
            with operation(key="k"):
                response = session.post(server.url(), data=b"pay", stream=stream)
        assert (response.status_code, response.headers["Location"]) == (307, other.url())
        assert response.content == b"over there"
        assert response.history == []
        assert (server.complete, other.complete) == (2, 0)
    assert told(response).effect is Effect.UNKNOWN
    assert type(pickle.loads(pickle.dumps(response))) is requests.Response


def test_its_key_is_held() -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as other, FaultServer([LOST, moved(308, other.url())]) as server:
        with requests.Session() as session:
            mount(session, AT_ONCE, provider=honouring(), ledger=ledger)
            with operation(key="k"):
                response = session.post(server.url(), data=b"pay")
        assert (response.status_code, told(response).held) == (308, True)
        assert [record.phase for record in ledger.records()] == [Phase.HELD]
        with requests.Session() as session:
            mount(session, AT_ONCE, ledger=ledger)  # no provider: the key protects nothing any more
            with pytest.raises(SendHeld), operation(key="k"):
                session.post(server.url(), data=b"pay")
        assert (server.complete, other.complete) == (2, 0)


@pytest.mark.parametrize(
    ("method", "status", "options"),
    [
        ("PUT", 307, {"ledger": MemoryLedger()}),
        ("PATCH", 307, {"policy": AT_ONCE.with_(idempotent_methods={"PATCH"}), "ledger": MemoryLedger()}),
        ("POST", 302, {"provider": honouring()}),
        ("POST", 307, {"policy": AT_ONCE.with_(guard=Guard(on_unknown="resend")), "ledger": MemoryLedger()}),
    ],
    ids=["idempotent", "accepted", "a GET", "resend"],
)
def test_what_may_be_repeated_goes_on(method: str, status: int, options: dict[str, Any]) -> None:
    options = {"policy": AT_ONCE, **options}
    with FaultServer([Answer(200)]) as other, FaultServer([LOST, moved(status, other.url())]) as server:
        with requests.Session() as session, operation(key="k"):
            mount(session, **options)
            assert session.request(method, server.url(), data=b"pay").status_code == 200
        assert (server.complete, other.complete) == (2, 1)


def test_a_301_of_a_patch_says_nothing_and_is_not_followed() -> None:
    """requests repeats what is no POST after a 301, which does not say that nothing was done."""
    with FaultServer([moved(301)]) as server, requests.Session() as session:
        mount(session, AT_ONCE)
        response = session.patch(server.url(), data=b"pay")
        assert (response.status_code, server.complete) == (301, 1)
    assert told(response).effect is Effect.UNKNOWN


def test_a_lost_answer_is_remembered_over_a_hop_to_the_same_origin() -> None:
    with FaultServer([Answer(200)]) as other:
        with FaultServer([LOST, moved(307), moved(307, other.url())]) as server, requests.Session() as session:
            mount(session, AT_ONCE, provider=honouring())
            with operation(key="k"):
                response = session.post(server.url(), data=b"pay")
            assert [r.header("X-Key") for r in server.requests] == ["k"] * 3
        assert (response.status_code, other.complete) == (307, 0)
    assert told(response).effect is Effect.UNKNOWN


def test_the_key_does_not_cover_a_path_where_the_provider_ignores_it() -> None:
    placement = KeyPlacement(header="X-Key", window=60.0, margin=5.0, paths=("/pay",))
    provider = Provider(name="made-up", hosts=("127.0.0.1",), key=placement)
    with FaultServer([LOST, moved(307)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, provider=provider)
        with operation(key="k"):
            assert session.post(server.url("/pay"), data=b"pay").status_code == 307
        assert [r.target for r in server.requests] == ["/pay", "/pay"]


@pytest.mark.parametrize("ledger", [None, MemoryLedger])
@pytest.mark.parametrize("late", [False, True])
def test_the_key_does_not_cover_a_hop_that_comes_when_it_is_forgotten(ledger: Any, late: bool) -> None:
    clock = VirtualClock()
    answers = iter([LOST, moved(307), Answer(200)])

    def act(request: Request) -> Any:
        answer = next(answers)
        if answer is not LOST and late:
            clock.advance(56.0)  # of 60 s, less a margin of 5
        return answer

    with FaultServer(act) as server, requests.Session() as session:
        mount(session, AT_ONCE, provider=honouring(), clock=clock, ledger=ledger and ledger(clock=clock))
        with operation(key="k"):
            response = session.post(server.url(), data=b"pay")
        assert (response.status_code, server.complete) == ((307, 2) if late else (200, 3))


def test_no_hop_goes_out_after_a_wait_for_the_key_to_be_forgotten() -> None:
    clock = VirtualClock()
    with FaultServer([LOST, moved(307), Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, provider=honouring(), clock=clock)
        hooks = {"response": lambda *_, **__: clock.advance(56.0)}
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"pay", hooks=hooks)
        assert server.complete == 2


def test_a_hop_that_the_guard_refuses_counts_the_attempts_before_it() -> None:
    ledger = SnappedLedger()
    with FaultServer([LOST, moved(307)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, provider=honouring(), ledger=ledger)
        with pytest.raises(LedgerUnavailable) as caught, operation(key="k"):
            session.post(server.url(), data=b"pay")
        assert server.complete == 2
    found = told(caught.value)
    assert found.total_attempts == 2
    assert [(a.number, a.status) for a in found.attempts] == [(1, None), (2, 307)]


class SnappedLedger(MemoryLedger):
    """Takes two arms, and no more."""

    arms = 2

    def arm(self, take: Take) -> Taken | Refused:
        self.arms -= 1
        if self.arms < 0:
            raise LedgerUnavailable("snapped")
        return super().arm(take)


# -- what is reported is about the whole call -------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", [None, MemoryLedger()])
def test_the_report_counts_the_attempts_of_every_hop(ledger: MemoryLedger | None) -> None:
    script = [BUSY, ASKED, BUSY, moved(307), ASKED, Answer(200)]
    with FaultServer(script) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger)
        with operation(key="k" if ledger else None):
            response = session.post(server.url(), data=b"pay", auth=HTTPDigestAuth("u", "p"))
        assert server.complete == 6
    found = told(response)
    assert found.total_attempts == 6
    assert [(a.number, a.status) for a in found.attempts] == [
        *((1, 503), (2, 401), (3, 503), (4, 307), (5, 401), (6, 200)),
    ]
    assert [told(hop).total_attempts for hop in response.history] == [4]


@pytest.mark.parametrize("ledger", [None, MemoryLedger()])
def test_attempts_that_the_ledger_goes_on_counting_are_counted_once(ledger: MemoryLedger | None) -> None:
    script = [ASKED, LOST, moved(307), BUSY, Answer(200)]
    with FaultServer(script) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger, provider=honouring())
        with operation(key="k"):
            response = session.post(server.url(), data=b"pay", auth=HTTPDigestAuth("u", "p"))
        assert server.complete == 5
    assert told(response).total_attempts == 5
    assert [a.number for a in told(response).attempts] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("status", "effect"), [(303, Effect.APPLIED), (302, Effect.UNKNOWN), (307, Effect.NOT_APPLIED)]
)
def test_a_refusal_of_where_a_redirect_led_takes_nothing_back(status: int, effect: Effect) -> None:
    with FaultServer([moved(status), Answer(404)]) as server, requests.Session() as session:
        mount(session, AT_ONCE)
        response = session.post(server.url(), data=b"pay")
        assert (response.status_code, server.complete) == (404, 2)
    assert told(response).effect is effect


def test_an_adapter_of_an_error_tells_of_all_hops() -> None:
    with FaultServer([ASKED, LOST]) as server, requests.Session() as session:
        session.mount("http://", RetryAdapter(AT_ONCE))
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(server.url(), data=b"pay", auth=HTTPDigestAuth("u", "p"))
    assert [a.status for a in told(caught.value).attempts] == [401, None]


@pytest.mark.parametrize("theirs", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_a_hop_to_a_path_of_another_adapter_stays_with_the_ledger_of_its_call(ours: bool, theirs: bool) -> None:
    """The other adapter, with a ledger or without one, never saw the call begin."""
    ledgers = [MemoryLedger() if has else None for has in (ours, theirs)]
    for number, key in enumerate(("a", "b"), start=1):
        with FaultServer([moved(307), Answer(200, b"sent")]) as server, requests.Session() as session:
            for path, ledger in zip(("/", "/elsewhere"), ledgers, strict=True):
                session.mount(server.url(path), RetryAdapter(AT_ONCE, ledger=ledger, provider=honouring()))
            with operation(key=key):
                response = session.post(server.url(), data=b"pay")
            assert (response.content, server.complete) == (b"sent", 2)
        assert told(response).recorded is (True if ours else None)
        kept = [[] if ledger is None else [record.phase for record in ledger.records()] for ledger in ledgers]
        assert kept == [[Phase.DONE] * number if ours else [], []]
