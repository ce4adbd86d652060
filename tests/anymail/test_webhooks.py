"""Held messages resolve themselves: through Anymail's own webhook views, with signed posts.

Each event is made of what the provider's server really got: if the key were not in the request's metadata, or not
where the provider reports metadata from, it could not come back.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import pytest
from anymail.exceptions import AnymailAPIError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import Client, override_settings
from django.urls import include, path

from retrypolicy.anymail.webhooks import arrived
from retrypolicy.clock import VirtualClock
from retrypolicy.django import settings
from retrypolicy.django.silence import without_event
from retrypolicy.errors import AlreadyDone, ConfigurationError, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.key import key_digest
from retrypolicy.guard.ledger import Take
from retrypolicy.testing import Close, FaultServer
from tests.anymail.sending import UUID, mail, send

pytestmark = [pytest.mark.usefixtures("project"), pytest.mark.filterwarnings("ignore:.*SendGrid.*")]

URLS = ModuleType("urls")
URLS.urlpatterns = [path("anymail/", include("anymail.urls"))]  # type: ignore[attr-defined]

KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
ANYMAIL = {
    "WEBHOOK_SECRET": "user:password",
    "MAILGUN_API_KEY": "key-1",
    "MAILGUN_WEBHOOK_SIGNING_KEY": "signing-key",
    "MANDRILL_WEBHOOK_KEY": "webhook-key",
    "SENDGRID_TRACKING_WEBHOOK_VERIFICATION_KEY": "".join(PUBLIC.decode().splitlines()[1:-1]),
    "UNISENDER_GO_API_KEY": "ugo-key",
}
BASIC = {"Authorization": "Basic " + base64.b64encode(b"user:password").decode()}

Post = tuple[str, Any, dict[str, str]]
"""What a provider posts: content type, body, headers."""


def as_json(event: Any, headers: dict[str, str] = BASIC) -> Post:
    return "application/json", json.dumps(event), headers


def mailgun(body: bytes) -> Post:
    form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
    variables = {name[2:]: value for name, value in form.items() if name.startswith("v:")}
    made = hmac.new(b"signing-key", b"1529006854token", hashlib.sha256).hexdigest()
    event = {
        "signature": {"timestamp": "1529006854", "token": "token", "signature": made},
        "event-data": {
            "event": "delivered",
            "timestamp": 1529006854.3,
            "recipient": form["to"],
            "message": {"headers": {"message-id": "20160306015544.116301.25145@example.com"}},
            "user-variables": variables,
        },
    }
    return as_json(event)


def mandrill(body: bytes) -> Post:
    metadata = json.loads(body)["message"]["metadata"]
    event = {
        "event": "send",
        "_id": "abc123",
        "ts": 1461095211,
        "msg": {"metadata": metadata, "email": "a@example.com"},
    }
    form = {"mandrill_events": json.dumps([event])}
    signed = "http://user:password@testserver/anymail/mandrill/" + "".join(name + value for name, value in form.items())
    made = base64.b64encode(hmac.new(b"webhook-key", signed.encode(), hashlib.sha1).digest()).decode()
    return "form", form, {**BASIC, "X-Mandrill-Signature": made}


def sendgrid(body: bytes) -> Post:
    sent = json.loads(body)
    arguments = {**sent["custom_args"], **sent["personalizations"][0]["custom_args"]}
    text = json.dumps([{"event": "processed", "timestamp": 1461095246, "email": "ann@example.com", **arguments}])
    made = KEY.sign(b"1461095246" + text.encode(), ec.ECDSA(hashes.SHA256()))
    signature = {
        "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(made).decode(),
        "X-Twilio-Email-Event-Webhook-Timestamp": "1461095246",
    }
    return "application/json", text, {**BASIC, **signature}


def unisender_go(body: bytes) -> Post:
    message = json.loads(body)["message"]
    metadata = {**message["global_metadata"], **message["recipients"][0]["metadata"]}
    data = {"status": "sent", "event_time": "2015-11-30 15:09:42", "email": "ann@example.com", "metadata": metadata}
    events = [{"event_name": "transactional_email_status", "event_data": data}]
    text = json.dumps({"auth": "ugo-key", "events_by_user": [{"events": events}]})
    return "application/json", text.replace("ugo-key", hashlib.md5(text.encode()).hexdigest()), BASIC


def postmark(body: bytes) -> Post:
    event = {"RecordType": "Delivery", "MessageID": UUID, "Recipient": "a@example.com"}
    return as_json({**event, "DeliveredAt": "2014-08-01T13:28:10Z", "Metadata": json.loads(body)["Metadata"]})


def sparkpost(body: bytes) -> Post:
    event = {"type": "injection", "timestamp": "1454442600", "transmission_id": "65832150921904138"}
    event["rcpt_meta"] = json.loads(body)["metadata"]
    return as_json([{"msys": {"message_event": event}}])


def resend(body: bytes) -> Post:
    headers = [{"name": name, "value": value} for name, value in json.loads(body)["headers"].items()]
    data = {"email_id": UUID, "to": ["ann@example.com"], "headers": headers}
    return as_json({"type": "email.sent", "created_at": "2024-02-22T23:41:12.126Z", "data": data})


def brevo(body: bytes) -> Post:
    event = {
        "event": "request",
        "ts_epoch": 1502910660,
        "message-id": "<201906041124.44340027797@smtp-relay.mailin.fr>",
    }
    return as_json({**event, "X-Mailin-custom": json.loads(body)["headers"]["X-Mailin-custom"]})


PROVIDERS: dict[str, Callable[[bytes], Post]] = {
    made.__name__: made for made in (mailgun, mandrill, sendgrid, unisender_go, postmark, sparkpost, resend, brevo)
}
SIGNED = ["mailgun", "mandrill", "sendgrid", "unisender_go"]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A provider that takes everything, and whose answers all get lost."""
    with FaultServer([Close("request")]) as server:
        yield server


def hand_over(name: str, server: FaultServer, message: Any) -> None:
    options = {"sender_domain": "example.com"} if name == "mailgun" else {}
    send(name, server, message, **options)


def held(name: str, server: FaultServer, **attributes: Any) -> bytes:
    """Send a message whose answer is lost; returns the body that the provider got."""
    with pytest.raises(AnymailAPIError):
        hand_over(name, server, mail(idempotency_key="receipt/42", **attributes))
    body: bytes = server.requests[-1].body
    return body


def post(name: str, kind: str, body: Any, headers: dict[str, str]) -> int:
    options = {} if kind == "form" else {"content_type": kind}
    place = "mandrill/" if name == "mandrill" else f"{name}/tracking/"
    with override_settings(ROOT_URLCONF=URLS, ANYMAIL=ANYMAIL, ALLOWED_HOSTS=["testserver"]):
        response = Client().post(f"/anymail/{place}", body, headers=headers, **options)
    return int(response.status_code)


@pytest.mark.parametrize("name", PROVIDERS)
def test_an_event_makes_a_held_message_done(name: str, ledger: MemoryLedger, server: FaultServer) -> None:
    body = held(name, server, metadata={"order": "42"})
    before = server.complete
    assert ledger.counts() == {Phase.HELD: 1}
    assert post(name, *PROVIDERS[name](body)) == 200
    assert ledger.counts() == {Phase.DONE: 1}
    again = mail(idempotency_key="receipt/42", metadata={"order": "42"})
    if name == "postmark":  # its answers tell of each recipient, an event only of one
        with pytest.raises(AlreadyDone):
            hand_over(name, server, again)
    else:
        hand_over(name, server, again)
        assert again.anymail_status.status <= {"queued", "sent", "unknown"}
    assert server.complete == before


@pytest.mark.parametrize("name", SIGNED)
def test_a_bad_signature_changes_nothing(name: str, ledger: MemoryLedger, server: FaultServer) -> None:
    kind, body, headers = PROVIDERS[name](held(name, server))
    if name == "mandrill":
        headers["X-Mandrill-Signature"] = "A" + headers["X-Mandrill-Signature"][1:]
        body["mandrill_events"] += " "
    else:
        body = body.replace("receipt/42", "receipt/43")
        body = body.replace('"timestamp": "1529006854"', '"timestamp": "1529006855"')
    assert post(name, kind, body, headers) == 400
    assert ledger.counts() == {Phase.HELD: 1}


def test_the_id_that_the_event_names_is_replayed(ledger: MemoryLedger, server: FaultServer) -> None:
    body = held("resend", server)
    post("resend", *resend(body))
    again = mail(idempotency_key="receipt/42")
    hand_over("resend", server, again)
    assert again.anymail_status.message_id == UUID


@pytest.mark.parametrize("event", ["email.opened", "email.bounced", "email.unheard_of"])
def test_every_kind_of_event_but_an_unknown_one_counts(event: str, ledger: MemoryLedger, server: FaultServer) -> None:
    kind, body, headers = resend(held("resend", server))
    post("resend", kind, body.replace("email.sent", event), headers)
    assert ledger.counts() == {Phase.HELD if event == "email.unheard_of" else Phase.DONE: 1}


def test_events_of_others_are_ignored(ledger: MemoryLedger, server: FaultServer) -> None:
    body = held("postmark", server)
    for value in ("receipt/43", "", 7):
        changed = {**json.loads(body), "Metadata": {"retrypolicy": value}}
        assert post("postmark", *postmark(json.dumps(changed).encode())) == 200
    assert ledger.counts() == {Phase.HELD: 1}


def test_a_ledger_that_is_away_does_not_fail_the_webhook(
    project: dict[str, Any], caplog: Any, server: FaultServer
) -> None:
    body = held("postmark", server)
    project["LEDGER"] = "nowhere"
    assert post("postmark", *postmark(body)) == 200
    assert "could not be recorded" in caplog.text


def test_whoever_is_sending_right_now_says_so_himself(ledger: MemoryLedger) -> None:
    digest = key_digest(settings.the_secret(), "receipt/42")
    ledger.arm(Take(key=digest, owner=b"o", token=b"t", fingerprint=b"f", lease=60.0))
    assert not arrived(ledger, "receipt/42")
    assert ledger.counts() == {Phase.ARMED: 1}


def test_good_news_is_believed_after_a_wrong_verdict(ledger: MemoryLedger, server: FaultServer) -> None:
    """Somebody said that it did not arrive; the event knows better, and nothing is sent."""
    body = held("postmark", server)
    (record,) = ledger.records()
    ledger.resolve(record.key, record.fence, "not_applied")
    post("postmark", *postmark(body))
    with pytest.raises(AlreadyDone):
        hand_over("postmark", server, mail(idempotency_key="receipt/42"))
    assert server.complete == 1


def test_the_key_of_an_older_secret_is_found(
    project: dict[str, Any], ledger: MemoryLedger, server: FaultServer
) -> None:
    project["SECRET"] = "old"
    body = held("postmark", server)
    project["SECRET"] = ["new", "old"]
    post("postmark", *postmark(body))
    assert ledger.counts() == {Phase.DONE: 1}


# -- no event ---------------------------------------------------------------------------


def test_silence_counts_after_long_enough(project: dict[str, Any], server: FaultServer) -> None:
    clock = VirtualClock()
    ledger = project["LEDGER"] = MemoryLedger(clock=clock)
    project["RELEASE_AFTER"] = {"sparkpost": 60, "postmark": 90}
    held("postmark", server)
    clock.advance(61 * 60)
    assert list(without_event(ledger)) == []
    clock.advance(30 * 60)
    ((record, quiet),) = without_event(ledger)
    assert (record.provider, quiet) == ("postmark", 5400.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sparkpost": 30}, "at least 60"),
        ({"postmark": 0}, "more than 0"),
        ({"postmark": True}, "more than 0"),
        ({"postman": 60}, "postman"),
        ({"postal": 60}, "don't carry"),
        (60, "must be a dict"),
    ],
    ids=str,
)
def test_a_bad_time_is_refused(given: Any, words: str, project: dict[str, Any]) -> None:
    project["RELEASE_AFTER"] = given
    with pytest.raises(ConfigurationError, match=words):
        settings.release_after()


def test_without_the_app_no_metadata_is_added(server: FaultServer) -> None:
    with override_settings(INSTALLED_APPS=["anymail", "retrypolicy.django"]):
        assert b"retrypolicy" not in held("postmark", server)


def test_held_is_held_until_then(ledger: MemoryLedger, server: FaultServer) -> None:
    held("postmark", server)
    with pytest.raises(SendHeld):
        hand_over("postmark", server, mail(idempotency_key="receipt/42"))
    assert server.complete == 1
