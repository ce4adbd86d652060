"""Amazon SES: real boto3 and botocore against a real server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from anymail.exceptions import AnymailAPIError

from retrypolicy import WEB, Constant, Effect, Reason, RetryPolicy, report
from retrypolicy.anymail import KEY_HEADER
from retrypolicy.errors import AlreadyDone, ConfigurationError, DeadlineExceeded, KeyReused, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import Answer, Close, FaultServer, Refuse, Stall, deactivated
from tests.anymail.conftest import AT_ONCE
from tests.anymail.sending import mail

pytest.importorskip("boto3")
pytestmark = [
    pytest.mark.usefixtures("project"),
    # botocore's own: it makes dates in a way that Python is about to drop
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore"),
    pytest.mark.filterwarnings("ignore:.*no longer support Python 3"),
]


def answered(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, headers={"Content-Type": "application/json", **headers}, body=json.dumps(body).encode())


def refused(code: str, message: str, status: int = 400) -> Answer:
    return answered({"message": message}, status, **{"x-amzn-ErrorType": code})


OK = answered({"MessageId": "010701805bea386d-cb7ba6a1"})
TOO_FAST = refused("TooManyRequestsException", "Maximum sending rate exceeded", 429)


def backend(server: FaultServer, **options: Any) -> Any:
    from retrypolicy.anymail.backends.amazon_ses import EmailBackend

    session = {"aws_access_key_id": "AKIA_NOBODY", "aws_secret_access_key": "s3cret", "region_name": "eu-west-1"}
    client = {"endpoint_url": server.url("/").rstrip("/"), **options.pop("client", {})}
    return EmailBackend(session_params=session, client_params=client, **options)


def send(server: FaultServer, message: Any, **options: Any) -> int:
    count: int = backend(server, **options).send_messages([message])
    return count


@pytest.fixture
def bulk() -> Any:
    def build(**attributes: Any) -> Any:
        message = mail(to=["ann@example.com", "bob@example.com"], template_id="welcome", **attributes)
        message.from_email, message.body, message.subject = "shop@example.com", None, None
        message.merge_data = {"ann@example.com": {"name": "Ann"}, "bob@example.com": {"name": "Bob"}}
        return message

    return build


def test_a_message_is_sent_and_recorded(ledger: MemoryLedger) -> None:
    message = mail(idempotency_key="receipt/42", extra_headers={KEY_HEADER: "x", "X-Campaign": "spring"})
    with FaultServer([OK]) as server:
        assert send(server, message) == 1
        request = server.requests[0]
        assert request.target == "/v2/email/outbound-emails"
        sent = json.loads(request.body)["Content"]["Raw"]["Data"]
    text = base64.b64decode(sent).decode()
    assert "X-Campaign: spring" in text
    assert KEY_HEADER.lower() not in text.lower()
    assert '"retrypolicy": "receipt/42"' in text  # in X-Metadata, which its events report back
    assert message.anymail_status.message_id == "010701805bea386d-cb7ba6a1"
    assert ledger.counts() == {Phase.DONE: 1}
    for place in (message.anymail_status, message.anymail_status.esp_response):
        found = report(place)
        assert found is not None
        assert (found.effect, found.provider, found.recorded) == (Effect.APPLIED, "amazon_ses", True)


def test_a_repeat_is_answered_from_the_ledger() -> None:
    """Though the MIME text of the second build has another id and boundary."""
    with FaultServer([OK]) as server:
        for _ in range(2):
            message = mail(idempotency_key="receipt/42")
            message.attach_alternative("<p>Hello</p>", "text/html")
            assert send(server, message) == 1
            assert message.anymail_status.message_id == "010701805bea386d-cb7ba6a1"
        assert server.complete == 1
        with pytest.raises(KeyReused) as caught:
            send(server, mail(idempotency_key="receipt/42", subject="another"))
        assert server.complete == 1
    assert isinstance(caught.value, AnymailAPIError)


def test_what_botocore_would_send_three_times_goes_once(ledger: MemoryLedger) -> None:
    with FaultServer([Close("request")]) as server:
        with pytest.raises(AnymailAPIError) as caught:
            send(server, mail(idempotency_key="receipt/42"), client={"config": {"retries": {"total_max_attempts": 5}}})
        assert server.complete == 1
        with pytest.raises(SendHeld) as held:
            send(server, mail(idempotency_key="receipt/42"))
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.held, found.total_attempts) == (Effect.UNKNOWN, True, 1)
    assert isinstance(held.value, AnymailAPIError)
    assert ledger.counts() == {Phase.HELD: 1}


def test_a_read_timeout_is_unknown_and_not_repeated() -> None:
    with FaultServer([Stall("request")]) as server:
        with pytest.raises(AnymailAPIError) as caught:
            send(server, mail(idempotency_key="receipt/42"), client={"config": {"read_timeout": 0.2}})
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert found.effect is Effect.UNKNOWN


def test_a_refusal_is_repeated_and_a_quota_is_not() -> None:
    with FaultServer([TOO_FAST, TOO_FAST, OK]) as server:
        assert send(server, mail()) == 1
        assert server.complete == 3
    quota = refused("TooManyRequestsException", "Daily message quota exceeded", 429)
    with FaultServer([quota, OK]) as server:
        with pytest.raises(AnymailAPIError) as caught:
            send(server, mail())
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.reason) == (Effect.NOT_APPLIED, Reason.NOT_RETRYABLE)
    assert "Daily message quota exceeded" in str(caught.value)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_server_error_is_unknown(status: int, ledger: MemoryLedger) -> None:
    with FaultServer([refused("InternalFailure", "oops", status), OK]) as server:
        with pytest.raises(AnymailAPIError):
            send(server, mail(idempotency_key="receipt/42"))
        assert server.complete == 1
    assert ledger.counts() == {Phase.HELD: 1}


def test_a_refused_connection_is_repeated(ledger: MemoryLedger) -> None:
    with FaultServer([Refuse()]) as server:
        with pytest.raises(AnymailAPIError) as caught:
            send(server, mail(idempotency_key="receipt/42"))
        assert server.complete == 0
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.total_attempts) == (Effect.NOT_APPLIED, 4)
    assert ledger.counts() == {Phase.FAILED: 1}


def test_a_bad_certificate_is_proven_unsent(ledger: MemoryLedger) -> None:
    with FaultServer([OK], tls=True) as server:
        with pytest.raises(AnymailAPIError) as caught:
            send(server, mail(idempotency_key="receipt/42"))
        assert server.complete == 0
    found = report(caught.value)
    assert found is not None
    assert (found.effect, found.reason) == (Effect.NOT_APPLIED, Reason.PERMANENT)
    assert ledger.counts() == {Phase.FAILED: 1}


def test_what_can_not_be_signed_is_not_sent(ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    from retrypolicy.anymail.backends.amazon_ses import EmailBackend

    with FaultServer([OK]) as server:
        sender = EmailBackend(
            session_params={"region_name": "eu-west-1"}, client_params={"endpoint_url": server.url("/").rstrip("/")}
        )
        with pytest.raises(AnymailAPIError) as caught:
            sender.send_messages([mail(idempotency_key="receipt/42")])
        assert server.complete == 0
    found = report(caught.value)
    assert found is not None
    assert found.effect is Effect.NOT_APPLIED


def test_a_bulk_send_is_one_call(bulk: Any) -> None:
    entries = [{"Status": "SUCCESS", "MessageId": "1"}, {"Status": "ACCOUNT_SUSPENDED", "Error": "no"}]
    with FaultServer([answered({"BulkEmailEntryResults": entries})]) as server:
        for _ in range(2):
            message = bulk(idempotency_key="news/1")
            assert send(server, message) == 1
            recipients = message.anymail_status.recipients
            assert [recipients[to].status for to in ("ann@example.com", "bob@example.com")] == ["queued", "failed"]
            assert recipients["ann@example.com"].message_id == "1"
            assert recipients["bob@example.com"].message_id is None
        assert server.complete == 1
        assert server.requests[0].target == "/v2/email/outbound-bulk-emails"


def test_time_limits_are_the_policys(project: dict[str, Any]) -> None:
    project["POLICY"] = WEB
    with FaultServer([OK]) as server:
        config = backend(server).client_params["config"]
        assert (config.connect_timeout, config.read_timeout) == (10.0, 10.0)
        config = backend(server, client={"config": {"read_timeout": 3}}).client_params["config"]
        assert (config.connect_timeout, config.read_timeout) == (10.0, 3)


def test_not_after_and_bad_options() -> None:
    with FaultServer([OK]) as server:
        with pytest.raises(DeadlineExceeded):
            send(server, mail(not_after=1.0))
        with pytest.raises(ConfigurationError):
            backend(server, retry_policy="none")
        assert server.complete == 0


def test_without_an_answer_to_replay(ledger: MemoryLedger) -> None:
    with FaultServer([answered({"MessageId": "an id with spaces"})]) as server:
        send(server, mail(idempotency_key="receipt/42"))
        with pytest.raises(AlreadyDone) as caught:
            send(server, mail(idempotency_key="receipt/42"))
    assert isinstance(caught.value, AnymailAPIError)


def test_switched_off_it_is_anymails_own() -> None:
    with FaultServer([OK]) as server, deactivated():
        assert send(server, mail(idempotency_key="receipt/42")) == 1
        assert send(server, mail(idempotency_key="receipt/42")) == 1
        assert server.complete == 2


def test_the_rest_of_the_client_is_botos(ledger: MemoryLedger) -> None:
    with FaultServer([OK]) as server:
        sender = backend(server)
        assert sender.open()
        assert sender.client.meta.service_model.service_name == "sesv2"
        assert not sender.open()
        sender.close()
        assert sender.client is None


def test_a_policy_of_its_own() -> None:
    with FaultServer([TOO_FAST]) as server, pytest.raises(AnymailAPIError):
        send(server, mail(), retry_policy=RetryPolicy(max_attempts=2, backoff=Constant(seconds=0)))
    assert server.complete == 2
    assert AT_ONCE.max_attempts == 4
