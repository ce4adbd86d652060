"""How a message gets its key, and where it goes."""

from __future__ import annotations

import contextlib
import json
import pickle
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from anymail.exceptions import AnymailAPIError
from anymail.signals import pre_send
from django.utils import timezone
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy import WORKER, Effect, Reason, operation, report
from retrypolicy.anymail import KEY_HEADER
from retrypolicy.django.keys import normal_key
from retrypolicy.django.naming import content, name_of
from retrypolicy.errors import AlreadyDone, ConfigurationError, DeadlineExceeded, KeyReused, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.key import Secret, find
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.sending import backend, mail, ok, send

pytestmark = [
    pytest.mark.usefixtures("project"),
    pytest.mark.filterwarnings("ignore:.*SendGrid.*"),
    pytest.mark.filterwarnings("ignore:.*fail_silently"),  # Anymail 15 deprecates it
]


def keys_sent(server: FaultServer) -> list[str]:
    return [request.header("Idempotency-Key") or "" for request in server.requests]


def record(ledger: MemoryLedger, key: str) -> Any:
    from retrypolicy.django import settings

    return find(ledger, settings.the_secret(), key)[0]


# -- which key --------------------------------------------------------------------------


def test_the_order(project: dict[str, Any]) -> None:
    """The message's own key, then the header's, then the operation's, then the content's, then a random one."""
    message = mail(idempotency_key="own", extra_headers={"x-retrypolicy-KEY": "header"})
    with operation(key="outer"):
        assert name_of(message, remembers=True).key == "own"
        del message.idempotency_key
        assert name_of(message, remembers=True).key == "header"
        message.extra_headers = {}
        assert name_of(message, remembers=True).key == "outer"
    project["KEYS"] = "content"
    by_content = name_of(message, remembers=True).key
    assert name_of(mail(), remembers=True).key == by_content
    assert name_of(mail(subject="another"), remembers=True).key != by_content
    project["KEYS"] = "random"
    assert uuid.UUID(name_of(mail(), remembers=True).key)
    assert name_of(mail(), remembers=True).key != name_of(mail(), remembers=True).key


def test_a_random_key_stays_until_the_outcome_is_known(ledger: MemoryLedger) -> None:
    message = mail()
    with FaultServer([Close("request")]) as server:
        with pytest.raises(AnymailAPIError):
            send("postmark", server, message)
        again = pickle.loads(pickle.dumps(message))
        for tried in (message, again):
            with pytest.raises(SendHeld):
                send("postmark", server, tried)
        assert server.complete == 1


def test_a_new_send_of_the_same_object_is_a_new_message() -> None:
    message = mail()
    with FaultServer([ok("resend"), ok("resend")]) as server:
        assert send("resend", server, message) == send("resend", server, message) == 1
        assert len(set(keys_sent(server))) == 2


def test_the_header_survives_a_queue_and_is_never_sent(ledger: MemoryLedger) -> None:
    message = mail(extra_headers={KEY_HEADER: "receipt/42", "X-Campaign": "spring"})
    with FaultServer([ok("resend")]) as server:
        for tried in (message, pickle.loads(pickle.dumps(message))):
            assert send("resend", server, tried) == 1
            assert tried.extra_headers == {KEY_HEADER: "receipt/42", "X-Campaign": "spring"}
        assert server.complete == 1
        assert keys_sent(server) == ["receipt/42"]
        headers = json.loads(server.requests[0].body)["headers"]
        assert headers["X-Campaign"] == "spring"
        assert KEY_HEADER.lower() not in {name.lower() for name in headers}
    assert record(ledger, "receipt/42").phase is Phase.DONE


def test_a_receiver_may_name_the_message(ledger: MemoryLedger) -> None:
    def receive(sender: Any, message: Any, **kwargs: Any) -> None:
        message.idempotency_key = "from/receiver"

    pre_send.connect(receive)
    try:
        with FaultServer([ok("resend")]) as server:
            send("resend", server, mail())
            assert keys_sent(server) == ["from/receiver"]
    finally:
        pre_send.disconnect(receive)


def test_scope_one_key_per_message_and_occurrence_run_again() -> None:
    """A queue runs its job again: what went out the first time does not go again, and two wanted copies stay two."""

    def job(server: FaultServer) -> None:
        with operation(scope="job/7"):
            send("resend", server, mail(), mail(subject="another"), mail())

    with FaultServer([ok("resend")] * 3) as server:
        job(server)
        assert len(set(keys_sent(server))) == 3
        job(server)
        assert server.complete == 3


def test_scope_a_refused_message_keeps_its_key_when_tried_again_inside(ledger: MemoryLedger) -> None:
    def job(server: FaultServer) -> None:
        message = mail()
        with operation(scope="job/7"):
            try:
                send("resend", server, message)
            except AnymailAPIError:
                send("resend", server, message)

    with FaultServer([Answer(400), ok("resend")]) as server:
        job(server)
        job(server)
        assert server.complete == 2
    assert ledger.counts() == {Phase.DONE: 1}


def test_scope_an_answer_that_refuses_is_no_success(ledger: MemoryLedger) -> None:
    """Anymail takes Postmark's 422 for an answer; the message has its key until it is out."""
    message = mail()
    with FaultServer([Answer(422), ok("postmark")]) as server, operation(scope="job/7"):
        with pytest.raises(AnymailAPIError):
            send("postmark", server, message)
        assert send("postmark", server, message) == 1
    assert ledger.counts() == {Phase.DONE: 1}


def test_an_operation_names_one_message() -> None:
    with FaultServer([ok("resend")]) as server, operation(key="receipt/42", label="receipt 42"):
        send("resend", server, mail())
        with pytest.raises(KeyReused) as caught:
            send("resend", server, mail(subject="another"))
        assert server.complete == 1
    assert isinstance(caught.value, AnymailAPIError)


def test_policy_and_end_of_an_operation_hold_for_the_message() -> None:
    with FaultServer([Answer(503, headers={"Retry-After": "0"})]) as server:
        with operation(key="a", policy=WORKER.with_(max_attempts=1)), pytest.raises(AnymailAPIError) as caught:
            send("resend", server, mail())
        found = report(caught.value)
        assert found is not None
        assert (found.policy, found.total_attempts) == ("worker", 1)
        with operation(key="b", not_after=time.time() - 1), pytest.raises(DeadlineExceeded):
            send("resend", server, mail())
        assert server.complete == 1


@pytest.mark.parametrize(
    "ended",
    [
        timezone.now() - timedelta(minutes=1),
        timezone.make_naive(timezone.now()) - timedelta(minutes=1),
        time.time() - 60,
    ],
    ids=["aware", "naive", "seconds"],
)
def test_not_after(ended: Any) -> None:
    with FaultServer([ok("resend")]) as server:
        with pytest.raises(DeadlineExceeded) as caught:
            send("resend", server, mail(not_after=ended))
        assert server.complete == 0
        assert isinstance(caught.value, AnymailAPIError)
        assert send("resend", server, mail(not_after=timezone.now() + timedelta(hours=1))) == 1


@pytest.mark.parametrize(
    "attributes",
    [
        {"idempotency_key": 42},
        {"idempotency_key": " "},
        {"idempotency_key": "a\nb"},
        {"extra_headers": {KEY_HEADER: ""}},
        {"not_after": "tomorrow"},
        {"not_after": True},
    ],
    ids=str,
)
def test_bad_input_is_never_silent(attributes: dict[str, Any]) -> None:
    with FaultServer([ok("resend")]) as server:
        with pytest.raises(ConfigurationError):
            send("resend", server, mail(**attributes), fail_silently=True)
        assert server.complete == 0


def test_a_label_may_be_a_lazy_translation(ledger: MemoryLedger) -> None:
    with FaultServer([ok("resend")]) as server:
        send("resend", server, mail(idempotency_key="receipt/42", retry_label=gettext_lazy("receipt")))
    assert record(ledger, "receipt/42").label == "receipt"


def test_a_batch_has_one_key() -> None:
    message = mail(to=["ann@example.com", "bob@example.com"], idempotency_key="news/1")
    message.merge_data = {"ann@example.com": {"name": "Ann"}, "bob@example.com": {"name": "Bob"}}
    message.merge_headers = {"ann@example.com": {"List-Unsubscribe": "<https://example.com/ann>"}}
    del message.merge_data
    answer = Answer(200, body=json.dumps({"data": [{"id": "1"}, {"id": "2"}]}).encode())
    with FaultServer([answer]) as server:
        assert send("resend", server, message) == 1
        assert isinstance(json.loads(server.requests[0].body), list)
        assert send("resend", server, message) == 1
        assert keys_sent(server) == ["news/1"]
    assert message.anymail_status.recipients["bob@example.com"].message_id == "2"


# -- their form -------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["k" * 256, "welcome/ann@example.com"])
def test_long_keys_and_those_with_an_address_are_hashed(key: str, ledger: MemoryLedger) -> None:
    with FaultServer([ok("resend")]) as server:
        send("resend", server, mail(idempotency_key=key))
        (sent,) = keys_sent(server)
        assert sent.startswith("sha256-")
        assert b"welcome/ann@example.com" not in server.requests[0].body
    assert record(ledger, normal_key(key)).phase is Phase.DONE


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=400).filter(str.strip))
def test_a_normal_key_is_short_holds_no_address_and_stays(key: str) -> None:
    once = normal_key(key)
    assert len(once) <= 255
    assert "@" not in once
    assert normal_key(once) == once
    assert (once == key) == (len(key) <= 255 and "@" not in key)


def test_find_reads_under_an_older_secret(ledger: MemoryLedger) -> None:
    from retrypolicy.guard.key import key_digest

    ledger.done(key_digest(Secret.of("old"), "k"), {"status": 200})
    assert find(ledger, Secret.of(["new", "old"]), "k")[0] is not None
    assert find(ledger, Secret.of(["new"]), "k")[0] is None


# -- content ----------------------------------------------------------------------------


def test_equal_messages_have_equal_content() -> None:
    def build() -> Any:
        message = mail(extra_headers={KEY_HEADER: str(uuid.uuid4())}, metadata={"b": 1, "a": 2}, tags=["x"])
        message.attach("a.txt", b"text", "text/plain")
        message.attach_alternative("<p>Hello</p>", "text/html")
        return message

    assert content(build()) == content(build())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("to", ["bob@example.com"]),
        ("bcc", ["bob@example.com"]),
        ("body", "other"),
        ("extra_headers", {"X-A": "b"}),
        ("metadata", {"a": 2}),
        ("merge_data", {"ann@example.com": {"a": 1}}),
        ("attachments", [("a.txt", b"text", "text/plain")]),
        ("send_at", datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_other_messages_have_other_content(name: str, value: Any) -> None:
    assert content(mail(**{name: value})) != content(mail())


# -- metadata ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("postmark", lambda body: body["Metadata"]),
        ("mandrill", lambda body: body["message"]["metadata"]),
        ("sendgrid", lambda body: body["custom_args"]),
        ("sparkpost", lambda body: body["metadata"]),
        ("resend", lambda body: json.loads(body["headers"]["X-Metadata"])),
    ],
)
def test_the_key_goes_along_in_the_metadata(name: str, where: Any) -> None:
    message = mail(idempotency_key="receipt/42", metadata={"order": "42"})
    with FaultServer([ok(name)]) as server:
        send(name, server, message)
        found = where(json.loads(server.requests[0].body))
    assert {"order": "42", "retrypolicy": "receipt/42"}.items() <= found.items()
    assert message.metadata == {"order": "42"}


def test_no_metadata_without_ledger_or_where_the_value_is_too_long(project: dict[str, Any]) -> None:
    with FaultServer([ok("postmark"), ok("postmark")]) as server:
        send("postmark", server, mail(idempotency_key="k" * 81))
        project["LEDGER"] = None
        with pytest.warns(UserWarning, match="nothing uses it"):
            send("postmark", server, mail(idempotency_key="receipt/42"))
        assert all("Metadata" not in json.loads(request.body) for request in server.requests)


# -- ids that a backend makes up --------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", ["sendgrid", "unisender_go"])
def test_a_replay_has_the_ids_of_the_first_send(name: str, batch: bool) -> None:
    def build() -> Any:
        message = mail(to=["ann@example.com", "bob@example.com"], idempotency_key="receipt/42")
        if batch:
            message.merge_metadata = {"ann@example.com": {"n": "1"}, "bob@example.com": {"n": "2"}}
        return message

    first, second = build(), build()
    with FaultServer([ok(name)]) as server:
        assert send(name, server, first) == send(name, server, second) == 1
        assert server.complete == 1
    ids = {to: status.message_id for to, status in first.anymail_status.recipients.items()}
    assert ids == {to: status.message_id for to, status in second.anymail_status.recipients.items()}
    assert len(set(ids.values())) == (1 if name == "sendgrid" and not batch else 2)


# -- several messages, and errors -------------------------------------------------------


@pytest.mark.parametrize("keys", ["own", "random", "content", "scope"])
def test_a_failure_in_the_middle_repeats_nothing_before_it(keys: str, project: dict[str, Any]) -> None:
    messages = [mail(subject=f"m {n}") for n in range(3)]
    if keys == "own":
        for n, message in enumerate(messages):
            message.idempotency_key = f"m/{n}"
    elif keys == "content":
        project["KEYS"] = "content"
    with (
        FaultServer([ok("postmark"), Answer(422), ok("postmark"), ok("postmark")]) as server,
        operation(scope="job/7") if keys == "scope" else contextlib.nullcontext(),
    ):
        sender = backend("postmark", server)
        with pytest.raises(AnymailAPIError):
            sender.send_messages(messages)
        messages = pickle.loads(pickle.dumps(messages))
        assert sender.send_messages(messages) == 3
        subjects = [json.loads(request.body)["Subject"] for request in server.requests]
        assert subjects == ["m 0", "m 1", "m 1", "m 2"]


def test_after_a_go_that_failed_a_changed_message_is_a_new_one() -> None:
    first, second = mail(subject="first"), mail(subject="second")
    with FaultServer([ok("postmark"), Answer(422), ok("postmark"), ok("postmark")]) as server:
        with pytest.raises(AnymailAPIError):
            send("postmark", server, first, second)
        first.subject = "changed"
        assert send("postmark", server, first) == 1
        assert send("postmark", server, first) == 1  # and wanted twice, it goes twice
        assert server.complete == 4


def test_a_message_whose_answer_could_not_be_read_does_not_go_again() -> None:
    """Anymail raises, though the message was taken; whoever sends the same object once more gets that answer again."""
    message = mail()
    with FaultServer([Answer(200, body=b"taken, says a proxy")]) as server:
        for _ in range(2):
            with pytest.raises(AnymailAPIError):
                send("postmark", server, message)
        assert server.complete == 1


def test_the_report_is_on_error_and_status() -> None:
    message = mail(idempotency_key="receipt/42")
    with FaultServer([Close("request")]) as server, pytest.raises(AnymailAPIError) as caught:
        send("postmark", server, message)
    assert isinstance(caught.value, requests.ConnectionError)
    assert caught.value.email_message is message
    for place in (caught.value, message.anymail_status):
        found = report(place)
        assert found is not None
        assert (found.effect, found.held, found.recorded) == (Effect.UNKNOWN, True, True)
    with FaultServer([ok("postmark")]) as server:
        sent = mail(idempotency_key="receipt/43")
        send("postmark", server, sent)
    found = report(sent.anymail_status)
    assert found is not None
    assert (found.effect, found.reason) == (Effect.APPLIED, Reason.SUCCESS)


def test_fail_silently_is_anymails() -> None:
    with FaultServer([Close("request")]) as server:
        assert send("postmark", server, mail(), fail_silently=True) == 0


def test_a_bad_policy_is_never_silent() -> None:
    with FaultServer([]) as server, pytest.raises(ConfigurationError):
        send("postmark", server, mail(), fail_silently=True, retry_policy="none")


def test_what_was_done_and_can_not_be_replayed_says_so() -> None:
    """Mailgun's answer needs an id; here the first one had none that may be kept."""
    odd = Answer(200, body=json.dumps({"id": "ann@example.com", "message": "Queued. Thank you."}).encode())
    with FaultServer([odd]) as server:
        for _ in range(2):
            message = mail(idempotency_key="receipt/42")
            if server.complete:
                with pytest.raises(AlreadyDone):
                    send("mailgun", server, message)
            else:
                send("mailgun", server, message)
        assert server.complete == 1


def test_a_200_that_took_no_message_is_not_done(ledger: MemoryLedger) -> None:
    """What Mailgun answers where no endpoint is (django-anymail 15.1 backends/mailgun.py:60-72): a wrong address in the
    settings. When that is mended, the message can go under the same key.
    """
    with FaultServer([Answer(200, body=b"Mailgun Magnificent API"), ok("mailgun")]) as server:
        with pytest.raises(AnymailAPIError, match="Invalid Mailgun API endpoint"):
            send("mailgun", server, mail(idempotency_key="receipt/42"))
        assert record(ledger, "receipt/42").phase is Phase.FAILED
        assert send("mailgun", server, mail(idempotency_key="receipt/42")) == 1
        assert server.complete == 2
        assert record(ledger, "receipt/42").phase is Phase.DONE
