"""Failover: to the second provider goes only what the first one provably did not take."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from anymail.exceptions import AnymailAPIError
from anymail.signals import pre_send

from retrypolicy import CircuitBreaker, RetryPolicy, operation, report
from retrypolicy.anymail.failover import EmailBackend
from retrypolicy.django import settings
from retrypolicy.errors import ConfigurationError, KeyReused, SendDeferred, SendHeld, SendInProgress
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.key import key_digest
from retrypolicy.guard.ledger import Take
from retrypolicy.testing import Answer, Close, FaultServer, Refuse, Reset
from tests.anymail.conftest import AT_ONCE
from tests.anymail.sending import CREDENTIALS, SECRET, mail, ok

pytestmark = pytest.mark.usefixtures("project")

FIRST, SECOND = "postmark", "mandrill"


def config(name: str, server: FaultServer, **options: Any) -> dict[str, Any]:
    return {
        "BACKEND": f"retrypolicy.anymail.backends.{name}.EmailBackend",
        "OPTIONS": {CREDENTIALS.get(name, "api_key"): SECRET, "api_url": server.url("/"), **options},
    }


def backend(first: FaultServer, second: FaultServer, names: tuple[str, str] = (FIRST, SECOND), **options: Any) -> Any:
    return EmailBackend(backends=[config(names[0], first), config(names[1], second)], **options)


@pytest.fixture
def second() -> Iterator[FaultServer]:
    with FaultServer([ok(SECOND)]) as server:
        yield server


NOT_TAKEN = {
    "not connected": [Refuse()],
    "busy": [Answer(503, headers={"Retry-After": "0"})],
    "busy for an hour": [Answer(503, headers={"Retry-After": "3600"})],
    "too many": [Answer(429)],
    "bad credentials": [Answer(401)],
    "forbidden": [Answer(403)],
}
UNKNOWN = {
    "no answer": [Close("request")],
    "reset": [Reset("request")],
    "server error": [Answer(500)],
    "half an answer": [Answer(200, cut=("headers", 5))],
    "refused after an unknown one": [Answer(500), Answer(503, headers={"Retry-After": "0"})],
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_the_first_did_not_take_goes_to_the_second(case: str, second: FaultServer, ledger: MemoryLedger) -> None:
    message = mail(idempotency_key="receipt/42", retry_label="order 42")
    with FaultServer(NOT_TAKEN[case]) as first:
        assert backend(first, second).send_messages([message]) == 1
        assert second.complete == 1
        again = mail(idempotency_key="receipt/42")
        seen = first.complete
        assert backend(first, second).send_messages([again]) == 1
        assert (first.complete, second.complete) == (seen, 1)
        assert again.anymail_status.message_id == "abc123"
    (record,) = ledger.records()
    assert (record.phase, record.provider, record.label) == (Phase.DONE, SECOND, "order 42")
    assert message.anymail_status.message_id == "abc123"


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_the_first_may_have_taken_goes_nowhere(case: str, second: FaultServer, ledger: MemoryLedger) -> None:
    message = mail(idempotency_key="receipt/42")
    with FaultServer(UNKNOWN[case]) as first:
        with pytest.raises(AnymailAPIError):
            backend(first, second).send_messages([message])
        with pytest.raises(SendHeld):
            backend(first, second).send_messages([mail(idempotency_key="receipt/42")])
        assert (first.complete, second.complete) == (1, 0)
    assert ledger.counts() == {Phase.HELD: 1}


@pytest.mark.parametrize("case", UNKNOWN)
def test_it_takes_no_ledger_for_that(case: str, second: FaultServer, project: dict[str, Any]) -> None:
    project["LEDGER"] = None
    with FaultServer(UNKNOWN[case]) as first, pytest.raises(AnymailAPIError):
        backend(first, second).send_messages([mail()])
    assert second.complete == 0


def test_a_message_that_is_being_sent_is_no_others(second: FaultServer, ledger: MemoryLedger) -> None:
    digest = key_digest(settings.the_secret(), "receipt/42")
    take = Take(key=digest, owner=b"o", token=b"t", fingerprint=b"f", lease=60.0, provider=FIRST)
    with FaultServer([ok(FIRST)]) as first:
        ledger.arm(take)
        with pytest.raises((SendInProgress, KeyReused)) as caught:
            backend(first, second).send_messages([mail(idempotency_key="receipt/42")])
        assert (first.complete, second.complete) == (0, 0)
        payload = caught.value.payload
        assert "postmark" in type(payload).__module__  # the first one's word, nobody asked the second


def breaking() -> RetryPolicy:
    """A policy whose circuit, shared with nobody, opens at the first failure."""
    breaker = CircuitBreaker(name=uuid.uuid4().hex, minimum=1, open_for=60.0)
    return AT_ONCE.with_(max_attempts=1, breaker=breaker)


def test_an_open_circuit_leads_to_the_second(second: FaultServer) -> None:
    with FaultServer([Refuse()]) as first:
        sender = EmailBackend(backends=[config(FIRST, first, retry_policy=breaking()), config(SECOND, second)])
        assert sender.send_messages([mail(), mail()]) == 2
        assert first.complete == 0
    assert second.complete == 2


def test_a_held_message_stays_held_though_the_circuit_is_open(second: FaultServer, ledger: MemoryLedger) -> None:
    with FaultServer([Close("request")]) as first:
        sender = EmailBackend(backends=[config(FIRST, first, retry_policy=breaking()), config(SECOND, second)])
        with pytest.raises(AnymailAPIError):
            sender.send_messages([mail(idempotency_key="receipt/42")])
        with pytest.raises((SendHeld, KeyReused)):
            sender.send_messages([mail(idempotency_key="receipt/42")])
    assert second.complete == 0
    assert ledger.counts() == {Phase.HELD: 1}


def test_both_refuse(ledger: MemoryLedger) -> None:
    with FaultServer([Answer(401)]) as first, FaultServer([Answer(400)]) as second:
        with pytest.raises(AnymailAPIError) as caught:
            backend(first, second).send_messages([mail(idempotency_key="receipt/42")])
        assert (first.complete, second.complete) == (1, 1)
    assert caught.value.status_code == 400
    assert ledger.counts() == {Phase.FAILED: 1}


def test_the_last_one_may_defer(ledger: MemoryLedger) -> None:
    busy = Answer(503, headers={"Retry-After": "3600"})
    with FaultServer([busy]) as first, FaultServer([busy]) as second:
        with pytest.raises(AnymailAPIError) as caught:
            backend(first, second).send_messages([mail(idempotency_key="receipt/42")])
        found = report(caught.value)
        assert found is not None
        assert found.retry_at is not None
        with pytest.raises(SendDeferred):
            backend(first, second).send_messages([mail(idempotency_key="receipt/42")])
        assert (first.complete, second.complete) == (1, 1)
    assert ledger.counts() == {Phase.CLAIMED: 1}


def test_one_random_key_for_both(second: FaultServer, ledger: MemoryLedger) -> None:
    message = mail()
    with FaultServer([Answer(401)]) as first:
        assert backend(first, second).send_messages([message]) == 1
    assert ledger.counts() == {Phase.DONE: 1}
    assert not hasattr(message, "idempotency_key")
    assert "_retrypolicy_key" not in message.__dict__


def test_one_key_for_both_inside_a_scope(second: FaultServer, ledger: MemoryLedger) -> None:
    def job(first: FaultServer) -> None:
        with operation(scope="job/7"):
            backend(first, second).send_messages([mail()])

    with FaultServer([Answer(401)]) as first:
        job(first)
        job(first)
    assert second.complete == 1
    assert ledger.counts() == {Phase.DONE: 1}


def test_a_receiver_may_change_the_message_for_one_of_them(second: FaultServer) -> None:
    def receive(sender: Any, message: Any, esp_name: str, **kwargs: Any) -> None:
        message.tags = [esp_name]

    pre_send.connect(receive)
    try:
        with FaultServer([Answer(401)]) as first:
            assert backend(first, second).send_messages([mail(idempotency_key="receipt/42")]) == 1
    finally:
        pre_send.disconnect(receive)


def test_several_messages_and_fail_silently(second: FaultServer) -> None:
    with FaultServer([Close("request")]) as first, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert backend(first, second, fail_silently=True).send_messages([mail(), mail()]) == 0
        assert first.complete == 2


def test_a_failure_in_the_middle_repeats_nothing_before_it(ledger: MemoryLedger) -> None:
    messages = [mail(subject=f"m {n}") for n in range(3)]
    script = [ok(FIRST), Answer(422), ok(FIRST), ok(FIRST)]
    with FaultServer(script) as first, FaultServer([Answer(400)]) as second:
        sender = backend(first, second)
        with pytest.raises(AnymailAPIError):
            sender.send_messages(messages)
        assert sender.send_messages(messages) == 3
        assert first.complete == 4  # the first once, the second twice, the third once
    assert ledger.counts() == {Phase.DONE: 3, Phase.FAILED: 1}


def test_another_message_in_one_operation_is_an_error_of_anymail(second: FaultServer) -> None:
    with FaultServer([ok(FIRST)]) as first, operation(key="receipt/42"):
        assert backend(first, second).send_messages([mail()]) == 1
        with pytest.raises(KeyReused) as caught:
            backend(first, second).send_messages([mail(subject="another")])
        assert isinstance(caught.value, AnymailAPIError)
        assert (first.complete, second.complete) == (1, 0)


def test_open_and_close_all(second: FaultServer) -> None:
    with FaultServer([Answer(401)]) as first, backend(first, second) as sender:
        assert all(one.session for one in sender.backends)
        assert sender.send_messages([mail()]) == 1
    assert not any(one.session for one in sender.backends)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "must be a list"),
        ("retrypolicy.anymail.backends.resend.EmailBackend", "must be a list"),
        ([{"OPTIONS": {}}], "a path, or a dict"),
        ([7], "a path, or a dict"),
        (["anymail.backends.resend.EmailBackend"], "with RetryMixin"),
        (["retrypolicy.nowhere.EmailBackend"], "can't be imported"),
    ],
    ids=str,
)
def test_backends_that_can_not_be_used(given: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EmailBackend(backends=given)


def test_the_setting(project: dict[str, Any], second: FaultServer) -> None:
    with FaultServer([Answer(401)]) as first:
        project["FAILOVER"] = [config(FIRST, first), config(SECOND, second)]
        assert EmailBackend().send_messages([mail()]) == 1
    assert second.complete == 1
