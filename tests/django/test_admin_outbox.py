"""*Send again*, on the pages of the ledger and of the outbox; and what the outbox's page shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import transaction
from django.test import Client, override_settings

from retrypolicy.django import outbox
from retrypolicy.django.models import OutboxMessage
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.sending import JSON, SECRET, mail, ok

from .test_admin import LIST, URLS, logged_in

pytestmark = pytest.mark.usefixtures("database", "project")

OUTBOX = "/admin/retrypolicy/outboxmessage/"
State = OutboxMessage.State


@pytest.fixture(autouse=True)
def urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=URLS, ALLOWED_HOSTS=["testserver"], STATIC_URL="/static/"):
        yield
    OutboxMessage.objects.all().delete()


@pytest.fixture
def client() -> Client:
    return logged_in(superuser=True)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Two messages of the outbox held, one failed; one held that nobody has. Then it takes everything."""
    bad = [Close("request"), Close("request"), Answer(422, headers=JSON, body=b'{"ErrorCode": 300}'), Close("request")]
    with FaultServer([*bad, *[ok("postmark")] * 3]) as server:
        anymail = {"POSTMARK_SERVER_TOKEN": SECRET, "POSTMARK_API_URL": server.url("/")}
        backend = "retrypolicy.anymail.backends.postmark.EmailBackend"
        with override_settings(EMAIL_BACKEND=backend, ANYMAIL=anymail):
            for number in (42, 43, 44):
                outbox.put(mail(retry_label=f"order {number}"), key=f"receipt/{number}")
            with pytest.raises(Exception, match="Connection"):
                mail(idempotency_key="receipt/45", retry_label="order 45").send()
            yield server


def digests(ledger: MemoryLedger) -> dict[str, str]:
    return {record.label: record.key.hex() for record in ledger.records()}


def text(response: Any) -> str:
    return re.sub(r"\s+", " ", response.content.decode())


def states() -> dict[str, int]:
    return dict(OutboxMessage.objects.values_list("label", "state"))


def test_send_again_from_the_ledgers_page(client: Client, server: FaultServer, ledger: MemoryLedger) -> None:
    found = digests(ledger)
    shown = client.get(LIST).content.decode()
    assert "It did not arrive: send it again" in shown
    assert shown.count("held, in the outbox") == 2
    chosen = {"action": "again", "send": [found["order 42"], found["order 45"]]}
    asked = text(client.post(LIST, chosen))
    assert "Is this true of all 1?" in asked
    assert "1 of them not in the outbox" in asked
    assert server.complete == 4  # nothing is sent before it is confirmed
    said = text(client.post(LIST, {**chosen, "confirmed": "yes"}, follow=True))
    assert "1 send(s) resolved" in said
    assert server.complete == 5
    assert states() == {"order 43": State.HELD, "order 44": State.FAILED}
    assert ledger.read(bytes.fromhex(found["order 42"]))[0].phase is Phase.DONE  # type: ignore[union-attr]
    entry = LogEntry.objects.filter(object_id=found["order 42"]).latest("pk")
    assert entry.change_message == "not_applied: was held, sent again"


def test_it_is_offered_only_where_the_outbox_has_the_message(
    client: Client, server: FaultServer, ledger: MemoryLedger
) -> None:
    found = digests(ledger)
    for label, offered in ("order 42", True), ("order 45", False):
        page = client.get(f"{LIST}{found[label]}/change/").content.decode()
        assert ("send it again" in page) is offered
        assert "It arrived" in page
    OutboxMessage.objects.all().delete()
    assert "send it again" not in client.get(LIST).content.decode()
    said = text(client.post(LIST, {"action": "again", "send": [found["order 42"]], "confirmed": "yes"}, follow=True))
    assert "1 of them not in the outbox" in said
    assert server.complete == 4


def test_what_is_resolved_is_looked_at_at_once(client: Client, server: FaultServer, ledger: MemoryLedger) -> None:
    found = digests(ledger)
    assert list(outbox.sweep()) == []
    for action, label in ("arrived", "order 42"), ("release", "order 43"):
        client.post(LIST, {"action": action, "send": [found[label]], "confirmed": "yes"})
    list(outbox.sweep())
    assert server.complete == 5  # that which did not arrive
    assert states() == {"order 44": State.FAILED}


def test_the_outboxs_page(client: Client, server: FaultServer) -> None:
    shown = text(client.get(OUTBOX))
    assert all(label in shown for label in ("order 42", "order 43", "order 44", "held", "failed", "422"))
    row = OutboxMessage.objects.get(label="order 42")
    shown += text(client.get(f"{OUTBOX}{row.pk}/change/"))
    assert "receipt/42" in shown
    for secret in (SECRET, "ann@example.com", "A secret"):
        assert secret not in shown
    assert 'name="_save"' not in shown
    assert client.get(f"{OUTBOX}add/").status_code == 403


def test_send_again_from_the_outboxs_page(
    client: Client, server: FaultServer, ledger: MemoryLedger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "retrypolicy.audit")
    with transaction.atomic():
        outbox.put(mail(retry_label="order 46"), key="receipt/46")
        transaction.get_connection().run_on_commit.clear()
    chosen = {"action": "send_again", "_selected_action": list(OutboxMessage.objects.values_list("pk", flat=True))}
    asked = text(client.post(OUTBOX, chosen))
    assert "Are all 3 to be sent again?" in asked
    assert "1 of them wait already" in asked
    assert server.complete == 4
    said = text(client.post(OUTBOX, {**chosen, "confirmed": "yes"}, follow=True))
    assert "3 message(s) sent again." in said
    assert server.complete == 7
    assert states() == {"order 46": State.WAITING}
    assert ledger.counts() == {Phase.DONE: 3, Phase.HELD: 1}
    entries = LogEntry.objects.filter(object_repr__startswith="order 4").values_list("object_repr", "change_message")
    assert ("order 44", "sent again: was failed") in entries
    assert ("order 43", "sent again: was held") in entries
    assert caplog.text.count("send again: message") == 3


def test_what_is_being_sent_is_not_sent_again(client: Client, server: FaultServer, ledger: MemoryLedger) -> None:
    from retrypolicy.guard.ledger import Take, Taken

    failed = OutboxMessage.objects.get(label="order 44")
    record = next(record for record in ledger.records() if record.label == "order 44")
    take = Take(key=record.key, owner=b"o", token=b"t", fingerprint=record.fingerprint, lease=60.0)
    assert isinstance(ledger.arm(take), Taken)
    posted = {"action": "send_again", "_selected_action": [failed.pk], "confirmed": "yes"}
    said = text(client.post(OUTBOX, posted, follow=True))
    assert "Order 44: not changed, somebody is sending it right now." in said
    assert (server.complete, states()["order 44"]) == (4, State.FAILED)


@pytest.mark.parametrize(
    ("permission", "sees", "sends", "deletes"),
    [
        (None, False, False, False),
        ("view_outboxmessage", True, False, False),
        ("change_outboxmessage", True, True, False),
        ("delete_outboxmessage", False, False, False),
    ],
)
def test_permissions(permission: str | None, sees: bool, sends: bool, deletes: bool, server: FaultServer) -> None:
    client = logged_in(*([permission] if permission else []))
    response = client.get(OUTBOX)
    assert (response.status_code == 200) is sees
    assert ("send_again" in response.content.decode()) is sends
    assert ("delete_selected" in response.content.decode()) is deletes
    row = OutboxMessage.objects.get(label="order 44")
    client.post(OUTBOX, {"action": "send_again", "_selected_action": [row.pk], "confirmed": "yes"})
    assert (server.complete == 5) is sends
