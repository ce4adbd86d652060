"""A replayed answer gives Anymail's own backend the same statuses and ids as the first one did, for every provider.

Each case holds the answer as the provider documents it, made for the request that Anymail really sent.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
from anymail.exceptions import AnymailRecipientsRefused
from anymail.message import AnymailMessage
from attrs import Factory, define, field, frozen
from requests.adapters import BaseAdapter

from retrypolicy.guard.key import content_of
from retrypolicy.providers import Provider, load

pytestmark = pytest.mark.filterwarnings("ignore:.*SendGrid.*")

TO = ["Ann Example <ann@example.com>", '"Bob, the 2nd" <bob@example.com>']
CC = ["carol@example.org"]
BCC = ["dave@example.net"]
UUIDS = [f"{n:08d}-0ce1-4ea6-ab68-afcd6dc2e794" for n in range(9)]

Answer = tuple[int, dict[str, str], bytes]
JSON = {"Content-Type": "application/json"}


@define
class Canned(BaseAdapter):
    """Answers every request with one answer, and keeps the request."""

    answer: Callable[[Any], Answer]
    sent: list[requests.PreparedRequest] = Factory(list)

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        self.sent.append(request)
        response = requests.Response()
        status, headers, content = self.answer(request.body)
        response.status_code = status
        response.headers.update(headers)
        response.raw = io.BytesIO(content)
        response.request, response.url = request, request.url or ""
        return response

    def close(self) -> None:
        pass


def message(*, batch: bool | str = False, cc: list[str] = CC, bcc: list[str] = BCC) -> AnymailMessage:
    """To Ann and Bob; as a batch if told so, by what makes it one where headers for each recipient are unknown."""
    mail = AnymailMessage("A secret subject", "A secret body", "shop@example.com", TO, cc=cc, bcc=bcc)
    if batch:
        one = {"List-Unsubscribe": "<https://example.com/ann>"}
        setattr(mail, "merge_headers" if batch is True else batch, {"ann@example.com": one})
    return mail


def post(name: str, options: dict[str, Any], mail: AnymailMessage, answer: Callable[[Any], Answer]) -> Canned:
    """Send through Anymail's own backend."""
    backend = importlib.import_module(f"anymail.backends.{name}").EmailBackend(**options)
    canned = Canned(answer)
    backend.open()
    backend.session.mount("https://", canned)
    assert backend.send_messages([mail]) == 1
    return canned


def answered(content: Any, status: int = 200, headers: dict[str, str] = JSON) -> Callable[[Any], Answer]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda _: (status, headers, body)


def of(make: Callable[[Any], Any], status: int = 200, headers: dict[str, str] = JSON) -> Callable[[Any], Answer]:
    return lambda body: (status, headers, json.dumps(make(json.loads(body))).encode())


@frozen(kw_only=True)
class Case:
    """One send, and what the provider answers."""

    name: str
    answer: Callable[[Any], Answer]
    mail: dict[str, Any] = field(factory=dict)
    options: dict[str, Any] = field(factory=dict)
    expect: dict[str, tuple[str | None, str]]


def everybody(message_id: Any, status: str = "queued") -> dict[str, tuple[Any, str]]:
    names = ("ann@example.com", "bob@example.com", "carol@example.org", "dave@example.net")
    return dict.fromkeys(names, (message_id, status))


MAILGUN = "<20160306015544.116301.25145@example.com>"
BREVO = ["<201906041124.44340027797@smtp-relay.mailin.fr>", "<201906041124.99940027797@smtp-relay.mailin.fr>"]
KEYS = {
    "brevo": {"api_key": "k"},
    "mailersend": {"api_token": "k"},
    "mailgun": {"api_key": "k"},
    "mailjet": {"api_key": "k", "secret_key": "s"},
    "mailtrap": {"api_token": "k"},
    "mandrill": {"api_key": "k"},
    "postal": {"api_key": "k", "api_url": "https://postal.example.com"},
    "postmark": {"server_token": "k"},
    "resend": {"api_key": "k"},
    "scaleway": {"secret_key": "k", "project_id": "p"},
    "sendgrid": {"api_key": "k"},
    "sparkpost": {"api_key": "k"},
    "unisender_go": {
        "api_key": "k",
        "api_url": "https://go1.unisender.ru/ru/transactional/api/v1",
        "generate_message_id": False,
    },
}

ADDRESSES = ["ann@example.com", "bob@example.com", "carol@example.org", "dave@example.net"]

CASES = {
    "resend": Case(name="resend", answer=answered({"id": UUIDS[0]}), expect=everybody(UUIDS[0])),
    "resend batch": Case(
        name="resend",
        mail={"batch": True, "cc": [], "bcc": []},
        answer=answered({"data": [{"id": UUIDS[0]}, {"id": UUIDS[1]}]}),
        expect={"ann@example.com": (UUIDS[0], "queued"), "bob@example.com": (UUIDS[1], "queued")},
    ),
    "sparkpost": Case(
        name="sparkpost",
        answer=answered(
            {"results": {"total_rejected_recipients": 0, "total_accepted_recipients": 4, "id": "11668787484950529"}}
        ),
        expect=everybody("11668787484950529"),
    ),
    "sparkpost, some rejected": Case(
        name="sparkpost",
        answer=answered({"results": {"total_rejected_recipients": 1, "total_accepted_recipients": 3, "id": "116"}}),
        expect=everybody("116", "unknown"),
    ),
    "sparkpost batch": Case(
        name="sparkpost",
        mail={"batch": True, "cc": [], "bcc": []},
        answer=answered({"results": {"total_rejected_recipients": 0, "total_accepted_recipients": 2, "id": "116"}}),
        expect={"ann@example.com": ("116", "queued"), "bob@example.com": ("116", "queued")},
    ),
    "brevo": Case(name="brevo", answer=answered({"messageId": BREVO[0]}, 201), expect=everybody(BREVO[0])),
    "brevo batch": Case(
        name="brevo",
        mail={"batch": True},
        answer=answered({"messageIds": BREVO}, 201),
        expect={
            **everybody(None),
            "ann@example.com": (BREVO[0], "queued"),
            "bob@example.com": (BREVO[1], "queued"),
        },
    ),
    "unisender_go": Case(
        name="unisender_go",
        answer=of(
            lambda asked: {
                "status": "success",
                "job_id": "1ZymBc-00041N-9X",
                "emails": ["ann@example.com", "carol@example.org", "dave@example.net"],
                "failed_emails": {"bob@example.com": "unsubscribed", "ann@example.com": "duplicate"},
            }
        ),
        expect={**everybody("1ZymBc-00041N-9X"), "bob@example.com": (None, "rejected")},
    ),
    "unisender_go batch": Case(
        name="unisender_go",
        mail={"batch": True, "cc": [], "bcc": []},
        answer=answered({"status": "success", "job_id": "1Zy", "emails": ["ann@example.com", "bob@example.com"]}),
        expect={"ann@example.com": ("1Zy", "queued"), "bob@example.com": ("1Zy", "queued")},
    ),
    "mailjet": Case(
        name="mailjet",
        answer=of(
            lambda asked: {
                "Messages": [
                    {
                        "Status": "success",
                        "CustomID": "",
                        "To": [
                            {"Email": to["Email"], "MessageUUID": UUIDS[i], "MessageID": 456 + i, "MessageHref": "/"}
                            for i, to in enumerate(asked["Messages"][0]["To"])
                        ],
                        "Cc": [{"Email": "carol@example.org", "MessageUUID": UUIDS[4], "MessageID": 1152921500}],
                        "Bcc": [{"Email": "dave@example.net", "MessageUUID": UUIDS[5], "MessageID": 19}],
                    }
                ]
            }
        ),
        expect={
            "ann@example.com": ("456", "sent"),
            "bob@example.com": ("457", "sent"),
            "carol@example.org": ("1152921500", "sent"),
            "dave@example.net": ("19", "sent"),
        },
    ),
    "mailjet batch, one failed": Case(
        name="mailjet",
        mail={"batch": True, "cc": [], "bcc": []},
        answer=answered(
            {
                "Messages": [
                    {"Status": "success", "To": [{"Email": "ann@example.com", "MessageUUID": "u", "MessageID": 7}]},
                    {"Status": "error", "Errors": [{"ErrorCode": "mj-0013", "ErrorRelatedTo": ["To[0].Email"]}]},
                ]
            },
            400,
        ),
        expect={"ann@example.com": ("7", "sent"), "bob@example.com": (None, "failed")},
    ),
    "mailgun": Case(
        name="mailgun", answer=answered({"id": MAILGUN, "message": "Queued. Thank you."}), expect=everybody(MAILGUN)
    ),
    "mailgun batch": Case(
        name="mailgun",
        mail={"batch": True},
        answer=answered({"id": MAILGUN, "message": "Queued. Thank you."}),
        expect=everybody(MAILGUN),
    ),
    "mailersend": Case(
        name="mailersend",
        answer=answered(b"", 202, {"Content-Type": "text/html; charset=utf-8", "X-Message-Id": "5e42957d51f1d94a1070"}),
        expect=everybody("5e42957d51f1d94a1070"),
    ),
    "mailersend, some suppressed": Case(
        name="mailersend",
        answer=answered(
            {
                "message": "There are some warnings for your request.",
                "warnings": [
                    {
                        "type": "SOME_SUPPRESSED",
                        "warning": "Some of the recipients have been suppressed.",
                        "recipients": [{"email": "bob@example.com", "name": "Bob", "reasons": ["blocklisted"]}],
                    }
                ],
            },
            202,
            {**JSON, "X-Message-Id": "5e42957d51f1d94a1070"},
        ),
        expect={**everybody("5e42957d51f1d94a1070"), "bob@example.com": (None, "rejected")},
    ),
    "mailersend batch": Case(
        name="mailersend",
        mail={"batch": "merge_data", "cc": [], "bcc": []},
        options={"batch_send_mode": "use-bulk-email"},
        answer=answered(
            {"message": "The bulk email is being processed.", "bulk_email_id": "614470d1588b866d0454"}, 202
        ),
        expect={
            "ann@example.com": ("bulk:614470d1588b866d0454", "unknown"),
            "bob@example.com": ("bulk:614470d1588b866d0454", "unknown"),
        },
    ),
    "mailtrap": Case(
        name="mailtrap",
        answer=answered({"success": True, "message_ids": UUIDS[:4]}),
        expect={address: (UUIDS[i], "queued") for i, address in enumerate(ADDRESSES)},
    ),
    "mailtrap sandbox": Case(
        name="mailtrap",
        options={"sandbox_id": 12},
        answer=answered({"success": True, "message_ids": ["4015255117"]}),
        expect=everybody("4015255117"),
    ),
    "mailtrap batch, one failed": Case(
        name="mailtrap",
        mail={"batch": True, "cc": [], "bcc": []},
        answer=answered(
            {
                "success": True,
                "responses": [
                    {"success": True, "message_ids": [UUIDS[0]]},
                    {"success": False, "errors": ["'to' address is invalid: bob@example.com"]},
                ],
            }
        ),
        expect={"ann@example.com": (UUIDS[0], "queued"), "bob@example.com": (None, "failed")},
    ),
    "mandrill": Case(
        name="mandrill",
        answer=answered(
            [
                {"email": "dave@example.net", "status": "sent", "_id": "d0", "reject_reason": None},
                {"email": "ann@example.com", "status": "queued", "_id": "a0", "queued_reason": "hourly-quota"},
                {"email": "bob@example.com", "status": "rejected", "_id": "b0", "reject_reason": "hard-bounce"},
                {"email": "carol@example.org", "status": "invalid"},
            ]
        ),
        expect={
            "ann@example.com": ("a0", "queued"),
            "bob@example.com": ("b0", "rejected"),
            "carol@example.org": (None, "invalid"),
            "dave@example.net": ("d0", "sent"),
        },
    ),
    "mandrill batch": Case(
        name="mandrill",
        mail={"batch": "merge_data", "cc": [], "bcc": []},
        answer=answered(
            [
                {"email": "bob@example.com", "status": "sent", "_id": "b0"},
                {"email": "ann@example.com", "status": "sent", "_id": "a0"},
            ]
        ),
        expect={"ann@example.com": ("a0", "sent"), "bob@example.com": ("b0", "sent")},
    ),
    "postal": Case(
        name="postal",
        answer=answered(
            {
                "status": "success",
                "time": 0.1,
                "flags": {},
                "data": {
                    "message_id": "1a2b@rp.postal.example.com",
                    "messages": {address: {"id": 100 + i, "token": "t"} for i, address in enumerate(ADDRESSES)},
                },
            }
        ),
        expect={address: (100 + i, "queued") for i, address in enumerate(ADDRESSES)},
    ),
    "postmark": Case(
        name="postmark",
        answer=of(
            lambda asked: {
                "To": asked["To"],
                "SubmittedAt": "2026-01-01T00:00:00Z",
                "MessageID": UUIDS[0],
                "ErrorCode": 0,
                "Message": "OK",
            }
        ),
        expect=everybody(UUIDS[0], "sent"),
    ),
    "postmark, delayed": Case(
        name="postmark",
        answer=of(
            lambda asked: {
                "To": asked["To"],
                "MessageID": UUIDS[0],
                "Message": "Message accepted, but delivery may be delayed.",
            }
        ),
        expect=everybody(UUIDS[0], "queued"),
    ),
    "postmark batch": Case(
        name="postmark",
        mail={"batch": True, "cc": [], "bcc": []},
        answer=of(
            lambda asked: [
                {"To": item["To"], "MessageID": UUIDS[i], "ErrorCode": 0, "Message": "OK"}
                for i, item in enumerate(asked)
            ]
        ),
        expect={"ann@example.com": (UUIDS[0], "sent"), "bob@example.com": (UUIDS[1], "sent")},
    ),
    "scaleway": Case(
        name="scaleway",
        answer=answered(
            {
                "emails": [
                    {"id": UUIDS[i], "message_id": f"{i}@tem", "mail_rcpt": address, "status": "new", "subject": "A"}
                    for i, address in reversed(list(enumerate(ADDRESSES)))
                ]
            }
        ),
        expect={address: (UUIDS[i], "queued") for i, address in enumerate(ADDRESSES)},
    ),
    "sendgrid": Case(
        name="sendgrid",
        options={"generate_message_id": False},
        answer=answered(b"", 202, {"X-Message-Id": "14c5d75ce93.dfd.64b469"}),
        expect=everybody(None),
    ),
    "sendgrid batch": Case(
        name="sendgrid",
        mail={"batch": True, "cc": [], "bcc": []},
        options={"generate_message_id": False},
        answer=answered(b"", 202, {"X-Message-Id": "14c5d75ce93.dfd.64b469"}),
        expect={"ann@example.com": (None, "queued"), "bob@example.com": (None, "queued")},
    ),
}


def statuses(mail: AnymailMessage) -> dict[str, tuple[Any, Any]]:
    recipients = mail.anymail_status.recipients
    return {address: (recipient.message_id, recipient.status) for address, recipient in recipients.items()}


def made(provider: Provider, kept: dict[str, Any] | None, body: str | bytes | None) -> Answer:
    replay = provider.replay(kept, body)
    assert replay is not None
    return replay


def first_send(case: Case) -> tuple[Provider, dict[str, Any], requests.PreparedRequest]:
    """Send, and give what a ledger would keep of it."""
    provider = load(case.name)
    mail = message(**case.mail)
    canned = post(case.name, {**KEYS[case.name], **case.options}, mail, case.answer)
    assert statuses(mail) == case.expect
    response = mail.anymail_status.esp_response
    kept = provider.summary(
        response.status_code, response.content, headers=response.headers, request=canned.sent[0].body
    )
    return provider, json.loads(json.dumps(kept)), canned.sent[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_replay_gives_the_same_statuses_and_ids(case: Case) -> None:
    provider, kept, _ = first_send(case)
    again = message(**case.mail)
    post(case.name, {**KEYS[case.name], **case.options}, again, lambda body: made(provider, kept, body))
    assert statuses(again) == case.expect


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_summary_holds_no_address_and_no_text(case: Case) -> None:
    _, kept, request = first_send(case)
    stored = json.dumps(kept)
    for address in ADDRESSES:
        assert address not in stored
    assert "secret" not in stored
    assert "Ann" not in stored
    assert "shop" not in stored
    assert request.body is not None


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_provider_has_a_single_send_and_the_profile_covers_it(name: str) -> None:
    case = CASES[name]
    provider, _, request = first_send(case)
    host = requests.utils.urlparse(request.url).hostname
    if name == "postal":
        assert not provider.hosts  # self-hosted
    else:
        assert provider.covers(host)
    path = requests.utils.urlparse(request.url).path
    assert provider.honours("POST", host, path) is (name in {"resend", "sparkpost", "brevo", "unisender_go"})


@pytest.mark.parametrize("name", ["resend", "sparkpost", "brevo", "unisender_go"])
@pytest.mark.parametrize("batch", [False, True])
def test_a_placed_key_is_honoured_on_the_wire(name: str, batch: bool) -> None:
    mail = {"batch": batch, "cc": [], "bcc": []}
    case = CASES[name + " batch"] if batch else CASES[name]
    provider = load(name)
    canned = post(name, {**KEYS[name], **case.options}, message(**(case.mail if not batch else mail)), case.answer)
    request = canned.sent[0]
    before = json.loads(request.body or "")
    key = provider.outgoing("0b41b2f4-3ad5-4a5e-9a2c-4c6b6f7f0f10", 1)
    body = provider.place(request.headers, request.body, key)
    assert type(body) is type(request.body)
    assert provider.given(request.headers, body) == key
    after = json.loads(body or "")
    if name == "brevo":
        assert after.pop("headers")["idempotencyKey"] == key
        before.pop("headers", None)
    if name == "unisender_go":
        assert after["message"].pop("idempotence_key") == key
    assert after == before


@pytest.mark.parametrize("name", ["sendgrid", "unisender_go"])
@pytest.mark.parametrize("batch", [False, True])
def test_ids_that_anymail_makes_are_kept(name: str, batch: bool) -> None:
    # These two report ids of their own from the payload, so that no answer can bring them back; the record has them.
    mail = message(batch=batch, cc=[], bcc=[])
    answer = answered(b"", 202, {}) if name == "sendgrid" else CASES["unisender_go batch"].answer
    canned = post(name, {**KEYS[name], "generate_message_id": True}, mail, answer)
    kept = load(name).summary(200, b"", request=canned.sent[0].body)
    reported = [status.message_id for status in mail.anymail_status.recipients.values()]
    assert kept["ids"] == (reported if batch or name == "unisender_go" else reported[:1])


def test_postmark_bulk() -> None:
    # Anymail reports its own ids, and a bulk answer has none for single recipients.
    provider = load("postmark")
    answer = {"ID": UUIDS[0], "Status": "Accepted", "PercentageCompleted": 0}
    kept = provider.summary(200, json.dumps(answer).encode())
    assert provider.replay(kept, b"{}") == (200, JSON, json.dumps(answer).encode())


def test_postmark_with_inactive_recipients_is_not_replayed() -> None:
    # The note names the address, so it is not kept; a replay would call the recipient "sent".
    answer = {
        "To": "ann@example.com, bob@example.com",
        "MessageID": UUIDS[0],
        "ErrorCode": 0,
        "Message": "Message OK, but will not deliver to these inactive addresses: bob@example.com. Inactive recipients"
        " are ones that have generated a hard bounce or a spam complaint.",
    }
    provider = load("postmark")
    kept = provider.summary(200, json.dumps(answer).encode())
    assert kept == {"status": 200, "id": UUIDS[0]}
    assert provider.replay(kept, b'{"To": "ann@example.com, bob@example.com"}') is None


def test_mailersend_with_all_suppressed() -> None:
    # Anymail raises for it, so a replay must make it raise again.
    warnings = [{"type": "ALL_SUPPRESSED", "recipients": [{"email": "Ann@Example.com"}, {"email": "bob@example.com"}]}]
    first, again = message(cc=[], bcc=[]), message(cc=[], bcc=[])
    provider = load("mailersend")
    with pytest.raises(AnymailRecipientsRefused):
        post("mailersend", KEYS["mailersend"], first, answered({"warnings": warnings}, 202))
    response = first.anymail_status.esp_response
    kept = provider.summary(202, response.content, headers=response.headers, request=response.request.body)
    replay = provider.replay(kept, response.request.body)
    assert replay is not None
    with pytest.raises(AnymailRecipientsRefused):
        post("mailersend", KEYS["mailersend"], again, lambda _: replay)
    assert {status for _, status in statuses(again).values()} == {"rejected"}


@pytest.mark.parametrize("name", ["resend", "sparkpost", "brevo", "unisender_go", "mandrill", "postal", "scaleway"])
def test_a_call_that_was_resolved_by_hand_replays_without_ids(name: str) -> None:
    mail = message()
    post(name, KEYS[name], mail, lambda body: made(load(name), {"by": "hand"}, body))
    assert set(statuses(mail)) == set(ADDRESSES)
    assert {message_id for message_id, _ in statuses(mail).values()} == {None}
    assert {status for _, status in statuses(mail).values()} <= {"queued", "unknown"}


@pytest.mark.parametrize("name", ["mailgun", "mailjet", "mailtrap", "mailersend", "postmark"])
def test_where_a_replay_without_ids_would_lie_there_is_none(name: str) -> None:
    body = json.dumps({"to": [{"email": "ann@example.com"}], "Messages": [{"To": [{"Email": "ann@example.com"}]}]})
    assert load(name).replay({"by": "hand"}, body) is None
    assert load(name).replay(None, body) is None


@pytest.mark.parametrize("name", sorted(KEYS))
@pytest.mark.parametrize("batch", [False, True])
def test_the_same_message_has_the_same_content_in_every_build(name: str, batch: bool) -> None:
    # Else a repeat would look like another message under the same key.
    case = CASES.get(name + " batch", CASES[name]) if batch else CASES[name]
    provider = load(name)
    options = {**KEYS[name], **case.options}
    if name in {"sendgrid", "unisender_go"}:
        options["generate_message_id"] = True
    contents, bodies = set(), set()
    for api_key in ("k", "rotated") if name == "mandrill" else ("k", "k"):
        mail = message(**case.mail)
        if provider.metadata:
            mail.metadata = {"order": "42"}
        if "api_key" in options:
            options["api_key"] = api_key
        request = post(name, options, mail, case.answer).sent[0]
        bodies.add(request.body)
        left_out = (*provider.volatile, *provider.secret)
        kind = request.headers.get("Content-Type") or ""
        contents.add(content_of("POST", request.url or "", kind, request.body, left_out))
    assert len(contents) == 1
    assert len(bodies) == (2 if name in {"sendgrid", "unisender_go", "mandrill"} else 1)
