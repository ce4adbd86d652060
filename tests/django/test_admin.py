"""The admin page, through Django's test client. (`nox -s screenshots` drives it in a real browser.)"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from anymail.exceptions import AnymailAPIError
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client, override_settings
from django.urls import path

from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.ledger import Take
from retrypolicy.testing import Close, FaultServer
from tests.anymail.sending import mail, ok, send

pytestmark = pytest.mark.usefixtures("database", "project")

URLS = ModuleType("urls")
URLS.urlpatterns = [path("admin/", admin.site.urls)]  # type: ignore[attr-defined]
LIST = "/admin/retrypolicy/send/"


@pytest.fixture(autouse=True)
def urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=URLS, ALLOWED_HOSTS=["testserver"], STATIC_URL="/static/"):
        yield


def logged_in(*permissions: str, superuser: bool = False) -> Client:
    user = User.objects.create(
        username=f"ann-{uuid.uuid4().hex[:6]}", is_staff=True, is_active=True, is_superuser=superuser
    )
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def client() -> Client:
    return logged_in(superuser=True)


@pytest.fixture
def sends(project: dict[str, Any], ledger: MemoryLedger) -> dict[str, str]:
    """Two held, one done, one in flight: digests by label."""
    with FaultServer([Close("request"), Close("request"), ok("postmark")]) as server:
        for number in (42, 43, 44):
            message = mail(idempotency_key=f"receipt/{number}", retry_label=f"order {number}")
            if number == 44:
                send("postmark", server, message)
            else:
                with pytest.raises(AnymailAPIError):
                    send("postmark", server, message)
    ledger.arm(
        Take(key=b"k" * 32, owner=b"o", token=b"t", fingerprint=b"f", lease=60.0, label="order 45", provider="resend")
    )
    return {record.label: record.key.hex() for record in ledger.records()}


def labels(html: str) -> list[str]:
    return sorted(set(re.findall(r">(order \d+)</a>", html)))


def listed(client: Client, **chosen: str) -> list[str]:
    response = client.get(LIST, chosen)
    assert response.status_code == 200
    return labels(response.content.decode())


def test_it_is_in_the_index(client: Client) -> None:
    assert LIST in client.get("/admin/").content.decode()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, ["order 42", "order 43"]),
        ({"phase": "held"}, ["order 42", "order 43"]),
        ({"phase": "in_flight"}, ["order 45"]),
        ({"phase": "settled"}, ["order 44"]),
        ({"phase": "all"}, ["order 42", "order 43", "order 44", "order 45"]),
        ({"phase": "nonsense"}, ["order 42", "order 43"]),
        ({"phase": "all", "provider": "resend"}, ["order 45"]),
        ({"q": "42"}, ["order 42"]),
        ({"q": "receipt/43"}, ["order 43"]),
        ({"q": "receipt/44"}, ["order 44"]),
        ({"q": "\x00"}, []),
        ({"age": "1h"}, []),
    ],
    ids=str,
)
@pytest.mark.usefixtures("sends")
def test_the_list(chosen: dict[str, str], expected: list[str], client: Client) -> None:
    assert listed(client, **chosen) == expected


def test_a_dead_owner_counts_as_held(client: Client, ledger: MemoryLedger) -> None:
    ledger.arm(Take(key=b"k" * 32, owner=b"o", token=b"t", fingerprint=b"f", lease=-1.0, label="order 46"))
    assert listed(client) == ["order 46"]
    client.post(LIST, {"action": "arrived", "send": (b"k" * 32).hex(), "confirmed": "yes"})
    assert ledger.counts() == {Phase.DONE: 1}


@pytest.mark.parametrize(("action", "phase"), [("arrived", Phase.DONE), ("release", Phase.FAILED)])
def test_resolving_in_bulk(
    action: str, phase: Phase, sends: dict[str, str], client: Client, ledger: MemoryLedger
) -> None:
    chosen = [sends["order 42"], sends["order 43"], sends["order 44"]]
    asked = client.post(LIST, {"action": action, "send": chosen, "back": "phase=held&q=order"})
    page = asked.content.decode()
    assert "Is this true of all 2?" in page
    assert "order 44" not in page
    assert ledger.counts()[Phase.HELD] == 2
    hidden = dict(re.findall(r'name="(action|back|confirmed)" value="([^"]*)"', page))
    again = re.findall(r'name="send" value="([^"]*)"', page)
    answer = client.post(LIST, {**hidden, "back": "phase=held&q=order", "send": again}, follow=True)
    assert answer.redirect_chain == [(f"{LIST}?phase=held&q=order", 302)]
    assert "2 send(s) resolved" in answer.content.decode()
    assert Phase.HELD not in ledger.counts()
    for label in ("order 42", "order 43"):
        record = ledger.read(bytes.fromhex(sends[label]))[0]
        assert record is not None
        assert record.phase is phase
        assert record.result is not None
        assert record.result["by"].endswith("in the admin")
        entry = LogEntry.objects.filter(object_id=sends[label]).latest("pk")
        assert (entry.object_repr, entry.user.username) == (label, record.result["by"].split()[0])
    detail = client.get(f"{LIST}{sends['order 42']}/change/").content.decode()
    assert "was held" in detail


def test_what_is_posted_where_to_return_leads_nowhere_else(client: Client) -> None:
    answer = client.post(LIST, {"action": "", "back": "next=https://evil.example&phase=all"})
    assert answer.headers["Location"] == f"{LIST}?phase=all"


def test_nothing_is_done_without_a_choice(client: Client, sends: dict[str, str], ledger: MemoryLedger) -> None:
    for posted in (
        {"send": sends["order 42"]},
        {"action": "delete", "send": sends["order 42"], "confirmed": "yes"},
        {"action": "arrived", "confirmed": "yes"},
        {"action": "arrived", "send": ["zz", "00" * 32, sends["order 45"]], "confirmed": "yes"},
    ):
        assert client.post(LIST, posted).status_code == 302
    assert ledger.counts() == {Phase.HELD: 2, Phase.DONE: 1, Phase.ARMED: 1}


def test_it_is_said_why(client: Client, sends: dict[str, str], ledger: MemoryLedger) -> None:
    def take(letter: bytes, lease: float, **more: Any) -> Take:
        return Take(key=letter * 32, owner=b"o", token=b"t", fingerprint=b"f", lease=lease, label="more", **more)

    def why(digest: str) -> str:
        html = client.get(LIST, {"phase": "all"}).content.decode()
        row = next(part for part in html.split("<tr>") if digest in part)
        return str(re.findall(r"<td>([^<]*)</td>", row.split("</th>")[1])[0])

    ledger.arm(take(b"d", -1.0))
    ledger.claim(take(b"c", 60.0))
    ledger.claim(take(b"b", -1.0, not_before=1e11))
    ledger.arm(take(b"a", 60.0))
    ledger.reject(b"a" * 32, b"o", 1)
    assert [why((letter * 32).hex()) for letter in (b"d", b"c", b"b", b"a")] == [
        "its sender died, or is silent",
        "between two attempts",
        "not due yet",
        "refused",
    ]
    assert why(sends["order 42"]) == "its answer was lost"
    assert why(sends["order 44"]) == "answered 200"
    assert why(sends["order 45"]) == "on the wire"
    client.post(LIST, {"action": "arrived", "send": sends["order 42"], "confirmed": "yes"})
    assert why(sends["order 42"]).startswith("resolved by ann-")


def test_the_page_of_a_record(client: Client, sends: dict[str, str]) -> None:
    held = client.get(f"{LIST}{sends['order 42']}/change/").content.decode()
    assert "may have been applied" in held
    assert "It did not arrive: release" in held
    done = client.get(f"{LIST}{sends['order 44']}/change/").content.decode()
    assert "Applied" in done
    assert "release" not in done
    for nothing in ("00" * 32, "zz"):
        assert client.get(f"{LIST}{nothing}/change/").status_code == 404


@pytest.mark.parametrize(
    ("make", "listing", "acting"),
    [
        (lambda: logged_in("view_send"), 200, 403),
        (lambda: logged_in("change_send"), 200, 302),
        (lambda: logged_in(), 403, 403),
        (Client, 302, 302),
    ],
    ids=["view", "change", "staff", "anonymous"],
)
def test_permissions(
    make: Callable[[], Client], listing: int, acting: int, sends: dict[str, str], ledger: MemoryLedger
) -> None:
    client = make()
    assert client.get(LIST).status_code == listing
    assert client.get(f"{LIST}{sends['order 42']}/change/").status_code == listing
    posted = {"action": "arrived", "send": sends["order 42"], "confirmed": "yes"}
    assert client.post(LIST, posted).status_code == acting
    assert ledger.counts()[Phase.HELD] == (1 if (listing, acting) == (200, 302) else 2)
    if acting == 403 and listing == 200:
        assert "It arrived" not in client.get(LIST).content.decode()


@pytest.mark.parametrize("place", ["add/", "1/delete/", "1/history/"])
def test_there_is_no_page_to_write_records(place: str, client: Client) -> None:
    assert client.get(LIST + place).status_code == 404


@pytest.mark.parametrize("given", [None, "nowhere", "redis://127.0.0.1:1/0"])
def test_a_ledger_that_is_not_there_is_a_message(given: str | None, client: Client, project: dict[str, Any]) -> None:
    project["LEDGER"] = given
    response = client.get(LIST)
    assert response.status_code == 200
    assert "ledger" in response.content.decode().lower().partition("messagelist")[2]
    assert client.get(f"{LIST}{'00' * 32}/change/").status_code == 302
    assert client.post(LIST, {"action": "arrived", "send": "00" * 32}).status_code == 302


def test_a_label_can_not_write_into_the_page(client: Client, ledger: MemoryLedger) -> None:
    label = "<script>alert(1)</script>"
    ledger.arm(Take(key=b"k" * 32, owner=b"o", token=b"t", fingerprint=b"f", lease=-1.0, label=label))
    for place in (LIST, f"{LIST}{(b'k' * 32).hex()}/change/"):
        assert label not in client.get(place).content.decode()


def test_a_long_list_says_that_there_is_more(
    client: Client, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrypolicy.django.listing.MOST_SHOWN", 2)
    for number in range(3):
        take = Take(
            key=bytes([number]) * 32, owner=b"o", token=b"t", fingerprint=b"f", lease=-1.0, label=f"order {number}"
        )
        ledger.arm(take)
    page = client.get(LIST).content.decode()
    assert len(labels(page)) == 2
    assert "There are more" in page
