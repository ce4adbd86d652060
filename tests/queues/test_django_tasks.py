"""Django tasks under a policy, run by the real worker of django-tasks-db in this process: real time, short waits."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
import requests
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone
from django_tasks_db.management.commands.db_worker import Worker
from django_tasks_db.models import DBTaskResult

from retrypolicy import Guard, operation, step
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import MemoryLedger, Phase, Record
from retrypolicy.queues.django_tasks import DatabaseBackend, follow, reap, with_policy
from retrypolicy.queues.django_tasks.job import NOTE
from retrypolicy.queues.django_tasks.tasks import policies
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer

from . import tasks_shop
from .tasks_shop import QUICK, Counter

SECONDS = 20.0
OURS = dict(policies)
TABLE = DBTaskResult._meta.db_table
BUSY = Answer(503, headers={"Retry-After": "0"})


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Shop:
    """The tasks' ledger, the server that they call, and the worker."""

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.ledger = MemoryLedger()

    def work(self, backend: str = "default", rounds: int | None = None) -> None:
        """Work off what there is; `rounds`: so many times at most, and not until nothing is left."""
        worker = Worker(
            queue_names=["*"],
            interval=0,
            batch=True,
            backend_name=backend,
            startup_delay=False,
            max_tasks=rounds,
            worker_id=f"worker-{time.monotonic_ns()}",
            excluded_queue_names=[],
        )
        end = time.monotonic() + SECONDS
        while rounds is not None or DBTaskResult.objects.filter(status="READY").exists():
            worker.run()
            if rounds is not None:
                return
            worker.running = True
            assert time.monotonic() < end
            time.sleep(0.01)

    def end_of(self, result: Any) -> DBTaskResult:
        """The row in which the task came to its end."""
        self.work(result.backend)
        found: DBTaskResult = DBTaskResult.objects.get(pk=follow(result).id)
        return found

    @property
    def records(self) -> list[Record]:
        return list(self.ledger.records())

    @property
    def record(self) -> Record:
        [record] = self.records
        return record

    @property
    def bodies(self) -> list[str]:
        return [request.body.decode() for request in self.server.requests]


@pytest.fixture(scope="module")
def tables() -> None:
    call_command("migrate", "django_tasks_database", verbosity=0)


@pytest.fixture
def shop(tables: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(step, "HELD_LOOK", (0.1, 3600.0))
    DBTaskResult.objects.all().delete()
    with FaultServer([Answer(200)]) as server:
        shop = Shop(server)
        monkeypatch.setattr(Counter, "server", server.url())
        monkeypatch.setattr(Counter, "ledger", shop.ledger)
        monkeypatch.setattr(Counter, "runs", 0)
        monkeypatch.setattr(Counter, "also", lambda: None)
        with override_settings(RETRYPOLICY={"LEDGER": shop.ledger, "POLICIES": {"by name": QUICK}}):
            yield shop


# -- coming back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["send", "wrapped", "coroutine", "wrapped_coroutine", "with_context"])
def test_it_comes_back_when_the_server_said(shop: Shop, name: str) -> None:
    task = getattr(tasks_shop, name)
    seconds = "1" if name == "send" else "0"
    shop.server.play([Answer(503, headers={"Retry-After": seconds}), Answer(200)])
    began = time.monotonic()
    result = task.using(priority=7).enqueue("order 1")
    last = shop.end_of(result)
    assert time.monotonic() - began >= float(seconds)
    assert (last.status, last.return_value, last.priority) == ("SUCCESSFUL", "sent", 7)
    assert (Counter.runs, shop.server.complete) == (2, 2)
    assert (shop.record.phase, shop.record.attempts) == (Phase.DONE, 2)
    assert shop.record.label == f"tests.queues.tasks_shop.{name}[{result.id}]"
    first = DBTaskResult.objects.get(pk=result.id)
    assert first.status == "SUCCESSFUL"
    assert first.return_value[NOTE]["continues_as"] == str(last.pk)
    assert "status 503" in first.return_value[NOTE]["why"]
    assert last.args_kwargs["args"] == ["order 1"]


def test_attempts_are_counted_over_all_runs(shop: Shop) -> None:
    shop.server.play([BUSY])
    last = shop.end_of(tasks_shop.send.enqueue("order 1"))
    assert (last.status, last.exception_class_path) == ("FAILED", "retrypolicy.errors.SendFailed")
    assert shop.server.complete == QUICK.max_attempts
    assert "status 503" in last.traceback


def test_what_was_sent_is_not_sent_again_when_the_rest_comes_back(shop: Shop) -> None:
    shop.server.play([Answer(200), BUSY, Answer(200)])
    assert shop.end_of(tasks_shop.send.enqueue("order 1", "order 2")).return_value == "sent"
    assert shop.bodies == ["order 1", "order 2", "order 2"]


def test_two_tasks_of_one_content_are_two(shop: Shop) -> None:
    for _ in range(2):
        assert shop.end_of(tasks_shop.send.enqueue("order 1", "order 1")).status == "SUCCESSFUL"
    assert shop.server.complete == 4


def test_times_without_zone(shop: Shop) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        shop.server.play([BUSY, Answer(200)])
        assert shop.end_of(tasks_shop.send.enqueue("order 1")).return_value == "sent"


def test_a_call_in_somebodys_own_code_is_a_call(shop: Shop) -> None:
    """Under no policy of a task, and inside one under that of its caller."""
    shop.server.play([BUSY, Answer(200)])
    with pytest.raises(requests.HTTPError):
        tasks_shop.send.call("order 1")
    assert tasks_shop.wrapped.func("order 2") == "sent"
    assert not DBTaskResult.objects.exists()


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["send", "wrapped"])
def test_one_key_is_one_call(shop: Shop, name: str) -> None:
    task = getattr(tasks_shop, name)
    shop.server.play([BUSY, Answer(200)])
    results = [task.enqueue("order 1", idempotency_key="order/1") for _ in range(2)]
    assert [shop.end_of(result).status for result in results] == ["SUCCESSFUL"] * 2
    assert (shop.server.complete, shop.record.phase) == (2, Phase.DONE)


def test_a_key_from_a_coroutine(shop: Shop) -> None:
    async def enqueue() -> None:
        await tasks_shop.at_once.aenqueue("order 1", idempotency_key="order/1")
        with pytest.raises(ConfigurationError):
            await tasks_shop.at_once.aenqueue("order 1", idempotency_key=1)

    asyncio.run(enqueue())
    assert (shop.server.complete, shop.record.phase) == (1, Phase.DONE)


@pytest.mark.parametrize("key", [1, b"order/1", "", "order\n1"])
def test_what_can_be_no_key_is_not_enqueued(shop: Shop, key: object) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        tasks_shop.send.enqueue("order 1", idempotency_key=key)
    assert not DBTaskResult.objects.exists()


def test_no_key_is_none(shop: Shop) -> None:
    assert shop.end_of(tasks_shop.send.enqueue("order 1", idempotency_key=None)).status == "SUCCESSFUL"


def test_what_can_be_no_key_fails_below_the_decorator(shop: Shop) -> None:
    last = shop.end_of(tasks_shop.wrapped.enqueue("order 1", idempotency_key=1))
    assert last.exception_class_path == "retrypolicy.errors.ConfigurationError"
    assert shop.server.complete == 0


@pytest.mark.parametrize("note", ["x", {"first": "a"}, {"first": "a", "after": "b", "since": "c", "cut": 0}])
def test_an_argument_of_ours_that_somebody_else_wrote(shop: Shop, note: object) -> None:
    last = shop.end_of(tasks_shop.send.enqueue("order 1", retrypolicy=note))
    assert last.exception_class_path == "retrypolicy.errors.ConfigurationError"
    assert shop.server.complete == 0


def test_a_parameter_that_the_task_would_not_get() -> None:
    with pytest.raises(ConfigurationError, match="idempotency_key is not allowed"):

        @with_policy(QUICK)
        def send(idempotency_key: str) -> None: ...


# -- unknown, in progress, over ---------------------------------------------------------------------------------------


def test_held_comes_back_until_its_lifetime_is_over(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with override_settings(RETRYPOLICY={"LEDGER": shop.ledger, "POLICIES": {"by name": QUICK.with_(lifetime=1.0)}}):
        shop.server.play([Close("request"), Answer(200)])
        result = tasks_shop.by_name.enqueue("order 1")
        last = shop.end_of(result)
    assert (last.status, last.exception_class_path) == ("FAILED", "retrypolicy.errors.SendHeld")
    assert (shop.server.complete, shop.record.phase) == (1, Phase.HELD)
    assert Counter.runs > 2


@pytest.mark.parametrize(("verdict", "sent"), [("applied", 1), ("not_applied", 2)])
def test_held_comes_back_until_it_is_resolved(shop: Shop, verdict: Any, sent: int) -> None:
    shop.server.play([Close("request"), Answer(200)])
    result = tasks_shop.send.enqueue("order 1", idempotency_key="order/1")
    shop.work(rounds=1)
    shop.work(rounds=1)
    record = shop.record
    assert record.phase is Phase.HELD
    assert shop.ledger.resolve(record.key, record.fence, verdict)
    assert shop.end_of(result).status == "SUCCESSFUL"
    assert (shop.server.complete, shop.record.phase) == (sent, Phase.DONE)


def test_another_one_has_the_call(shop: Shop) -> None:
    """The second copy waits for the first one, and is no failure."""
    shop.server.play([Answer(200, delay=0.5)])

    def first_copy() -> None:
        with requests.Session() as session, operation(key="order/1"):
            session.trust_env = False
            mount(session, QUICK.with_(guard=Guard(lease=0.6)), ledger=shop.ledger)
            session.post(shop.server.url(), data=b"order 1")

    first = threading.Thread(target=first_copy)
    first.start()
    wait_for(lambda: shop.server.requests)
    result = tasks_shop.send.enqueue("order 1", idempotency_key="order/1")
    shop.work(rounds=1)
    assert "another" in DBTaskResult.objects.get(pk=result.id).return_value[NOTE]["why"]
    first.join()
    assert shop.end_of(result).status == "SUCCESSFUL"
    assert (shop.server.complete, shop.record.phase, shop.record.attempts) == (1, Phase.DONE, 1)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_the_result(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shop.server.play(
        [Answer(422, body=b'{"message": "no jane@example.com"}', headers={"Content-Type": "application/json"})]
    )
    mailer = {"EMAIL_BACKEND": "retrypolicy.anymail.backends.resend.EmailBackend"}
    anymail = {"RESEND_API_KEY": "very-secret", "RESEND_API_URL": shop.server.url("/")}
    with override_settings(ANYMAIL=anymail, **mailer):
        last = shop.end_of(tasks_shop.by_mail.enqueue("jane@example.com"))
    assert shop.server.complete == 1
    assert last.exception_class_path == "retrypolicy.errors.SendFailed"
    assert "status 422" in last.traceback
    for text in (last.traceback, caplog.text):
        assert "very-secret" not in text
        assert "jane@example.com" not in text


def test_an_error_of_the_tasks_own_stays_what_it_is(shop: Shop) -> None:
    def also() -> None:
        raise KeyError("no such order")

    Counter.also = also
    last = shop.end_of(tasks_shop.send.enqueue("order 1"))
    assert (last.status, last.exception_class_path) == ("FAILED", "builtins.KeyError")
    assert Counter.runs == 1


def test_a_task_under_no_policy_is_as_any_other(shop: Shop) -> None:
    shop.server.play([BUSY])
    last = shop.end_of(tasks_shop.plain.enqueue("order 1"))
    assert (last.status, last.exception_class_path) == ("FAILED", "requests.exceptions.HTTPError")
    assert shop.server.complete == 1


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_a_worker_that_is_stopped_before_the_call(shop: Shop, error: BaseException) -> None:
    """Its task goes on elsewhere; one that ends each of its workers comes to an end."""

    def also() -> None:
        raise error

    Counter.also = also
    result = tasks_shop.send.enqueue("order 1")
    shop.work(rounds=1)
    assert DBTaskResult.objects.get(pk=result.id).status == "FAILED"
    Counter.also = lambda: None
    shop.work()
    assert [row.status for row in DBTaskResult.objects.order_by("enqueued_at")] == ["FAILED", "SUCCESSFUL"]
    Counter.also, Counter.runs = also, 0
    tasks_shop.send.enqueue("order 2")
    shop.work()
    assert (Counter.runs, shop.server.complete) == (QUICK.max_attempts, 1)


def test_a_policy_that_does_not_exist(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies, "tests.queues.tasks_shop.by_name", "by name")
    result = tasks_shop.by_name.enqueue("order 1")
    with override_settings(RETRYPOLICY={"LEDGER": shop.ledger}):
        with pytest.raises(ConfigurationError, match="'by name' is not allowed"):
            tasks_shop.by_name.enqueue("order 2")
        assert DBTaskResult.objects.count() == 1
        last = shop.end_of(result)
        assert (last.status, last.exception_class_path) == ("FAILED", "retrypolicy.errors.ConfigurationError")
        ids = [message.id for message in checks.run_checks(tags=["retrypolicy"])]
        assert "retrypolicy_tasks.E001" in ids
    assert shop.server.complete == 0


def test_checks(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, policy in {**OURS, "shop.tasks.endless": QUICK.with_(lifetime=None)}.items():
        monkeypatch.setitem(policies, path, policy)

    def said() -> list[Any]:
        return [message.id for message in checks.run_checks(tags=["retrypolicy"]) if "tasks" in str(message.id)]

    assert said() == ["retrypolicy_tasks.W001"]
    with override_settings(RETRYPOLICY={"POLICIES": {"by name": QUICK}}):
        assert said() == ["retrypolicy_tasks.W001", "retrypolicy_tasks.W002"]


# -- the queue is away ------------------------------------------------------------------------------------------------


@contextmanager
def read_only_queue() -> Iterator[None]:
    """The database takes no new task."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TRIGGER away BEFORE INSERT ON {TABLE} BEGIN SELECT RAISE(ABORT, 'away'); END")
        yield
        cursor.execute("DROP TRIGGER away")


def test_the_queue_is_away_when_a_task_wants_to_come_back(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="retrypolicy")
    shop.server.play([BUSY, Answer(200)])
    result = tasks_shop.send.enqueue("order 1")
    with read_only_queue():
        shop.work(rounds=1)
    row = DBTaskResult.objects.get()
    assert (row.status, row.exception_class_path) == ("FAILED", "retrypolicy.errors.NotPublished")
    [line] = [record.getMessage() for record in caplog.records if record.name == "retrypolicy"]
    assert "its queue did not take that" in line
    assert shop.record.phase is Phase.CLAIMED
    assert shop.record.not_before > 0
    [reaped] = reap()
    assert (reaped.fate, reaped.why) == ("ready", "its queue was away")
    assert shop.end_of(result).return_value == "sent"
    assert (shop.server.complete, shop.record.attempts) == (2, 2)


def test_a_connection_that_was_lost_in_a_long_run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out when the task wants to come back; then there is a new one."""
    shop.server.play([BUSY, Answer(200)])
    result = tasks_shop.send.enqueue("order 1")
    enqueue, lost = DatabaseBackend.enqueue, [OperationalError("gone away")]

    def once(*args: Any) -> Any:
        if lost:
            raise lost.pop()
        return enqueue(*args)

    monkeypatch.setattr(DatabaseBackend, "enqueue", once)
    assert shop.end_of(result).return_value == "sent"
    assert not lost


# -- rows of workers that are dead ------------------------------------------------------------------------------------


def dead(task: Any, *args: Any, deaths: int = 1, ago: float = 3600.0, **kwargs: Any) -> DBTaskResult:
    """A row as kill -9 leaves it."""
    row: DBTaskResult = task.enqueue(*args, **kwargs).db_result
    for number in range(deaths):
        row.claim(f"worker-{number}")
    DBTaskResult.objects.filter(pk=row.pk).update(started_at=timezone.now() - timedelta(seconds=ago))
    row.refresh_from_db()
    return row


def fates(**options: Any) -> list[str]:
    return [found.fate for found in reap(**options)]


def test_a_dead_workers_task_is_run_again(shop: Shop) -> None:
    row = dead(tasks_shop.send, "order 1")
    young = dead(tasks_shop.send, "order 2", ago=10)
    assert fates(dry_run=True) == ["ready"]
    assert DBTaskResult.objects.get(pk=row.pk).status == "RUNNING"
    assert fates() == ["ready"]
    assert fates() == []
    shop.work()
    assert DBTaskResult.objects.get(pk=row.pk).status == "SUCCESSFUL"
    assert DBTaskResult.objects.get(pk=young.pk).status == "RUNNING"
    assert shop.bodies == ["order 1"]


def test_a_task_that_kills_its_workers_comes_to_an_end(shop: Shop) -> None:
    row = dead(tasks_shop.send, "order 1", deaths=QUICK.max_attempts)
    assert fates() == ["failed"]
    row.refresh_from_db()
    assert (row.status, row.exception_class_path) == ("FAILED", "retrypolicy.errors.SendFailed")
    assert "was begun 3 times and never came to an end" in row.traceback
    assert row.finished_at is not None
    assert row.task_result.errors[0].exception_class.__name__ == "SendFailed"


@pytest.mark.parametrize("hop", [0, 1])
def test_a_worker_that_died_after_its_task_went_on(shop: Shop, hop: int) -> None:
    """The row ends; the task has gone on as another one."""
    shop.server.play([BUSY] * (hop + 1) + [Answer(200)])
    result = tasks_shop.send.enqueue("order 1")
    for _ in range(hop + 1):
        wait_for(lambda: DBTaskResult.objects.ready().exists())
        shop.work(rounds=1)
    row = DBTaskResult.objects.order_by("enqueued_at")[hop]
    DBTaskResult.objects.filter(pk=row.pk).update(status="RUNNING", return_value=None, finished_at=None)
    assert fates(older_than=0) == ["ended"]
    assert shop.end_of(result).return_value == "sent"
    assert (DBTaskResult.objects.count(), shop.server.complete) == (hop + 2, hop + 2)


def test_rows_that_are_not_ours_are_left_alone(shop: Shop) -> None:
    rows = [dead(tasks_shop.plain, "order 1"), dead(tasks_shop.by_name, "order 2"), dead(tasks_shop.send, "order 3")]
    DBTaskResult.objects.filter(pk=rows[2].pk).update(task_path="shop.gone.send")
    with override_settings(RETRYPOLICY={"LEDGER": shop.ledger}):
        found = reap()
        out = StringIO()
        with pytest.raises(CommandError, match="3 of 3 left alone"):
            call_command("retrypolicy_reap_tasks", stdout=out)
    assert [reaped.fate for reaped in found] == ["left alone"] * 3
    for text in ("under no policy", "'by name' is not allowed", "ModuleNotFoundError"):
        assert text in out.getvalue()
    assert set(DBTaskResult.objects.values_list("status", flat=True)) == {"RUNNING"}


def test_the_command(shop: Shop) -> None:
    out = StringIO()
    call_command("retrypolicy_reap_tasks", stdout=out)
    assert out.getvalue() == "nothing to do\n"
    row = dead(tasks_shop.send, "order 1", ago=60)
    call_command("retrypolicy_reap_tasks", "--older-than=30", stdout=(out := StringIO()))
    assert out.getvalue() == f"{row.pk}  tests.queues.tasks_shop.send  ready: its worker is dead\n"
    with pytest.raises(CommandError, match="must be seconds"):
        call_command("retrypolicy_reap_tasks", "--older-than=nan")


# -- backends that run nothing later ----------------------------------------------------------------------------------


def test_immediate(shop: Shop) -> None:
    shop.server.play([Answer(200), BUSY])
    assert tasks_shop.at_once.enqueue("order 1").return_value == "sent"
    result = tasks_shop.at_once.enqueue("order 2")
    assert (result.status, shop.server.complete) == ("FAILED", 2)
    [error] = result.errors
    assert error.exception_class_path == "retrypolicy.errors.SendFailed"
    assert "The task backend 'immediate' can't run a task later" in error.traceback
    Counter.also = lambda: sys.exit(1)
    assert tasks_shop.at_once.enqueue("order 3").errors[0].exception_class_path == "builtins.SystemExit"


def test_dummy(shop: Shop) -> None:
    result = tasks_shop.never.enqueue("order 1", idempotency_key="order/1")
    assert (result.status, result.kwargs) == ("READY", {"idempotency_key": "order/1"})
    assert (Counter.runs, shop.server.complete) == (0, 0)


# -- and besides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "said"),
    [(["django.tasks", "django_tasks"], "Django 6.0 or newer"), (["django_tasks_db"], "needs django-tasks-db")],
)
def test_what_is_needed_is_said(missing: list[str], said: str) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "import retrypolicy.queues.django_tasks as tasks\ntasks.DatabaseBackend"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: retrypolicy.queues.django_tasks")
    assert said in done.stderr
