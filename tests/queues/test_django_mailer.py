"""django-mailer under a policy: its own send_all(), Anymail's backends, a real server, and a clock that is moved."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import mailer as django_mailer
import pytest
from anymail.exceptions import AnymailRecipientsRefused
from anymail.message import AnymailMessage
from anymail.signals import post_send, pre_send
from django.conf import settings as django_settings
from django.contrib import admin
from django.core.checks import run_checks
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import connection as database
from django.db import transaction
from django.db.models.signals import post_save, pre_save
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from retrypolicy import RetryPolicy, operation
from retrypolicy.anymail import KEY_HEADER
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.ledger import Take, Taken
from retrypolicy.testing import Answer, Close, FaultServer, VirtualClock
from tests.anymail.sending import JSON, SECRET, ok

ROOT = Path(__file__).parents[2]
HERE = "retrypolicy.queues.django_mailer"
POSTMARK = "retrypolicy.anymail.backends.postmark.EmailBackend"
SETTINGS: dict[str, Any] = {
    "EMAIL_BACKEND": f"{HERE}.DbBackend",
    "MAILER_EMAIL_BACKEND": f"{HERE}.EmailBackend",
    "MAILER_ERROR_HANDLER": f"{HERE}.on_error",
}
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture(scope="module")
def apps() -> Iterator[None]:
    """A project with django-mailer in it; its tables are in the memory of this process."""
    with override_settings(INSTALLED_APPS=[*django_settings.INSTALLED_APPS, "mailer", HERE]):
        call_command("migrate", verbosity=0)
        models = {model for model in admin.site._registry if model._meta.app_label == "mailer"}
        yield
    admin.site.unregister(models)


class Queue:
    """The project: its queue, its ledger, and the server behind its provider."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.ledger = MemoryLedger(clock=clock)
        self.setting: dict[str, Any] = {"LEDGER": self.ledger, "DJANGO_MAILER": POSTMARK}
        self.server: FaultServer

    def answers(self, *script: Any) -> FaultServer:
        """A server; the provider is there as long as it is."""
        self.server = FaultServer(script)
        return self.server

    def send(self) -> None:
        """One run of `manage.py send_mail`."""
        keys = {"POSTMARK_SERVER_TOKEN": SECRET, "RESEND_API_KEY": SECRET, "MANDRILL_API_KEY": SECRET}
        urls = {f"{name}_API_URL": self.server.url("/") for name in ("POSTMARK", "RESEND", "MANDRILL")}
        with override_settings(ANYMAIL={**keys, **urls}):
            call_command("send_mail")

    def due(self, verbosity: int = 1) -> str:
        out = io.StringIO()
        call_command("retry_due", stdout=out, verbosity=verbosity)
        return out.getvalue().strip()

    def later(self, seconds: float) -> str:
        self.clock.advance(seconds)
        said = self.due()
        self.send()
        return said

    @property
    def subjects(self) -> list[str]:
        """What the provider got, in order."""
        return [json.loads(request.body)["Subject"] for request in self.server.requests if request.complete]

    @property
    def rows(self) -> list[Any]:
        from mailer.models import Message

        return list(Message.objects.order_by("pk"))

    @property
    def waiting(self) -> list[tuple[str, float]]:
        """What each message waits for, and how long yet."""
        from retrypolicy.queues.django_mailer.models import Deferral

        now = self.clock.now()
        return [(row.state, round(row.due - now)) for row in Deferral.objects.order_by("pk")]

    @property
    def log(self) -> list[tuple[str, str, bool]]:
        """What `MessageLog` says: the result, in what words, and is the message in it."""
        from mailer.models import MessageLog

        names = {"1": "sent", "3": "failed"}
        rows = MessageLog.objects.order_by("pk")
        return [(names[row.result], row.log_message, row.message_data is not None) for row in rows]


@pytest.fixture
def queue(apps: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Queue]:
    from mailer import engine
    from mailer.models import Message, MessageLog

    from retrypolicy.queues.django_mailer import handler

    queue = Queue(VirtualClock(time.time()))
    monkeypatch.setattr(engine, "LOCK_PATH", str(tmp_path / "send_mail"))
    monkeypatch.setattr("retrypolicy.engine.SystemClock", lambda: queue.clock)
    monkeypatch.setattr(handler, "clock", queue.clock)
    with override_settings(**SETTINGS, RETRYPOLICY=queue.setting):
        yield queue
    Message.objects.all().delete()
    MessageLog.objects.all().delete()


def message(subject: str = "one", **attributes: Any) -> EmailMessage:
    made = EmailMessage(subject, "A secret body", "shop@example.com", ["ann@example.com"])
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


OK = ok("postmark")
REFUSED = Answer(422, headers=JSON, body=b'{"ErrorCode": 300, "Message": "no such"}')

INACTIVE = Answer(
    422,
    headers=JSON,
    body=b'{"ErrorCode": 406, "Message": "Found inactive addresses: ann@example.com. Inactive recipients are"}',
)


def later(seconds: float) -> Answer:
    return Answer(503, headers={"Retry-After": str(seconds)})


# -- what stock django-mailer does, for the table in the docs


@pytest.fixture
def disk_full() -> Iterator[None]:
    """A receiver of Anymail's that fails when the provider has the message already."""

    def receiver(**kwargs: Any) -> None:
        raise OSError("no space left for ann@example.com")

    post_send.connect(receiver)
    yield
    post_send.disconnect(receiver)


@pytest.fixture
def stock(queue: Queue) -> Iterator[Queue]:
    with override_settings(
        EMAIL_BACKEND="mailer.backend.DbBackend",
        MAILER_EMAIL_BACKEND="anymail.backends.postmark.EmailBackend",
        MAILER_ERROR_HANDLER="mailer.engine.handle_delivery_exception",
    ):
        yield queue


@pytest.mark.parametrize(
    ("answers", "sent"),
    [
        ([Close("request"), OK], 2),  # an unknown outcome
        ([REFUSED, REFUSED, REFUSED], 3),  # refused for good
        ([later(3600), OK], 2),  # at once, whatever the server says
    ],
    ids=["unknown", "refused", "told to wait"],
)
def test_stock_sends_again(stock: Queue, answers: list[Any], sent: int) -> None:
    message("one").send()
    with stock.answers(*answers):
        for _ in range(3):
            stock.send()
            call_command("retry_deferred")
        assert stock.subjects == ["one"] * sent


def test_stock_sends_again_after_a_receiver_failed(stock: Queue, disk_full: None) -> None:
    message("one").send()
    with stock.answers(OK):
        for _ in range(2):
            stock.send()
            call_command("retry_deferred")
        assert stock.subjects == ["one"] * 2


def test_stock_stops_at_the_first_message_that_anymail_refuses(stock: Queue) -> None:
    message("one").send()
    message("two").send()
    with stock.answers(INACTIVE, OK):
        with pytest.raises(AnymailRecipientsRefused):
            stock.send()
        assert stock.subjects == ["one"]
    assert len(stock.rows) == 2


def test_stock_keeps_the_key_in_its_log(stock: Queue) -> None:
    from mailer.models import MessageLog

    message().send()
    with stock.answers(OK):
        stock.send()
    assert SECRET.encode() in base64.b64decode(MessageLog.objects.get().message_data)


# -- into the queue


def test_a_message_is_queued_and_sent(queue: Queue) -> None:
    caller = message(idempotency_key="receipt/42")
    assert caller.send() == 1
    assert caller.extra_headers == {}
    [row] = queue.rows
    assert row.email.extra_headers.keys() == {KEY_HEADER, "Message-ID"}
    assert row.email.extra_headers[KEY_HEADER] == "receipt/42"
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == ["one"]
        sent = str(queue.server.requests[0].body)
    assert row.email.extra_headers["Message-ID"] in sent
    assert KEY_HEADER.lower() not in sent.lower()
    assert queue.rows == []
    assert [entry[0] for entry in queue.log] == ["sent"]
    assert queue.ledger.counts() == {Phase.DONE: 1}


def test_each_message_has_a_key_of_its_own(queue: Queue) -> None:
    caller = message()
    caller.send()
    caller.send()
    with operation(key="order/1", label="order 1", not_after=queue.clock.now() + 60):
        message().send()
    keys = [row.email.extra_headers[KEY_HEADER] for row in queue.rows]
    assert len(set(keys)) == 3
    assert keys[2] == "order/1"
    assert queue.rows[2].email.retry_label == "order 1"
    assert queue.rows[2].email.not_after == queue.clock.now() + 60


def test_one_key_is_one_message(queue: Queue) -> None:
    with transaction.atomic():
        for _ in range(2):
            message(idempotency_key="receipt/42").send()
    assert len(queue.rows) == 2
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == ["one"]
    assert queue.rows == []


def test_keys_by_content(queue: Queue) -> None:
    queue.setting["KEYS"] = "content"
    for subject in ("one", "one", "two"):
        message(subject).send()
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == ["one", "two"]


def test_django_mailers_own_functions(queue: Queue) -> None:
    django_mailer.send_mail("plain", "Hello", "shop@example.com", ["ann@example.com"])
    django_mailer.send_html_mail("html", "Hello", "<b>Hello</b>", "shop@example.com", ["ann@example.com"])
    first = [row.email.extra_headers[KEY_HEADER] for row in queue.rows]
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == ["plain", "html"]
    assert len(set(first)) == 2


def test_a_queue_that_was_full_before(queue: Queue) -> None:
    """Messages without a key: the first run gives them one, the second sends them."""
    with override_settings(EMAIL_BACKEND="mailer.backend.DbBackend"):
        message("old", idempotency_key="old/1").send()
        message("older").send()
        message("bad key", idempotency_key=42).send()
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == []
        queue.send()
        assert queue.subjects == ["old", "older"]
        assert len(queue.rows) == 1
        queue.later(2 * DAY)
    assert queue.rows == []
    assert queue.log[-1][1:] == ("message.idempotency_key: int is not allowed; must be a str", True)


def test_a_key_that_can_not_be_is_said_at_once(queue: Queue) -> None:
    with pytest.raises(ConfigurationError, match="idempotency_key"):
        message(idempotency_key=42).send()
    assert queue.rows == []


# -- what becomes of it


def test_retried_when_it_is_due(queue: Queue) -> None:
    """One key, one Message-ID, its priority, and not before the provider said."""
    message().send()
    queue.rows[0].__class__.objects.update(priority=1)
    with queue.answers(later(30), OK):
        queue.send()
        assert queue.waiting == [("retry", 30)]
        assert queue.rows[0].priority == 4
        assert queue.due() == "0 message(s) due; waiting: 1 to be sent"
        assert queue.due(verbosity=0) == ""
        assert queue.later(31) == "1 message(s) due; waiting: none"
        bodies = [json.loads(request.body) for request in queue.server.requests]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert (queue.rows, queue.waiting) == ([], [])
    assert [entry[0] for entry in queue.log] == ["failed", "sent"]
    assert "status 503" in queue.log[0][1]
    assert queue.log[0][2] is False


def test_its_priority_comes_back(queue: Queue) -> None:
    message().send()
    queue.rows[0].__class__.objects.update(priority=1)
    with queue.answers(later(30)):
        queue.send()
        for count in (1, 2):
            queue.clock.advance(40)
            queue.due()
            [row] = queue.rows
            assert (row.priority, row.retry_count) == (1, count)
            queue.send()
            assert queue.rows[0].priority == 4


def test_the_administrator_can_not_hurry_it(queue: Queue) -> None:
    """django-mailer's `retry_deferred`, and "send messages" in its admin, only look: the ledger knows best."""
    from mailer.engine import send_all
    from mailer.models import Message

    message().send()
    with queue.answers(later(30), OK):
        queue.send()
        call_command("retry_deferred")
        queue.send()
        assert queue.waiting == [("retry", 30)]
        with override_settings(ANYMAIL={"POSTMARK_SERVER_TOKEN": SECRET, "POSTMARK_API_URL": queue.server.url("/")}):
            send_all(Message.objects.all())
        assert len(queue.subjects) == 1
        queue.later(31)
        assert len(queue.subjects) == 2
    assert queue.rows == []


def test_refused_for_good(queue: Queue) -> None:
    """It leaves the queue for the log, whole; the next one is sent in the same run."""
    message("one").send()
    message("two").send()
    with queue.answers(REFUSED, OK), override_settings(MAILER_EMAIL_LOG_MESSAGE_DATA=False):
        queue.send()
        assert queue.subjects == ["one", "two"]
    assert queue.rows == []
    (result, text, whole), sent = queue.log
    assert (result, whole) == ("failed", True)
    assert text.startswith("AnymailRequestsAPIError: status 422")
    assert sent == ("sent", "", False)


def test_recipients_refused(queue: Queue) -> None:
    """Stock django-mailer ends here, and never comes past this message."""
    message("one").send()
    message("two").send()
    with queue.answers(INACTIVE, OK):
        queue.send()
        assert queue.subjects == ["one", "two"]
    assert queue.rows == []
    assert [entry[0] for entry in queue.log] == ["failed", "sent"]
    assert queue.log[0][1].startswith("AnymailRecipientsRefused")


def test_unsupported(queue: Queue) -> None:
    """Anymail finds that the provider can't do it, before anything is sent."""
    made = AnymailMessage("one", "Hello", "shop@example.com", ["ann@example.com"], send_at=queue.clock.now())
    made.send()
    message("two").send()
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == ["two"]
    assert [entry[:2] for entry in queue.log] == [("failed", "AnymailUnsupportedFeature"), ("sent", "")]


def test_held_until_its_lifetime_is_over(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    message("one", retry_label="receipt 42").send()
    with queue.answers(Close("request"), OK):
        queue.send()
        assert queue.waiting == [("held", 60)]
        waits = []
        while queue.rows:
            said = queue.later(queue.waiting[0][1] + 1.0)
            assert said == "1 message(s) due; waiting: none"
            waits += [wait for _, wait in queue.waiting]
            assert len(waits) < 60
        assert queue.subjects == ["one"]
    assert waits[:3] == [61, 123, 247]
    assert max(waits) == HOUR
    assert DAY - 2 * HOUR < sum(waits) < DAY
    # One line for the attempt, one for the end: looking is no attempt.
    assert [entry[::2] for entry in queue.log] == [("failed", False), ("failed", True)]
    assert "Resolve it" in queue.log[1][1]
    assert queue.ledger.counts() == {Phase.HELD: 1}
    assert "is given up" in caplog.text


@pytest.mark.parametrize(("arrived", "sent"), [(True, 1), (False, 2)])
def test_held_until_it_is_resolved(queue: Queue, arrived: bool, sent: int) -> None:
    message().send()
    with queue.answers(Close("request"), OK):
        queue.send()
        queue.later(61)
        assert queue.waiting == [("held", 61)]
        [record] = queue.ledger.records()
        verdict = "applied" if arrived else "not_applied"
        call_command("retrypolicy", "resolve", verdict, "--all", stdout=io.StringIO())
        assert record.phase is Phase.HELD
        queue.later(62)
        assert len(queue.subjects) == sent
    assert queue.rows == []


def test_a_provider_that_honours_keys(queue: Queue) -> None:
    """Nothing is held: it is sent again under the same key."""
    queue.setting["DJANGO_MAILER"] = "retrypolicy.anymail.backends.resend.EmailBackend"
    message(idempotency_key="receipt/42").send()
    with queue.answers(Close("request"), ok("resend")):
        queue.send()
        queue.later(60)
        keys = [dict(request.headers).get("Idempotency-Key") for request in queue.server.requests]
        bodies = {request.body for request in queue.server.requests}
    assert keys == ["receipt/42"] * 2
    assert len(bodies) == 1
    assert queue.rows == []


def test_another_sender_has_it(queue: Queue) -> None:
    """It waits for that one's lease. That is no failure."""
    message().send()
    with queue.answers(later(30), OK):
        queue.send()
        queue.clock.advance(31)
        queue.due()
        [record] = queue.ledger.records()
        other = {"owner": b"another sender", "token": b"its token", "fingerprint": record.fingerprint}
        assert isinstance(queue.ledger.claim(Take(key=record.key, lease=90.0, **other)), Taken)
        queue.send()
        assert queue.waiting == [("wait", 90)]
        assert queue.due() == "0 message(s) due; waiting: 1 in another sender's hands"
        assert len(queue.log) == len(queue.subjects) == 1
        queue.later(91)
        assert len(queue.subjects) == 2
    assert queue.rows == []


def test_no_ledger_for_now(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    message("one").send()
    message("two").send()

    def away(*args: Any) -> Any:
        raise LedgerUnavailable("no connection")

    with queue.answers(OK):
        with monkeypatch.context() as broken:
            broken.setattr(queue.ledger, "claim", away)
            broken.setattr(queue.ledger, "arm", away)
            queue.send()
        assert queue.subjects == []
        assert queue.waiting == [("retry", 5)] * 2
        queue.later(6)
        assert queue.subjects == ["one", "two"]
    assert [entry[0] for entry in queue.log] == ["sent", "sent"]


def test_a_provider_that_is_away_for_a_day(queue: Queue) -> None:
    """There are attempts enough, and it gets every message when it is back."""
    message("one").send()
    busy = [Answer(429)]
    with queue.answers(lambda request: busy[0]):
        queue.send()
        for _ in range(22):
            queue.later(HOUR)
        assert len(queue.subjects) > 22
        assert len(queue.rows) == 1
        busy[:] = [OK]
        queue.later(HOUR)
    assert queue.rows == []
    assert queue.log[-1][0] == "sent"


# -- what else may go wrong


def told(caplog: pytest.LogCaptureFixture) -> str:
    return "".join(record.getMessage() for record in caplog.records if record.name.startswith("retrypolicy"))


def test_a_receiver_that_fails(queue: Queue, disk_full: None, caplog: pytest.LogCaptureFixture) -> None:
    """Stock django-mailer sends such a message again and again, if the error happens to be an OSError."""
    message("one").send()
    with queue.answers(OK):
        queue.send()
        assert queue.rows == []
        assert queue.subjects == ["one"]
    assert [entry[0] for entry in queue.log] == ["sent"]
    assert "(OSError)" in told(caplog)
    assert "ann@" not in told(caplog)


def test_a_receiver_that_fails_and_nobody_got_it(queue: Queue, disk_full: None) -> None:
    queue.setting["DJANGO_MAILER"] = "retrypolicy.anymail.backends.mandrill.EmailBackend"
    refusal = [{"email": "ann@example.com", "status": "rejected", "_id": "1"}]
    message("one").send()
    with queue.answers(Answer(200, headers=JSON, body=json.dumps(refusal).encode())):
        queue.send()
        assert queue.server.complete == 1
    assert queue.rows == []
    assert queue.log == [("failed", "AnymailRecipientsRefused", True)]


def test_a_receiver_that_fails_before(queue: Queue) -> None:
    """It is no fault of the message's: it waits, and is sent when the receiver is well again."""

    def broken(**kwargs: Any) -> None:
        raise RuntimeError("a secret")

    message("one").send()
    pre_send.connect(broken)
    try:
        with queue.answers(OK):
            queue.send()
            assert queue.waiting == [("retry", 5)]
            queue.later(6)
            assert queue.waiting == [("retry", 6)]
            pre_send.disconnect(broken)
            queue.later(7)
            assert queue.subjects == ["one"]
    finally:
        pre_send.disconnect(broken)
    assert "a secret" not in str(queue.log)


def test_a_receiver_that_never_gets_well(queue: Queue) -> None:
    def broken(**kwargs: Any) -> None:
        raise RuntimeError("a secret")

    message("one").send()
    pre_send.connect(broken)
    try:
        with queue.answers(OK):
            queue.send()
            queue.later(2 * DAY)
            assert queue.subjects == []
    finally:
        pre_send.disconnect(broken)
    assert queue.rows == []
    assert queue.log == [("failed", "RuntimeError", True)]


class Gone(EmailMessage):
    """A class that a new release of the project has no more."""


def unreadable(kind: str) -> Any:
    """A row that can't be unpickled, in one of the ways in which that fails."""
    from mailer.models import Message

    data = {
        "class": base64.encodebytes(pickle.dumps(Gone("gone")).replace(b"Gone", b"Gine")).decode(),
        "module": base64.encodebytes(pickle.dumps(Gone("gone")).replace(b"test_django_mailer", b"test_django_miller")),
        "cut": base64.encodebytes(pickle.dumps(message())[:-30]).decode(),
        "no message": base64.encodebytes(pickle.dumps({"subject": "one"})).decode(),
        "None": base64.encodebytes(pickle.dumps(None)).decode(),
        "text": "no pickle",
        "empty": "",
    }[kind]
    data = data.decode() if isinstance(data, bytes) else data
    return Message.objects.create(message_data=data, priority=1)


@pytest.mark.parametrize("kind", ["class", "module", "cut", "no message", "None", "text", "empty"])
def test_poison(queue: Queue, kind: str) -> None:
    """It does not stop the queue, it is not sent, it is not lost."""
    row = unreadable(kind)
    message("two").send()
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == ["two"]
        for _ in range(3):
            queue.later(2 * DAY)
    [left] = queue.rows
    assert (left.pk, left.message_data) == (row.pk, row.message_data)
    assert queue.waiting == [("unreadable", HOUR)]
    assert queue.due() == "0 message(s) due; waiting: 1 can't be unpickled"


def test_poison_that_is_cured(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment half way: its class comes back."""
    import sys

    this = sys.modules[Gone.__module__]
    Gone("gone", "Hello", "shop@example.com", ["ann@example.com"]).send()
    with queue.answers(OK):
        with monkeypatch.context() as away:
            away.delattr(this, "Gone")
            queue.send()
            assert queue.waiting == [("unreadable", 5)]
        queue.later(6)
        assert queue.subjects == ["gone"]
    assert queue.rows == []


def test_an_administrator_may_delete_it(queue: Queue) -> None:
    row = unreadable("text")
    row.delete()
    assert queue.rows == []


@pytest.mark.parametrize("signal", [pre_save, post_save], ids=["before", "after"])
def test_the_database_fails_after_the_message_was_sent(queue: Queue, signal: Any) -> None:
    """Stock django-mailer ends with a RuntimeError, and sends it twice."""
    from django.db import OperationalError
    from mailer.models import MessageLog

    def locked(**kwargs: Any) -> None:
        raise OperationalError("database is locked")

    message("one").send()
    message("two").send()
    with queue.answers(OK):
        signal.connect(locked, sender=MessageLog)
        try:
            queue.send()
            assert queue.subjects == ["one", "two"]
        finally:
            signal.disconnect(locked, sender=MessageLog)
        queue.later(6)
        assert queue.subjects == ["one", "two"]
    assert queue.rows == []
    assert {entry[0] for entry in queue.log} == {"sent"}


@pytest.mark.parametrize("signal", [pre_save, post_save], ids=["before", "after"])
def test_the_database_fails_when_a_message_is_put_off(queue: Queue, signal: Any) -> None:
    """It stays as it was, and the next one has its turn."""
    from django.db import OperationalError

    from retrypolicy.queues.django_mailer.models import Deferral

    def locked(**kwargs: Any) -> None:
        raise OperationalError("database is locked")

    message("one").send()
    message("two").send()
    with queue.answers(later(30), OK):
        signal.connect(locked, sender=Deferral)
        try:
            queue.send()
        finally:
            signal.disconnect(locked, sender=Deferral)
        assert queue.subjects == ["one", "two"]
        [row] = queue.rows
        assert (row.email.subject, row.priority) == ("one", 2)
        queue.send()
        assert queue.waiting == [("retry", 30)]
        assert queue.subjects == ["one", "two"]


def test_no_secret_is_kept(queue: Queue) -> None:
    """Neither of a message that is sent, nor of one that was sent before it was queued, nor of one that was refused."""
    from mailer.models import MessageLog

    caller = AnymailMessage("one", "Hello", "shop@example.com", ["ann@example.com"])
    with queue.answers(OK, OK, REFUSED):
        backend = {"POSTMARK_SERVER_TOKEN": SECRET, "POSTMARK_API_URL": queue.server.url("/")}
        with override_settings(EMAIL_BACKEND="anymail.backends.postmark.EmailBackend", ANYMAIL=backend):
            caller.send()
        assert SECRET in str(caller.anymail_status.esp_response.request.headers)
        caller.connection = None
        caller.send()
        message("two").send()
        rows = [row.message_data for row in queue.rows]
        queue.send()
        assert queue.subjects == ["one", "one", "two"]
    rows += [row.message_data for row in MessageLog.objects.all()]
    assert [entry[0] for entry in queue.log] == ["sent", "failed"]
    for data in rows:
        assert SECRET.encode() not in base64.b64decode(data)
    assert MessageLog.objects.first().email.anymail_status.message_id is not None
    assert caller.anymail_status.esp_response is not None


def test_a_backend_that_can_not_be(queue: Queue) -> None:
    """No message can be sent, so that all stay as they are, and the command says why."""
    message().send()
    queue.setting["DJANGO_MAILER"] = "anymail.backends.postmark.EmailBackend"
    with queue.answers(OK), pytest.raises(ConfigurationError, match="must be a backend with RetryMixin"):
        queue.send()
    [row] = queue.rows
    assert row.priority == 2
    assert queue.log == []


def test_failover(queue: Queue) -> None:
    queue.setting["FAILOVER"] = ["retrypolicy.anymail.backends.resend.EmailBackend", POSTMARK]
    queue.setting["DJANGO_MAILER"] = "retrypolicy.anymail.failover.EmailBackend"
    message().send()
    with queue.answers(lambda request: Answer(429) if request.target == "/emails" else OK):
        queue.send()
        assert queue.server.requests[0].target == "/emails"
        assert queue.server.requests[-1].target == "/email"
    assert queue.rows == []


# -- the lock


def test_a_lock_whose_owner_is_dead(queue: Queue) -> None:
    from mailer import engine

    from retrypolicy.queues.django_mailer import lock

    message().send()
    _, made = engine.acquire_lock()  # and then it dies
    file = Path(lock.lock_file())
    os.rename(made.unique_name, file.with_name("another process"))
    other = file.with_name("something else")
    other.touch()
    with queue.answers(OK):
        queue.send()
        assert queue.subjects == []
        assert queue.due() == "0 message(s) due; waiting: none"  # it may have been taken this moment
        os.utime(file, (0, 0))
        assert queue.due() == f"removed a stale lock: {file}\n0 message(s) due; waiting: none"
        assert list(file.parent.iterdir()) == [other]
        queue.send()
        assert queue.subjects == ["one"]
    assert not file.exists()


def test_a_lock_whose_owner_is_alive(queue: Queue) -> None:
    from retrypolicy.queues.django_mailer import lock

    seen: list[str] = []

    def meanwhile(**kwargs: Any) -> None:
        os.utime(lock.lock_file(), (0, 0))
        seen.append(queue.due())

    message().send()
    pre_send.connect(meanwhile)
    try:
        with queue.answers(OK):
            queue.send()
    finally:
        pre_send.disconnect(meanwhile)
    assert seen == ["0 message(s) due; waiting: none"]
    assert not Path(lock.lock_file()).exists()


def test_no_lock(queue: Queue) -> None:
    from retrypolicy.queues.django_mailer import lock

    os.close(os.open(lock.lock_file(), os.O_CREAT))
    os.utime(lock.lock_file(), (0, 0))
    with override_settings(MAILER_USE_FILE_LOCK=False):
        assert queue.due() == "0 message(s) due; waiting: none"
    assert Path(lock.lock_file()).exists()


# -- how much work it is


def test_retry_due_takes_the_same_queries_for_any_number(queue: Queue) -> None:
    from mailer.models import Message

    from retrypolicy.queues.django_mailer.models import Deferral

    counts = []
    for number in (1, 50):
        rows = Message.objects.bulk_create([Message(email=message(), priority=4) for _ in range(2 * number)])
        Deferral.objects.bulk_create(
            [
                Deferral(pk=row.pk, since=0.0, due=queue.clock.now() + (60 if early else -60), priority=3, state="held")
                for row, early in zip(rows, [True, False] * number, strict=True)
            ]
        )
        with CaptureQueriesContext(database) as queries:
            assert queue.due().startswith(f"{number} message(s) due")
        counts.append(len(queries))
        assert not any("message_data" in query["sql"] for query in queries)
    assert counts == [2, 2]
    assert Message.objects.filter(priority=3).count() == 51


# -- settings


def ids(**changes: Any) -> set[str]:
    with override_settings(**changes):
        found = run_checks(tags=["retrypolicy"])
    assert all(message.hint for message in found)
    return {str(message.id).removeprefix("retrypolicy.") for message in found}


def test_checks(queue: Queue) -> None:
    durable = {"LEDGER": "redis://127.0.0.1:1/0", "DJANGO_MAILER": POSTMARK}
    assert ids(RETRYPOLICY=durable) == set()
    assert ids(RETRYPOLICY=durable, MAILER_EMAIL_BACKEND="anymail.backends.postmark.EmailBackend") == {"E022"}
    assert ids(RETRYPOLICY=durable, MAILER_ERROR_HANDLER="mailer.engine.handle_delivery_exception") == {"E023"}
    assert ids(RETRYPOLICY=durable, EMAIL_BACKEND="mailer.backend.DbBackend") == {"W021"}
    assert "W022" in ids(RETRYPOLICY={"DJANGO_MAILER": POSTMARK})
    endless = {"BACKEND": POSTMARK, "OPTIONS": {"retry_policy": RetryPolicy()}}
    assert ids(RETRYPOLICY={**durable, "DJANGO_MAILER": endless}) == {"W023"}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        42,
        {"OPTIONS": {}},
        "nowhere.EmailBackend",
        "anymail.backends.postmark.EmailBackend",
        {"BACKEND": POSTMARK, "OPTIONS": {"retry_policy": "none"}},
        {"BACKEND": POSTMARK, "OPTIONS": {"retry_ledger": "nowhere"}},
    ],
    ids=str,
)
def test_check_of_the_backend(queue: Queue, wrong: Any) -> None:
    assert "E024" in ids(RETRYPOLICY={"LEDGER": "redis://127.0.0.1:1/0", "DJANGO_MAILER": wrong})


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")
def test_mailers(queue: Queue) -> None:
    """django-mailer 2.3 would take messages, and never send them: it is said by the check, and to whoever queues."""
    mailers = {"default": {"BACKEND": f"{HERE}.DbBackend"}}
    changes = {"RETRYPOLICY": {"LEDGER": "redis://127.0.0.1:1/0", "DJANGO_MAILER": POSTMARK}, "MAILERS": mailers}
    assert ids(**changes) == {"E021"}
    with override_settings(**changes), pytest.raises(ConfigurationError, match="can't send where the setting MAILERS"):
        message().send()
    assert queue.rows == []


def test_every_id_is_in_the_docs() -> None:
    source = (ROOT / "retrypolicy/queues/django_mailer/checks.py").read_text(encoding="utf-8")
    made = set(re.findall(r'"(?:retrypolicy\.)?([EWI]\d{3})"', source))
    page = (ROOT / "docs/django-mailer.md").read_text(encoding="utf-8")
    assert made == set(re.findall(r"^\| `retrypolicy\.([EWI]\d{3})`", page, re.MULTILINE))


def test_the_migration_is_complete(apps: None) -> None:
    call_command("makemigrations", "retrypolicy_django_mailer", check=True, dry_run=True, stdout=io.StringIO())
