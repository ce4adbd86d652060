"""Celery tasks under a policy, in a real worker of this process: memory broker, real time, short waits."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import celery
import kombu
import pytest
import requests
from billiard.exceptions import SoftTimeLimitExceeded
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore
from celery.result import AsyncResult
from celery.signals import before_task_publish
from celery.worker import state

from retrypolicy import Constant, Guard, RetryPolicy, operation, step
from retrypolicy.errors import AlreadyDone, ConfigurationError, SendDeferred, SendFailed, SendHeld
from retrypolicy.guard import MemoryLedger, Phase, Record
from retrypolicy.queues.celery import HEADER, PolicyTask, check_app, tells_redelivery, with_policy
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer

POLICY = RetryPolicy(
    max_attempts=3, max_wait=0.1, total_timeout=5.0, lifetime=30.0, backoff=Constant(seconds=0), guard=Guard(lease=0.5)
)
SECONDS = 20.0


def later(seconds: str = "1") -> Answer:
    return Answer(503, headers={"Retry-After": seconds})


class Shop:
    """An app, its tasks, its ledger, and the server that they call."""

    def __init__(self, name: str) -> None:
        self.app = app = celery.Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(worker_hijack_root_logger=False, worker_redirect_stdouts=False, result_extended=False)
        app.conf.update(broker_transport_options={"polling_interval": 0.02}, task_publish_retry=False)
        self.ledger = MemoryLedger()
        self.server = FaultServer()  # each test has its own
        self.runs: list[str] = []
        self.also: Callable[[], None] = nothing
        self.sorry: Callable[[requests.HTTPError], None] = nothing

        def work(task: Any, *orders: str) -> str:
            self.runs.append(task.request.id)
            self.also()
            with requests.Session() as session:
                session.trust_env = False
                mount(session, RetryPolicy(max_attempts=1), ledger=self.ledger)
                for order in orders:
                    try:
                        session.post(self.server.url(), data=order.encode()).raise_for_status()
                    except AlreadyDone:
                        if len(orders) == 1:
                            raise
                    except requests.HTTPError as error:
                        self.sorry(error)
                        raise
            return "sent"

        made: dict[str, Any] = {
            "shared": False,
            "bind": True,
            "base": PolicyTask,
            "retry_policy": POLICY,
            "retry_ledger": self.ledger,
        }
        self.send = app.task(name="send", **made)(work)
        self.typo = app.task(name="typo", **{**made, "retry_policy": "wroker"})(work)
        self.wrapped = app.task(name="wrapped", shared=False, bind=True, acks_late=True)(with_policy(POLICY)(work))

    def play(self, *script: Any) -> None:
        self.server.play(list(script))

    @property
    def record(self) -> Record:
        [record] = [r for r in self.ledger.records() if not r.label.startswith("run of")]
        return record

    @property
    def bodies(self) -> list[str]:
        return [request.body.decode() for request in self.server.requests]


@pytest.fixture(scope="module")
def worker() -> Iterator[Shop]:
    shop = Shop("shop")
    level, handlers = logging.root.level, logging.root.handlers[:]
    try:
        with start_worker(shop.app, pool="solo", perform_ping_check=False, shutdown_timeout=30.0, loglevel="error"):
            yield shop
    finally:  # a worker takes the root logger for its own, and other tests read logs
        logging.root.setLevel(level)
        logging.root.handlers[:] = handlers


@pytest.fixture
def shop(worker: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(step, "HELD_LOOK", (0.3, 3600.0))
    worker.ledger._records.clear()
    worker.runs.clear()
    worker.also = worker.sorry = nothing
    published: set[str] = set()

    def note(headers: dict[str, Any], **_: Any) -> None:
        published.add(headers["id"])

    before_task_publish.connect(note)
    with FaultServer([Answer(200)]) as worker.server:
        yield worker
        before_task_publish.disconnect(note)
        state.revoked.update(published)  # what did not end, as in a test that failed, is not the next one's
    wait_for(lambda: not state.active_requests)


def nothing(*args: Any) -> None:
    pass


def end_of(result: AsyncResult) -> Any:
    return result.get(timeout=SECONDS, propagate=False, interval=0.02)


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- coming back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["send", "wrapped"])
def test_it_comes_back_when_the_server_said(shop: Shop, name: str) -> None:
    shop.play(later(), Answer(200))
    began = time.monotonic()
    result = getattr(shop, name).delay("order 1")
    assert end_of(result) == "sent"
    assert time.monotonic() - began >= 1.0
    assert shop.runs == [result.id] * 2
    assert shop.server.complete == 2
    assert (shop.record.phase, shop.record.attempts) == (Phase.DONE, 2)
    assert shop.record.label == f"{name}[{result.id}]"


def test_a_long_wait_is_made_of_short_ones(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the task's own code does not run for them."""
    monkeypatch.setattr(shop.send, "max_countdown", 0.3)
    shop.play(later(), Answer(200))
    published: list[Any] = []
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(celery.Task, "apply_async", _noting(published, celery.Task.apply_async))
        assert end_of(shop.send.delay("order 1")) == "sent"
    assert time.monotonic() - began >= 1.0
    assert [options["countdown"] <= 0.3 for options in published[1:]] == [True] * (len(published) - 1)
    assert len(published) >= 2  # five, where the worker is on time
    assert {options.get("retries", 0) for options in published} == {0}
    assert len(shop.runs) == 2


def _noting(published: list[Any], apply_async: Any) -> Any:
    def note(self: Any, *args: Any, **options: Any) -> Any:
        published.append(options)
        return apply_async(self, *args, **options)

    return note


def test_attempts_are_the_ledgers(shop: Shop) -> None:
    shop.play(later("0.2"))
    error = end_of(shop.send.delay("order 1"))
    assert isinstance(error, SendFailed)
    assert "status 503, 3 attempt(s)" in str(error)
    assert shop.server.complete == 3
    assert shop.record.phase is Phase.FAILED


def test_a_refusal_is_final_and_its_error_slim(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.play(Answer(400, body=b"ann@example.com is no address"))
    result = shop.send.delay("order 1")
    assert isinstance(end_of(result), SendFailed)
    assert "ann@example.com" not in f"{result.traceback} {result.result} {caplog.text}"
    assert "raise_for_status" in result.traceback
    wait_for(lambda: "SendFailed" in caplog.text)  # the log is written after the result
    assert shop.server.complete == 1


def test_held_comes_back_until_it_is_resolved(shop: Shop) -> None:
    shop.play(Close("request"))
    result = shop.send.delay("order 1")
    wait_for(lambda: len(shop.runs) > 2)
    record = shop.record
    assert (record.phase, result.state) == (Phase.HELD, "RETRY")
    assert isinstance(result.result, SendHeld)
    shop.play(Answer(200))
    shop.ledger.resolve(record.key, record.fence, "not_applied")
    assert end_of(result) == "sent"
    assert shop.server.complete == 2


def test_held_to_the_end_of_its_lifetime_fails(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.send, "retry_policy", POLICY.with_(lifetime=1.0))
    shop.play(Close("request"))
    assert type(end_of(shop.send.delay("order 1"))) is SendHeld
    assert shop.record.phase is Phase.HELD
    assert shop.server.complete == 1


def test_a_second_copy_waits_for_the_first(shop: Shop) -> None:
    """Redelivery, as by a visibility timeout: the same message again while it runs."""
    copies: list[Any] = []

    def answer(request: Any) -> Answer:
        copies.append(shop.send.apply(("order 1",), task_id=result_id, throw=False))
        return Answer(200)

    result_id = "one-and-the-same"
    shop.play(answer)
    result = shop.send.apply_async(("order 1",), task_id=result_id)
    assert end_of(result) == "sent"
    [copy] = copies
    assert type(copy.result).__name__ == "SendInProgress"  # in eager mode; a worker's would wait
    assert shop.server.complete == 1
    again = shop.send.apply_async(("order 1",), task_id=result_id)
    wait_for(lambda: len(shop.runs) == 3)
    assert again.id == result.id
    assert shop.server.complete == 1


def test_a_soft_time_limit_in_the_read_is_held(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_time(request: Any) -> Answer:
        return Answer(200)

    def read(*args: Any, **options: Any) -> Any:
        raise SoftTimeLimitExceeded

    shop.play(out_of_time)
    with monkeypatch.context() as patch:
        patch.setattr("http.client.HTTPResponse.begin", read)
        result = shop.send.delay("order 1")
        wait_for(lambda: result.state == "RETRY")
    assert (shop.record.phase, shop.server.complete) == (Phase.HELD, 1)
    shop.ledger.resolve(shop.record.key, shop.record.fence, "applied")
    assert isinstance(end_of(result), AlreadyDone)
    assert shop.server.complete == 1


def test_celerys_own_words_pass(shop: Shop) -> None:
    tries: list[int] = []

    def own() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise shop.send.retry(countdown=0.05)

    shop.also = own
    assert end_of(shop.send.delay("order 1")) == "sent"
    assert len(tries) == 3


def test_its_own_retry_after_a_refusal_counts_and_not_the_refusal(shop: Shop) -> None:
    """The refusal stands in the `Retry` as its context, and says that all is over."""

    def again(error: requests.HTTPError) -> None:
        raise shop.send.retry(exc=error, countdown=0.05)

    shop.sorry = again
    shop.play(Answer(400), Answer(200))
    assert end_of(shop.send.delay("order 1")) == "sent"
    assert shop.server.complete == 2


def test_what_it_ignores_after_a_refusal_has_no_result(shop: Shop) -> None:
    def ignore(error: requests.HTTPError) -> None:
        raise Ignore

    shop.sorry = ignore
    shop.play(Answer(400), Answer(200))
    result = shop.send.delay("order 1")
    assert end_of(shop.send.delay("order 2")) == "sent"  # one worker, one after the other
    assert (result.state, shop.server.complete) == ("PENDING", 2)


def test_an_error_of_the_task_itself_is_left_alone(shop: Shop) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in a template")

    shop.also = fail
    assert isinstance(end_of(shop.send.delay("order 1")), ZeroDivisionError)
    assert len(shop.runs) == 1


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_for_the_tasks_one_call(shop: Shop) -> None:
    shop.play(later("0.2"), Answer(200))
    assert end_of(shop.send.apply_async(("order 1",), idempotency_key="receipt/1")) == "sent"
    assert end_of(shop.send.apply_async(("order 1",), idempotency_key="receipt/1")) == {"status": 200}
    assert end_of(shop.send.s("order 1").set(idempotency_key="receipt/1").apply_async()) == {"status": 200}
    assert shop.server.complete == 2
    twice = end_of(shop.send.apply_async(("order 2", "order 3"), idempotency_key="receipt/2"))
    assert type(twice).__name__ == "KeyReused"


def test_several_calls_have_a_key_each(shop: Shop) -> None:
    shop.play(Answer(200), later("0.2"), Answer(200))
    assert end_of(shop.send.delay("a", "b", "a")) == "sent"
    assert shop.bodies == ["a", "b", "b", "a"]


def test_a_call_that_was_done_does_not_hide_what_the_task_had_to_do_after_it(shop: Shop) -> None:
    """Without an idempotency_key the task may make more calls, and this one's answer is gone."""
    first = shop.send.apply_async(("order 1",), task_id="twice delivered")
    assert end_of(first) == "sent"
    first.forget()
    assert isinstance(end_of(shop.send.apply_async(("order 1",), task_id="twice delivered")), AlreadyDone)


def test_other_tasks_have_other_keys(shop: Shop) -> None:
    for _ in range(2):
        assert end_of(shop.send.delay("order 1")) == "sent"
    assert shop.server.complete == 2


@pytest.mark.parametrize("key", ["", 42, "a\nb"])
def test_a_key_that_can_not_be_one(shop: Shop, key: Any) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        shop.send.apply_async(("order 1",), idempotency_key=key)


@pytest.mark.parametrize("header", [7, {"key": 7}, {"since": "today"}, {"due": True}])
def test_a_header_that_somebody_else_wrote(shop: Shop, header: Any) -> None:
    error = end_of(shop.send.apply_async(("order 1",), headers={HEADER: header}))
    assert isinstance(error, ConfigurationError)
    assert shop.runs == []


def test_a_policy_that_does_not_exist(shop: Shop) -> None:
    error = end_of(shop.typo.delay("order 1"))
    assert isinstance(error, ConfigurationError)
    assert "one of web, worker" in str(error)
    assert shop.runs == []


# -- where there is no queue ------------------------------------------------------------------------------------------


def test_a_direct_call_is_a_call(shop: Shop) -> None:
    shop.play(Answer(400))
    with pytest.raises(requests.HTTPError), operation(key="mine"):
        shop.send("order 1")
    with pytest.raises(requests.HTTPError), operation(key="mine, too"):
        shop.wrapped("order 1")


def test_eager_says_what_a_queue_would_have_waited_for(shop: Shop) -> None:
    shop.play(later("10"))
    result = shop.send.apply(("order 1",), throw=False)
    assert isinstance(result.result, SendFailed)
    assert result.result.report is not None
    assert result.result.report.retry_at is not None
    again = shop.send.apply(("order 1",), task_id=result.id, throw=False)
    assert isinstance(again.result, SendDeferred)
    assert shop.server.complete == 1


# -- definition -------------------------------------------------------------------------------------------------------


def test_autoretry_beside_a_policy_is_an_error_when_the_task_is_defined() -> None:
    app = celery.Celery("other", set_as_current=False)
    with pytest.raises(ConfigurationError, match=r"autoretry_for is not allowed .* say in retry_policy"):
        app.task(base=PolicyTask, autoretry_for=(OSError,), name="stacked", lazy=False, shared=False)(nothing)
    with pytest.raises(ConfigurationError, match="Stacked: autoretry_for"):
        type("Stacked", (PolicyTask,), {"autoretry_for": (OSError,)})


def test_the_decorator_wants_the_task(shop: Shop) -> None:
    app = celery.Celery("other", set_as_current=False)
    unbound = app.task(name="unbound", shared=False)(with_policy()(nothing))
    with pytest.raises(ConfigurationError, match="bind=True"):
        unbound.apply(throw=True)
    stacked = app.task(name="stacked", bind=True, autoretry_for=(OSError,), shared=False)(with_policy()(nothing))
    with pytest.raises(ConfigurationError, match="autoretry_for"):
        stacked.apply(throw=True)


def test_for_django_there_is_delay_on_commit() -> None:
    from retrypolicy.queues.celery import DjangoPolicyTask

    app = celery.Celery("django", set_as_current=False, task_cls="retrypolicy.queues.celery:DjangoPolicyTask")
    task = app.task(name="t", lazy=False, shared=False)(nothing)
    assert isinstance(task, DjangoPolicyTask)
    assert callable(task.delay_on_commit)
    assert task.acks_late


# -- the broker is away -----------------------------------------------------------------------------------------------


class Away(kombu.exceptions.OperationalError):
    pass


@pytest.mark.parametrize("late", [True, False])
def test_a_broker_that_is_away_while_a_retry_is_published(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, late: bool
) -> None:
    monkeypatch.setattr(shop.send, "acks_late", late)
    shop.play(later("0.4"), Answer(200))
    publish, away = kombu.Producer.publish, [True, True]

    def sometimes(self: Any, body: Any, *args: Any, **options: Any) -> Any:
        if options.get("headers", {}).get(HEADER) and away:
            away.pop()
            raise Away("connection refused")
        return publish(self, body, *args, **options)

    monkeypatch.setattr(kombu.Producer, "publish", sometimes)
    with caplog.at_level(logging.ERROR, logger="retrypolicy"):
        end = end_of(shop.send.delay("order 1"))
    if late:
        assert end == "sent"
        assert shop.server.complete == 2
        assert "its message goes back unacknowledged" in caplog.text
    else:
        assert isinstance(end, SendFailed)
        assert "was acknowledged early, and is gone" in str(end)
        assert (shop.record.phase, shop.record.attempts) == (Phase.CLAIMED, 1)
        assert shop.record.not_before > 0


# -- workers that die -------------------------------------------------------------------------------------------------


def test_a_task_that_never_ends_is_not_begun_for_ever(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's death is played by a delivery whose end nobody records; test_celery_kills.py really kills."""
    from retrypolicy.queues import celery as module

    monkeypatch.setattr(module._Delivery, "_over", lambda self: None)
    for _ in range(POLICY.max_attempts + 1):
        shop.send.apply_async(("order 1",), task_id="a killer", headers={}, retries=1)
    wait_for(lambda: len(shop.runs) + 1 > POLICY.max_attempts)
    result = AsyncResult("a killer", app=shop.app)
    wait_for(lambda: "never came to an end" in str(result.result) or result.state == "SUCCESS")
    assert len(shop.runs) == POLICY.max_attempts


def test_what_a_broker_says_of_redelivery() -> None:
    assert tells_redelivery(celery.Celery(broker="redis://", set_as_current=False))
    assert tells_redelivery(celery.Celery(broker="amqp://", set_as_current=False))
    assert not tells_redelivery(celery.Celery(broker="memory://", set_as_current=False))


# -- check_app --------------------------------------------------------------------------------------------------------


def checked(conf: dict[str, Any] | None = None, wrapped: bool = False, **options: Any) -> set[str]:
    app = celery.Celery("checked", broker="redis://", set_as_current=False)
    app.conf.update(conf or {})
    if wrapped:
        app.task(name="t", bind=True, shared=False, **options)(with_policy(SOUND)(nothing))
    else:
        options = {"retry_policy": SOUND, "retry_ledger": MemoryLedger(), **options}
        app.task(name="t", base=PolicyTask, shared=False, **options)(nothing)
    app.task(name="not ours", shared=False, autoretry_for=(OSError,))(nothing)
    for problem in check_app(app):
        assert problem.hint in str(problem)
    return {problem.id for problem in check_app(app)}


SOUND = POLICY.with_(guard=Guard())


@pytest.mark.parametrize(
    ("ids", "given"),
    [
        (set(), {}),
        ({"celery.E002"}, {"retry_policy": "wroker"}),
        ({"celery.W001"}, {"acks_late": False}),
        ({"celery.W002"}, {"reject_on_worker_lost": False}),
        ({"celery.W003", "celery.W004"}, {"max_countdown": 4000}),
        (
            {"celery.W004"},
            {
                "conf": {"broker_transport_options": {"visibility_timeout": 600}},
                "retry_policy": SOUND.with_(total_timeout=600.0),
            },
        ),
        ({"celery.W005"}, {"soft_time_limit": 3}),
        ({"celery.W005"}, {"conf": {"task_time_limit": 3}}),
        ({"celery.W006"}, {"retry_policy": POLICY}),
        ({"celery.W007"}, {"retry_policy": SOUND.with_(lifetime=None)}),
        ({"celery.W008"}, {"retry_ledger": None}),
        ({"celery.W009"}, {"conf": {"broker_url": "memory://"}}),
        ({"celery.E001", "celery.W001", "celery.W008"}, {"wrapped": True, "autoretry_for": (OSError,)}),
    ],
)
def test_what_check_app_finds(ids: set[str], given: dict[str, Any]) -> None:
    assert checked(**given) == ids


def test_an_app_without_such_tasks_has_no_problems() -> None:
    assert check_app(celery.Celery("empty", broker="memory://", set_as_current=False)) == []


def test_slim_errors_survive_celerys_pickle() -> None:
    error = SendFailed("HTTPError: status 503", error="HTTPError")
    assert pickle.loads(pickle.dumps(error)).error == "HTTPError"
