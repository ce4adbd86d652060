"""The outbox: rows that belong to the caller's transaction, and what becomes of them. Ground truth is the server's."""

from __future__ import annotations

import contextlib
import io
import threading
import unittest
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import django
import django.test
import pytest
from django.core import mail as django_mail
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connections, router, transaction
from django.test import override_settings

from retrypolicy import Constant, Guard, RetryPolicy, operation
from retrypolicy.anymail import RetryMixin
from retrypolicy.clock import VirtualClock
from retrypolicy.django import outbox, settings
from retrypolicy.django.delivery import look
from retrypolicy.django.models import OutboxMessage
from retrypolicy.errors import ConfigurationError, KeyReused, SendHeld
from retrypolicy.guard import MemoryLedger, Phase, upkeep
from retrypolicy.guard.key import find
from retrypolicy.step import GiveUp, Held, RetryAt, Settled
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.sending import JSON, SECRET, mail, ok

pytestmark = pytest.mark.usefixtures("database")

POSTMARK = "retrypolicy.anymail.backends.postmark.EmailBackend"
POLICY = RetryPolicy(
    name="mail", max_attempts=4, max_wait=0.0, lifetime=86400.0, backoff=Constant(seconds=30.0), guard=Guard(lease=5.0)
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """That of the outbox and of the ledger; the engine keeps the real time."""
    import time

    made = VirtualClock(time.time())
    monkeypatch.setattr(outbox, "clock", made)
    return made


@pytest.fixture
def ledger(clock: VirtualClock) -> MemoryLedger:
    return MemoryLedger(clock=clock)


@pytest.fixture(autouse=True)
def setting(project: dict[str, Any], clock: VirtualClock) -> Iterator[dict[str, Any]]:
    project["POLICIES"] = {"mail": POLICY}
    project["OUTBOX"] = {"POLICY": "mail"}
    yield project
    OutboxMessage.objects.all().delete()


class Shop:
    """A server, and settings that send to it."""

    def __init__(self, script: Any) -> None:
        self.server = FaultServer(script)

    def __enter__(self) -> FaultServer:
        server = self.server.__enter__()
        anymail = {"POSTMARK_SERVER_TOKEN": SECRET, "POSTMARK_API_URL": server.url("/")}
        self.settings = override_settings(EMAIL_BACKEND=POSTMARK, ANYMAIL=anymail)
        self.settings.enable()
        return server

    def __exit__(self, *error: object) -> None:
        self.settings.disable()
        self.server.__exit__(None, None, None)


@contextlib.contextmanager
def sharing() -> Iterator[Any]:
    """The database in memory for a thread of the server, too, while this thread waits for its answer."""
    connection = connections["default"]

    @contextlib.contextmanager
    def shared() -> Iterator[None]:
        own = connections["default"]
        connections["default"] = connection
        yield
        connections["default"] = own

    connection.inc_thread_sharing()
    yield shared
    connection.dec_thread_sharing()


def rows() -> list[tuple[str, str]]:
    return [(row.key, row.get_state_display()) for row in OutboxMessage.objects.order_by("pk")]


def steps(**options: Any) -> list[type]:
    return [type(found.step) for found in outbox.sweep(**options)]


# -- the transaction ----------------------------------------------------------------------------


def test_it_is_sent_after_commit_and_gone() -> None:
    with Shop([ok("postmark")]) as server:
        with transaction.atomic():
            assert outbox.put(mail(), key="receipt/42") == "receipt/42"
            assert rows() == [("receipt/42", "waiting")]
            assert server.complete == 0
        assert server.complete == 1
        assert rows() == []
        assert steps() == []


def test_it_goes_with_the_rollback() -> None:
    with Shop([]) as server:
        with transaction.atomic():
            outbox.put(mail(), key="receipt/42")
            transaction.set_rollback(True)
        assert rows() == []
        assert steps() == []
        assert server.complete == 0


def test_on_postgres_too(on_postgres: str) -> None:
    with Shop([ok("postmark")]) as server:
        with transaction.atomic(using=on_postgres):
            outbox.put(mail(), key="receipt/41", using=on_postgres)
            transaction.set_rollback(True, using=on_postgres)
        with transaction.atomic(using=on_postgres):
            outbox.put(mail(), key="receipt/42", using=on_postgres)
            outbox.put(mail(), key="receipt/42", using=on_postgres)  # breaks no transaction
            with pytest.raises(KeyReused):
                outbox.put(mail(body="Other"), key="receipt/42", using=on_postgres)
            assert OutboxMessage.objects.using(on_postgres).count() == 1
        assert server.complete == 1
        assert OutboxMessage.objects.using(on_postgres).count() == 0
        assert rows() == []


def test_without_a_transaction_it_is_sent_at_once() -> None:
    with Shop([ok("postmark")]) as server:
        outbox.put(mail())
        assert (server.complete, rows()) == (1, [])


def test_it_can_not_be_sent_from_inside_a_transaction() -> None:
    with Shop([]) as server, transaction.atomic():
        outbox.put(mail(), key="k")
        with pytest.raises(ConfigurationError, match="inside a transaction"):
            outbox.send("k")
        with pytest.raises(ConfigurationError, match="inside a transaction"):
            list(outbox.sweep())
        assert server.complete == 0
        transaction.set_rollback(True)


# -- keys ---------------------------------------------------------------------------------------


def test_its_key_is_the_key_of_the_send(ledger: MemoryLedger) -> None:
    with Shop([ok("postmark")]):
        outbox.put(mail(), key="receipt/42")
    record, _ = find(ledger, settings.the_secret(), "receipt/42")
    assert record is not None
    assert record.phase is Phase.DONE


def test_a_second_put_is_no_second_message() -> None:
    with Shop([ok("postmark")]) as server:
        with transaction.atomic():
            outbox.put(mail(), key="receipt/42")
            outbox.put(mail(), key="receipt/42")
            assert len(rows()) == 1
        outbox.put(mail(), key="receipt/42")  # the row is gone; the ledger is not
        assert (server.complete, rows()) == (1, [])


def test_where_a_key_comes_from() -> None:
    with transaction.atomic():
        assert outbox.put(mail(idempotency_key="own")) == "own"
        assert outbox.put(mail(idempotency_key="own"), key="given") == "given"
        message = mail()
        assert outbox.put(message) == outbox.put(message)  # made up, and kept on the message
        with operation(key="job/7", label="job 7", not_after=1_900_000_000.0):
            assert outbox.put(mail()) == "job/7"
        row = OutboxMessage.objects.get(key="job/7")
        assert (row.label, '"not_after": 1900000000.0' in row.content) == ("job 7", True)
        with operation(scope="task/1"):
            first = outbox.put(mail())
        with operation(scope="task/1"):
            assert outbox.put(mail()) == first  # the job ran again
        assert len(rows()) == 5
        transaction.set_rollback(True)


def test_a_key_with_an_address_is_a_hash_and_the_guard_knows_it(ledger: MemoryLedger) -> None:
    with Shop([ok("postmark")]) as server:
        key = outbox.put(mail(), key="reset/ann@example.com")
        assert key.startswith("sha256-")
        outbox.put(mail(), key="reset/ann@example.com")
        assert server.complete == 1


# -- what can't be put --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "options", "said"),
    [
        (mail(esp_extra={"a": object()}), {}, "message.esp_extra: object can't be stored"),
        ("no message", {}, "message: str is not allowed; must be an EmailMessage"),
        (mail(), {"key": 42}, "key: int is not allowed; must be a str"),
        (mail(), {"key": " "}, "an empty key is not allowed"),
        (mail(idempotency_key=42), {}, "message.idempotency_key: int is not allowed"),
        (mail(not_after="soon"), {}, "message.not_after: str is not allowed"),
        (mail(), {"policy": "none"}, "retry policy: 'none' is not allowed"),
        (mail(), {"policy": POLICY}, "policy: RetryPolicy can't be stored; must be the name of a policy"),
        (mail(), {"mailer": "nobody"}, "mailer: 'nobody' is not allowed"),
    ],
)
def test_bad_input_is_one_error_before_anything_is_written(message: Any, options: Any, said: str) -> None:
    with Shop([]) as server, transaction.atomic():
        with pytest.raises(ConfigurationError) as caught:
            outbox.put(message, **options)
        assert said in str(caught.value)
        assert rows() == []
    assert server.complete == 0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"HAND_OVER": "no.such.thing"}, "'no.such.thing' can't be imported"),
        ({"HAND_OVER": 42}, "must be a callable"),
        ({"POLICY": "none"}, "'none' is not allowed"),
        ({"POLICE": "mail"}, "must be one of POLICY, HAND_OVER"),
        ([1], "must be a dict"),
    ],
)
def test_bad_settings_are_one_error_before_anything_is_written(setting: Any, entry: Any, said: str) -> None:
    setting["OUTBOX"] = entry
    with pytest.raises(ConfigurationError, match=said):
        outbox.put(mail())
    assert rows() == []


# -- what becomes of it -------------------------------------------------------------------------


def test_a_refusal_for_now_is_tried_again_when_it_is_due(clock: VirtualClock) -> None:
    with Shop([Answer(503, headers={"Retry-After": "90"}), ok("postmark")]) as server:
        outbox.put(mail(), key="k")
        assert (server.complete, rows()) == (1, [("k", "waiting")])
        row = OutboxMessage.objects.get()
        assert row.due == pytest.approx(clock.now() + 90, abs=5)
        assert "503" in row.trouble
        assert steps() == []
        assert outbox.send("k") is None  # not its turn
        clock.advance(100)
        assert steps() == [Settled]
        assert (server.complete, rows()) == (2, [])


def test_a_ledger_whose_clock_is_behind_is_asked_once(clock: VirtualClock, setting: Any) -> None:
    setting["LEDGER"] = MemoryLedger()
    with Shop([Answer(503, headers={"Retry-After": "90"})]) as server:
        outbox.put(mail(), key="k")
        clock.advance(100)
        assert steps() == [RetryAt]
        assert server.complete == 1


def test_nobody_waits_for_another_attempt(setting: Any, clock: VirtualClock) -> None:
    """Whatever the policy would sleep: the row waits, and not those behind it."""
    setting["POLICIES"] = {"mail": POLICY.with_(max_wait=60.0, pushback="cap", backoff=Constant(seconds=50.0))}
    with Shop([Answer(429, headers={"Retry-After": "90"}), Answer(429), ok("postmark")]) as server:
        outbox.put(mail(), key="k")
        assert (server.complete, rows()) == (1, [("k", "waiting")])
        assert OutboxMessage.objects.get().due > clock.now() + 60
        clock.advance(100)
        assert steps() == [RetryAt]
        assert OutboxMessage.objects.get().due > clock.now() - 60
        clock.advance(100)
        assert steps() == [Settled]
        assert server.complete == 3


def test_what_is_unknown_is_held_until_it_is_resolved(clock: VirtualClock, ledger: MemoryLedger) -> None:
    with Shop([Close("request"), ok("postmark")]) as server:
        outbox.put(mail(), key="k")
        assert (server.complete, rows()) == (1, [("k", "held")])
        (record,) = ledger.records()
        assert OutboxMessage.objects.get().digest == record.key.hex()
        clock.advance(3700)
        assert steps() == [Held]
        upkeep.resolve(ledger, record, "not_applied", by="ann")
        clock.advance(3700)
        assert steps() == [Settled]
        assert (server.complete, rows()) == (2, [])


def test_what_arrived_after_all_is_not_sent_again(clock: VirtualClock, ledger: MemoryLedger) -> None:
    with Shop([Close("request")]) as server:
        outbox.put(mail(), key="k")
        (record,) = ledger.records()
        upkeep.resolve(ledger, record, "applied", by="webhook")
        clock.advance(3700)
        assert steps() == [Settled]
        assert (server.complete, rows()) == (1, [])


def test_when_its_lifetime_is_over_it_stays_and_is_not_sent(clock: VirtualClock) -> None:
    with Shop([Close("request")]) as server:
        outbox.put(mail(), key="k")
        clock.advance(86400)
        (found,) = outbox.sweep()
        assert isinstance(found.step, GiveUp)
        assert isinstance(found.step.error, SendHeld)
        assert (server.complete, rows()) == (1, [("k", "failed")])
        clock.advance(86400)
        assert steps() == []


def test_what_is_refused_for_good_stays_to_be_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"ErrorCode": 300, "Message": "Invalid address ann@example.com"}'
    with Shop([Answer(422, headers=JSON, body=body)]) as server:
        outbox.put(mail(retry_label="order 42"), key="k")
        assert (server.complete, rows()) == (1, [("k", "failed")])
    row = OutboxMessage.objects.get()
    assert "422" in row.trouble
    assert "not sent again" in caplog.text
    for secret in (SECRET, "ann@example.com", "A secret"):
        assert secret not in row.trouble + row.label + caplog.text
    assert SECRET not in row.content


def test_settings_that_can_not_be_used_cost_no_message(clock: VirtualClock, setting: Any) -> None:
    with override_settings(EMAIL_BACKEND=POSTMARK, ANYMAIL={}):
        with transaction.atomic():
            outbox.put(mail(), key="a")
            outbox.put(mail(), key="b", policy="worker")
        assert OutboxMessage.objects.get(key="a").trouble
        setting["POLICIES"] = {}
        clock.advance(3700)
        assert steps() == [RetryAt, RetryAt]
        assert "'mail' is not allowed" in OutboxMessage.objects.get(key="a").trouble
    setting["POLICIES"] = {"mail": POLICY}
    clock.advance(3700)
    with Shop([ok("postmark")] * 2) as server:
        assert steps() == [Settled, Settled]
        assert (server.complete, rows()) == (2, [])


def test_a_poisoned_row_stops_nobody(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    with Shop([ok("postmark")] * 2) as server:
        with transaction.atomic():
            for number in range(3):
                outbox.put(mail(), key=f"k{number}")
            OutboxMessage.objects.filter(key="k0").update(content='{"format": 1, "class": "gone.Message"}')
            transaction.get_connection().run_on_commit.clear()  # the process dies after COMMIT
        clock.advance(100)
        found = list(outbox.sweep())
        assert [(type(one.step), one.readable) for one in found] == [
            (GiveUp, False), (Settled, True), (Settled, True),
        ]  # fmt: skip
        assert (server.complete, rows()) == (2, [("k0", "unreadable")])
        assert "there is no class 'gone.Message'" in OutboxMessage.objects.get().trouble
        clock.advance(4000)
        assert steps() == []


def test_a_message_that_kills_its_sender_is_given_up(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(self: Any) -> int:
        raise Killed

    monkeypatch.setattr(type(mail()), "send", die)
    with pytest.raises(Killed):
        outbox.put(mail(), key="k")
    for _ in range(POLICY.max_attempts - 1):
        clock.advance(1000)
        with pytest.raises(Killed):
            list(outbox.sweep())
    clock.advance(1000)
    (found,) = outbox.sweep()
    assert isinstance(found.step, GiveUp)
    assert rows() == [("k", "failed")]
    assert "was begun 4 times and never came to an end" in OutboxMessage.objects.get().trouble


def test_a_backend_that_hides_its_failures_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Shop([Close("request")]):
        monkeypatch.setattr(POSTMARK + ".send_messages", lambda self, messages: 0)
        outbox.put(mail(), key="k")
    assert rows() == [("k", "failed")]
    assert "fail silently" in OutboxMessage.objects.get().trouble


def test_a_message_to_nobody_is_settled() -> None:
    with Shop([]):
        outbox.put(mail(to=[]), key="k")
    assert rows() == []


def test_not_after(clock: VirtualClock) -> None:
    with Shop([]) as server:
        outbox.put(mail(not_after=datetime(2020, 1, 1, tzinfo=UTC)), key="k")
        assert (server.complete, rows()) == (0, [("k", "failed")])


# -- whose turn it is ---------------------------------------------------------------------------


def test_handing_over_twice_sends_once() -> None:
    with Shop([ok("postmark")]) as server:
        with transaction.atomic():
            outbox.put(mail(), key="k")
            transaction.get_connection().run_on_commit.clear()
        assert isinstance(outbox.send("k"), Settled)
        assert outbox.send("k") is None
        assert server.complete == 1


def test_whoever_takes_it_has_time(clock: VirtualClock) -> None:
    inside: list[Any] = []

    def meanwhile(request: Any) -> Any:
        with shared():
            clock.advance(61)
            inside.append(outbox.send("k"))
        return ok("postmark")

    with Shop(meanwhile) as server, sharing() as shared:
        outbox.put(mail(), key="k")
        assert (server.complete, inside, rows()) == (1, [None], [])


def test_whoever_lost_its_turn_changes_nothing_but_the_end(clock: VirtualClock, ledger: MemoryLedger) -> None:
    """Its row was taken by another meanwhile: that one's word counts, unless the message is sent."""

    def meanwhile(request: Any) -> Any:
        with shared():
            OutboxMessage.objects.update(turn=7, due=clock.now() + 1)
        return answers.pop(0)

    answers = [Answer(503, headers={"Retry-After": "90"}), ok("postmark")]
    with Shop(meanwhile), sharing() as shared:
        outbox.put(mail(), key="k")
        row = OutboxMessage.objects.get()
        assert (row.turn, row.trouble) == (7, "")
        outbox.put(mail(), key="other")
        assert rows() == [("k", "waiting")]


@pytest.mark.filterwarnings("ignore::retrypolicy.errors.UnprotectedKey")
def test_many_sweepers_on_postgres(on_postgres: str, setting: Any, clock: VirtualClock) -> None:
    setting["LEDGER"] = None  # the rows alone keep them apart
    count = 40
    with Shop([ok("postmark")] * count) as server:
        with transaction.atomic(using=on_postgres):
            for number in range(count):
                outbox.put(mail(), key=f"k{number}", using=on_postgres)
            connections[on_postgres].run_on_commit.clear()
        clock.advance(100)
        swept: list[int] = []

        def run() -> None:
            swept.append(len(list(outbox.sweep(using=on_postgres))))
            connections[on_postgres].close()

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (sum(swept), server.complete) == (count, count)
        assert min(swept) > 0
        assert OutboxMessage.objects.using(on_postgres).count() == 0


def test_a_limit() -> None:
    with Shop([ok("postmark")] * 3) as server:
        with transaction.atomic():
            for number in range(3):
                outbox.put(mail(), key=f"k{number}")
            transaction.get_connection().run_on_commit.clear()
        OutboxMessage.objects.update(due=0)
        assert steps(limit=2) == [Settled, Settled]
        assert server.complete == 2


# -- handing over -------------------------------------------------------------------------------


def test_a_hook_gets_the_key_after_commit(setting: Any) -> None:
    told: list[Any] = []
    setting["OUTBOX"]["HAND_OVER"] = told.append
    with Shop([ok("postmark")]) as server:
        with transaction.atomic():
            outbox.put(mail(), key="k")
            assert told == []
        assert (told, server.complete) == (["k"], 0)
        assert isinstance(outbox.send("k"), Settled)
        assert server.complete == 1


def test_a_hook_hears_of_another_database(setting: Any, on_postgres: str) -> None:
    told: list[Any] = []
    setting["OUTBOX"]["HAND_OVER"] = lambda key, using=None: told.append((key, using))
    outbox.put(mail(), key="k", using=on_postgres)
    assert told == [("k", on_postgres)]


def test_a_hook_that_fails_costs_nothing(setting: Any, clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    def broken(key: str) -> None:
        raise OSError("amqp://user:password@broker is away")

    setting["OUTBOX"]["HAND_OVER"] = broken
    with Shop([ok("postmark")]) as server:
        outbox.put(mail(), key="k")
        assert "was not handed over: OSError; the sweeper finds it" in caplog.text
        assert "password" not in caplog.text
        assert steps() == []  # whoever it was handed over to has a minute
        clock.advance(outbox.HAND_OVER_TIME + 1)
        assert steps() == [Settled]
        assert server.complete == 1


# -- in tests -----------------------------------------------------------------------------------


@override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend")
def test_inside_a_test_case() -> None:
    from django.test.utils import setup_test_environment, teardown_test_environment

    class Inside(django.test.TestCase):
        def test(self) -> None:
            with self.captureOnCommitCallbacks(execute=True):
                outbox.put(mail(), key="k")
                assert OutboxMessage.objects.count() == 1
            assert OutboxMessage.objects.count() == 0
            assert len(django_mail.outbox) == 1
            outbox.put(mail(), key="unsent")

    setup_test_environment()
    try:
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Inside).run(result)
    finally:
        teardown_test_environment()
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
    assert rows() == []


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")
def test_a_mailer_by_name() -> None:
    with FaultServer([ok("postmark")]) as server:
        options = {"server_token": "t", "api_url": server.url("/")}
        mailers = {
            "default": {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"},
            "bulk": {"BACKEND": POSTMARK, "OPTIONS": options},
        }
        with override_settings(MAILERS=mailers):
            with pytest.raises(ConfigurationError, match="'nobody' is not allowed; must be one of default, bulk"):
                outbox.put(mail(), mailer="nobody")
            outbox.put(mail(), mailer="bulk")
        assert (server.complete, rows()) == (1, [])


# -- the command and the checks -----------------------------------------------------------------


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("retrypolicy", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def left_behind(*keys: str, **attributes: Any) -> None:
    """The process dies after COMMIT."""
    with transaction.atomic():
        for key in keys:
            outbox.put(mail(**attributes), key=key)
        transaction.get_connection().run_on_commit.clear()


def test_the_command_sends_what_is_due(clock: VirtualClock) -> None:
    with Shop([ok("postmark"), Close("request"), Answer(503, headers={"Retry-After": "90"})]) as server:
        left_behind("a", "b", "c")
        assert command("sweep") == "nothing is due\n"
        clock.advance(100)
        assert command("sweep") == "held 1   sent 1   waiting 1\n"
        assert server.complete == 3


def test_the_command_says_what_somebody_must_look_at(clock: VirtualClock) -> None:
    with Shop([Answer(422, headers=JSON, body=b'{"ErrorCode": 300}'), ok("postmark")]):
        left_behind("a", retry_label="order 42")
        left_behind("b", "c")
        OutboxMessage.objects.filter(key="b").update(content="no JSON")
        clock.advance(100)
        out = io.StringIO()
        with pytest.raises(CommandError, match="2 message"):
            call_command("retrypolicy", "sweep", stdout=out, no_color=True)
    assert "order 42  -> failed: AnymailRequestsAPIError: status 422" in out.getvalue()
    assert "-> unreadable: " in out.getvalue()
    assert "failed 1   sent 1   unreadable 1" in out.getvalue()
    assert command("sweep") == "nothing is due\n"


def test_the_command_with_a_database_and_a_limit(clock: VirtualClock, on_postgres: str) -> None:
    with Shop([ok("postmark")] * 2) as server:
        with transaction.atomic(using=on_postgres):
            for key in ("a", "b"):
                outbox.put(mail(), key=key, using=on_postgres)
            connections[on_postgres].run_on_commit.clear()
        clock.advance(100)
        assert command("sweep") == "nothing is due\n"
        assert command("sweep", "--database", on_postgres, "--limit", "1") == "sent 1\n"
        assert server.complete == 1
    for wrong, said in (["--database", "nowhere"], "'nowhere' is not allowed"), (["--limit", "0"], "'0' is not a"):
        with pytest.raises(CommandError, match=said):
            command("sweep", *wrong)


def test_the_command_that_goes_on_and_on(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def nap(self: Any, seconds: float) -> None:
        naps.append(seconds)
        clock.advance(100)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("retrypolicy.clock.SystemClock.sleep", nap)
    with Shop([ok("postmark")]) as server:
        left_behind("a")
        with pytest.raises(KeyboardInterrupt):
            command("sweep", "--every", "5s")
        assert (naps, server.complete) == ([5.0] * 3, 1)


def doctor() -> str:
    out = io.StringIO()
    with contextlib.suppress(CommandError):  # of other things
        call_command("retrypolicy", "doctor", stdout=out, no_color=True)
    return out.getvalue()


def test_the_doctor_looks_at_it(clock: VirtualClock) -> None:
    assert "outbox  " not in doctor()
    left_behind("a", "b")
    assert "outbox    2 message(s) waiting" in doctor()
    assert [bad for _, bad in look()] == [False]
    OutboxMessage.objects.filter(key="b").update(state=OutboxMessage.State.FAILED)
    clock.advance(2000)
    assert [bad for _, bad in look()] == [False, True, True]
    out = doctor()
    assert "outbox    1 message(s) failed" in out
    assert "1 message(s) were due 15 minutes ago: does manage.py retrypolicy sweep run?" in out


@pytest.mark.parametrize(
    ("expected", "setting_", "backend"),
    [
        (set(), {"LEDGER": "memory:"}, POSTMARK),
        (set(), {"OUTBOX": {}, "LEDGER": "redis://127.0.0.1:1/0"}, POSTMARK),
        (set(), {"OUTBOX": {}, "LEDGER": "redis://127.0.0.1:1/0"}, "tests.django.test_outbox.OwnBackend"),
        ({"W010", "I001"}, {"OUTBOX": {}}, POSTMARK),
        ({"W011"}, {"OUTBOX": {}, "LEDGER": "redis://127.0.0.1:1/0"}, "django.core.mail.backends.smtp.EmailBackend"),
        ({"E009"}, {"OUTBOX": {"POLICY": "none"}, "LEDGER": "redis://127.0.0.1:1/0"}, POSTMARK),
        ({"E009"}, {"OUTBOX": {"HAND_OVER": "none.at.all"}, "LEDGER": "redis://127.0.0.1:1/0"}, POSTMARK),
        ({"E009"}, {"OUTBOX": 7, "LEDGER": "redis://127.0.0.1:1/0"}, POSTMARK),
    ],
)
def test_checks(expected: set[str], setting_: Any, backend: str) -> None:
    with override_settings(RETRYPOLICY=setting_, EMAIL_BACKEND=backend):
        found = run_checks(tags=["retrypolicy"])
    assert all(message.hint for message in found)
    assert {str(message.id).removeprefix("retrypolicy.") for message in found} - {"W007"} == expected


class OwnBackend(RetryMixin):  # type: ignore[misc]
    """A project's own, with the mixin."""


def test_the_check_for_the_table(on_postgres: str, setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids() -> set[str | None]:
        return {message.id for message in run_checks(tags=["retrypolicy", "database"], databases=[on_postgres])}

    with monkeypatch.context() as patched:
        patched.setattr(router, "db_for_write", lambda model, **hints: on_postgres)
        assert "retrypolicy.W014" not in ids()
        with connections[on_postgres].cursor() as cursor:
            cursor.execute("ALTER TABLE retrypolicy_outbox RENAME TO elsewhere")
        assert "retrypolicy.W014" in ids()
        del setting["OUTBOX"]
        assert "retrypolicy.W014" not in ids()


def test_migrate_runs_where_the_tables_are_missing(on_postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It checks the database before it makes the tables that the checks ask for."""
    call_command("migrate", "retrypolicy", "zero", database=on_postgres, verbosity=0)
    with monkeypatch.context() as patched, override_settings(RETRYPOLICY={"LEDGER": on_postgres, "OUTBOX": {}}):
        patched.setattr(router, "db_for_write", lambda model, **hints: on_postgres)
        with pytest.raises(CommandError, match="can't be read"):
            command("sweep", "--database", on_postgres)
        err = io.StringIO()
        call_command("migrate", "retrypolicy", database=on_postgres, verbosity=0, skip_checks=False, stderr=err)
        assert "W013" in err.getvalue()
        assert "W014" in err.getvalue()
        assert command("sweep", "--database", on_postgres) == "nothing is due\n"


def test_the_migrations_say_what_the_models_say() -> None:
    call_command("makemigrations", "retrypolicy", check=True, dry_run=True, verbosity=0)
