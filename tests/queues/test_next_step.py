"""next_step(): what a queue does next, after real calls to a real server, on a virtual clock."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from anymail.exceptions import AnymailRecipientsRefused, AnymailRequestsAPIError
from attrs import define, field

from retrypolicy import Constant, Engine, Guard, RetryPolicy, operation
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import (
    CircuitOpen,
    ConfigurationError,
    DeadlineExceeded,
    KeyReused,
    LedgerUnavailable,
    PolicyError,
    SendDeferred,
    SendFailed,
    SendHeld,
    SendInProgress,
)
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.queues import GiveUp, Held, RetryAt, Settled, Wait, next_step
from retrypolicy.requests import RetryAdapter
from retrypolicy.step import kills_its_workers
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.sending import SECRET, mail, send

KEY = "receipt/42"
DAY = 86400.0
POLICY = RetryPolicy(max_attempts=3, lifetime=DAY, backoff=Constant(seconds=0), guard=Guard(lease=60))
LATER = Answer(503, headers={"Retry-After": "600"})


@define
class Desk:
    """A worker: sends under one key, with a ledger that all workers share."""

    server: FaultServer
    clock: VirtualClock = field(factory=VirtualClock)
    provider: Provider | None = None
    ledger: MemoryLedger = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ledger = MemoryLedger(clock=self.clock)

    def run(self, policy: RetryPolicy = POLICY, **more: Any) -> BaseException:
        """Send, and return the error that it ended with."""
        adapter = RetryAdapter(policy, ledger=self.ledger, clock=self.clock, provider=self.provider, **more)
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", adapter)
            try:
                with operation(key=KEY):
                    session.post(self.server.url(), data=b"pay").raise_for_status()
            except BaseException as error:
                return error
        raise AssertionError("it was sent")

    def step(self, of: object, **more: Any) -> Any:
        return next_step(of, policy=POLICY, now=self.clock.now(), **more)

    def of_key(self, **more: Any) -> Any:
        return next_step(KEY, policy=POLICY, ledger=self.ledger, **more)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with FaultServer([LATER]) as server:
        yield Desk(server)


def test_a_deferred_call_comes_back_when_the_server_said(desk: Desk) -> None:
    due = desk.clock.now() + 600
    error = desk.run()
    assert isinstance(error, requests.HTTPError)
    assert desk.step(error) == desk.of_key() == RetryAt(when=due)
    too_early = desk.run()
    assert isinstance(too_early, SendDeferred)
    assert desk.step(too_early) == RetryAt(when=due)
    assert desk.server.complete == 1


def test_attempts_are_counted_over_all_runs(desk: Desk) -> None:
    for _ in range(2):
        step = desk.step(desk.run())
        desk.clock.advance(step.when - desk.clock.now())
    last = desk.step(desk.run())
    assert isinstance(last, GiveUp)
    assert isinstance(last.error, SendFailed)
    assert last.error.report is not None
    assert (last.error.report.total_attempts, last.error.status, last.error.error) == (3, 503, "HTTPError")
    assert desk.server.complete == 3


def test_a_response_will_do_where_nothing_was_raised(desk: Desk) -> None:
    error = desk.run()
    assert isinstance(error, requests.HTTPError)
    assert desk.step(error.response) == desk.step(error)
    with pytest.raises(ConfigurationError, match="a response with a report"):
        desk.step(requests.Response())


def test_held_comes_back_until_its_lifetime_is_over_and_then_fails(desk: Desk) -> None:
    desk.server.play([Close("request")])
    began = desk.clock.now()
    error = desk.run()
    looks = 0
    while isinstance(step := desk.step(error), Held):
        assert desk.of_key() == step
        desk.clock.advance(step.when - desk.clock.now())
        looks += 1
        error = desk.run()
        assert isinstance(error, SendHeld)
    assert desk.clock.now() == pytest.approx(began + DAY)
    assert 24 < looks < 40
    assert isinstance(step, GiveUp)
    assert type(step.error) is SendHeld
    assert desk.server.complete == 1
    assert desk.ledger.counts()[Phase.HELD] == 1  # it is still there for somebody


def test_held_where_nobody_ran_the_job_again_fails_too(desk: Desk) -> None:
    desk.server.play([Close("request")])
    error = desk.run()
    desk.clock.advance(DAY)
    step = desk.step(error)
    assert isinstance(step, GiveUp)
    assert type(step.error) is SendHeld
    assert type(desk.of_key().error) is SendHeld


@pytest.mark.parametrize("verdict", ["applied", "not_applied"])
def test_a_held_key_that_was_resolved_goes_on(desk: Desk, verdict: Any) -> None:
    desk.server.play([Close("request"), Answer(400)])
    desk.run()
    [record] = desk.ledger.records()
    desk.ledger.resolve(record.key, record.fence, verdict, result={"how": "by hand"})
    step, error = desk.of_key(), desk.run()
    if verdict == "applied":
        assert step == desk.step(error) == Settled(result={"how": "by hand"})
    else:
        assert step == RetryAt(when=desk.clock.now())
        assert isinstance(desk.step(error), GiveUp)
    assert desk.server.complete == (1 if verdict == "applied" else 2)


def test_a_repeat_that_the_provider_knows_is_due_when_it_said(desk: Desk) -> None:
    desk.provider = Provider(name="made-up", hosts=("127.0.0.1",), key=KeyPlacement(header="X-Key", window=7200.0))
    desk.server.play([Answer(500, headers={"Retry-After": "600"})])
    due = desk.clock.now() + 600
    assert desk.step(desk.run()) == desk.of_key() == RetryAt(when=due)


def test_another_worker_has_it(desk: Desk) -> None:
    other = Desk(desk.server, desk.clock)
    other.ledger = desk.ledger
    met: list[Any] = []

    def meanwhile(request: Any) -> Answer:
        error = other.run()
        assert isinstance(error, SendInProgress)
        met.extend([desk.step(error), desk.of_key()])
        return Answer(400)

    desk.server.play(meanwhile)
    began = desk.clock.now()
    assert isinstance(desk.step(desk.run()), GiveUp)
    assert met == [Wait(when=began + 60)] * 2


def test_what_the_server_refused_is_free(desk: Desk) -> None:
    """A queue that still has the job did not finish it; to send it again is safe."""
    desk.server.play([Answer(400)])
    step = desk.step(desk.run())
    assert isinstance(step, GiveUp)
    assert "status 400" in str(step.error)
    assert desk.of_key() == RetryAt(when=desk.clock.now())


def test_a_key_that_nobody_ever_sent(desk: Desk) -> None:
    assert desk.of_key() == RetryAt(when=desk.clock.now())


def test_a_deferred_key_whose_lifetime_is_over(desk: Desk) -> None:
    desk.run()
    desk.clock.advance(2 * DAY)
    step = desk.of_key()
    assert isinstance(step, GiveUp)
    assert type(step.error) is DeadlineExceeded
    assert isinstance(desk.step(desk.run()), GiveUp)
    assert desk.server.complete == 1


def test_without_a_ledger_the_job_is_bounded_by_its_own_age(desk: Desk) -> None:
    error = desk.run()
    now = desk.clock.now()
    assert desk.step(error, since=now - DAY + 601) == RetryAt(when=now + 600)
    step = desk.step(error, since=now - DAY + 599)
    assert isinstance(step, GiveUp)
    assert isinstance(step.error, SendFailed)


def test_what_cut_the_run_short_is_no_reason_to_give_up(desk: Desk) -> None:
    class SoftTimeLimitExceeded(Exception):
        __module__ = "billiard.exceptions"

    def cut() -> None:
        raise SoftTimeLimitExceeded

    engine = Engine(POLICY, clock=desk.clock, ledger=desk.ledger)
    with pytest.raises(SoftTimeLimitExceeded) as unsent:
        engine.run(cut, classify=lambda error: None)
    assert isinstance(desk.step(unsent.value), GiveUp)  # without a key there is nothing to hold
    with pytest.raises(SoftTimeLimitExceeded) as sent, operation(key=KEY):
        engine.run(cut)
    assert isinstance(desk.step(sent.value), Held)


class Torn(VirtualClock):
    """A clock whose sleep ends as a soft time limit ends it."""

    def sleep(self, *args: Any) -> bool:
        raise SystemExit


@pytest.mark.parametrize("keyed", [False, True])
def test_cut_short_between_two_attempts(desk: Desk, keyed: bool) -> None:
    desk.clock = Torn()
    desk.ledger = MemoryLedger(clock=desk.clock)
    desk.server.play([Answer(500)])
    if keyed:
        desk.provider = Provider(name="made-up", hosts=("127.0.0.1",), key=KeyPlacement(header="X-Key", window=7200.0))
    else:
        desk.server.play([Answer(429)])
    now = desk.clock.now()
    assert desk.step(desk.run(POLICY.with_(backoff=Constant(seconds=1)))) == RetryAt(when=now + 5)


@pytest.mark.parametrize("kind", [LedgerUnavailable, CircuitOpen])
def test_what_is_away_for_a_while(desk: Desk, kind: Any) -> None:
    now = desk.clock.now()
    assert desk.step(kind("away")) == RetryAt(when=now + 5)
    assert desk.step(kind("away"), since=now - 100) == RetryAt(when=now + 100)
    assert desk.step(kind("away"), since=now - 9000) == RetryAt(when=now + 3600)
    step = desk.step(kind("away"), since=now - DAY)
    assert isinstance(step, GiveUp)
    assert type(step.error) is kind
    assert desk.step(CircuitOpen("open", retry_at=now + 7)) == RetryAt(when=now + 7)


@pytest.mark.parametrize("error", [KeyReused("twice"), ConfigurationError("no"), DeadlineExceeded("over")])
def test_our_own_errors_stay_what_they_are(desk: Desk, error: Exception) -> None:
    step = desk.step(error)
    assert isinstance(step, GiveUp)
    assert (type(step.error), step.error.args) == (type(error), error.args)


def test_an_error_that_others_made_of_ours_is_seen_through(desk: Desk) -> None:
    now = desk.clock.now()
    error = RuntimeError("in the shop's own words")
    error.__cause__ = SendDeferred("not yet", retry_at=now + 9)
    assert desk.step(error) == RetryAt(when=now + 9)


def test_an_error_of_the_job_itself_is_left_alone(desk: Desk) -> None:
    error = ZeroDivisionError("in a template")
    assert desk.step(error) == GiveUp(error=error)


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "x" * 2000])
def test_a_key_that_can_not_be_one(desk: Desk, key: str) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        next_step(key, ledger=desk.ledger)


@pytest.mark.parametrize("of", [None, 7, b"receipt/42"])
def test_neither_error_nor_key(of: object) -> None:
    with pytest.raises(ConfigurationError, match="next_step"):
        next_step(of)


def test_a_key_needs_a_ledger() -> None:
    with pytest.raises(ConfigurationError, match="RETRYPOLICY_LEDGER"):
        next_step(KEY)


# -- what goes into the queue -----------------------------------------------------------------------------------------

WORDS = [SECRET, "secret subject", "secret body", "ann@example.com", "shop@example.com", "no such thing"]


def errors_of_anymail() -> Iterator[tuple[str, Exception]]:
    steps = {
        "refused": Answer(400, body=b'{"message": "ann@example.com: no such thing"}'),
        "unknown": Close("request"),
        "server error": Answer(500, body=b"ann@example.com: no such thing"),
    }
    for name, step in steps.items():
        for ledger in (MemoryLedger(), None):
            with FaultServer([step]) as server, pytest.raises(AnymailRequestsAPIError) as caught:
                send("resend", server, mail(idempotency_key=KEY), retry_ledger=ledger)
            yield name, caught.value
            if ledger is not None and name != "refused":
                with FaultServer([step]) as server, pytest.raises(AnymailRequestsAPIError) as caught:
                    send("postmark", server, mail(idempotency_key=KEY), retry_ledger=ledger)
                yield "again", caught.value


def test_nothing_secret_is_in_what_a_queue_gets() -> None:
    """Anymail's own errors hold the payload, with the API key, and can't even be pickled."""
    seen = set()
    for name, error in errors_of_anymail():
        step: Any = next_step(error, since=0.0)
        assert isinstance(step, GiveUp), (name, step)
        raw = pickle.dumps(step.error)
        again: Any = pickle.loads(raw)
        shown = f"{raw!r} {step.error!r} {step.error} {again!r} {step}"
        assert not [word for word in WORDS if word in shown], (name, shown)
        assert type(again) is type(step.error)
        assert again.report == step.error.report
        seen.add(type(again))
    assert seen == {SendFailed, SendHeld, KeyReused}


def test_a_refused_recipient_is_told_without_the_payload() -> None:
    step = next_step(AnymailRecipientsRefused("ann@example.com", email_message=mail(), payload=open))
    assert isinstance(step, GiveUp)
    assert pickle.loads(pickle.dumps(step.error)).args == ("AnymailRecipientsRefused",)


def test_a_policy_that_is_not_one(desk: Desk) -> None:
    with pytest.raises(PolicyError, match=r"next_step\.policy"):
        next_step(KEY, policy="worker", ledger=desk.ledger)  # type: ignore[arg-type]  # what people do


@pytest.mark.parametrize(("most", "deaths"), [(1, 1), (4, 4), (12, 12), (35, 12), (1000, 12)])
def test_a_job_that_ends_its_workers_comes_to_an_end(most: int, deaths: int) -> None:
    """As often as its policy has attempts, and a dozen times at most: attempts are cheap, workers are not."""
    policy = RetryPolicy(max_attempts=most)
    assert kills_its_workers(deaths, policy)
    assert not kills_its_workers(deaths - 1, policy)
