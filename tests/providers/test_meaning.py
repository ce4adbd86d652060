"""What each provider's documented answers mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retrypolicy.http.pushback import pushback
from retrypolicy.outcome import Answered, Effect
from retrypolicy.providers import load, names
from retrypolicy.rules import Meaning, meaning

NO, MAYBE, YES = Effect.NOT_APPLIED, Effect.UNKNOWN, Effect.APPLIED


def means(name: str, status: int, body: Any = None, *, tainted: bool = False, **headers: str) -> Meaning:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answered(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=content)
    return meaning(answer, rules=load(name).rules, tainted=tainted)


HTML = b"<html><body>502 Bad Gateway</body></html>"


def postal(status: str, code: str) -> dict[str, Any]:
    return {"status": status, "time": 0.02, "flags": {}, "data": {"code": code, "message": "x"}}


def stripe(**error: str) -> dict[str, Any]:
    return {"error": error}


def sparkpost(code: Any) -> dict[str, Any]:
    return {"errors": [{"message": "m", "description": "d", "code": code}]}


def resend(name: str, status: int) -> dict[str, Any]:
    return {"statusCode": status, "name": name, "message": "m"}


ANSWERS: list[tuple[str, int, Any, Effect, bool | None]] = [
    # retry: True or False where a rule says so; None: the policy's list of statuses decides
    ("resend", 200, {"id": "49a3999c"}, YES, False),
    ("resend", 409, resend("concurrent_idempotent_requests", 409), MAYBE, True),
    ("resend", 409, resend("invalid_idempotent_request", 409), NO, False),
    ("resend", 400, resend("invalid_idempotency_key", 400), NO, False),
    ("resend", 429, resend("rate_limit_exceeded", 429), NO, None),
    ("resend", 429, resend("daily_quota_exceeded", 429), NO, False),
    ("resend", 429, resend("monthly_quota_exceeded", 429), NO, False),
    ("resend", 422, resend("validation_error", 422), NO, None),
    ("resend", 500, resend("internal_server_error", 500), MAYBE, None),
    ("sparkpost", 200, {"results": {"id": "1"}}, YES, False),
    ("sparkpost", 409, sparkpost("1601"), MAYBE, True),
    ("sparkpost", 409, sparkpost("1600"), NO, False),
    ("sparkpost", 409, sparkpost(1600), NO, False),
    ("sparkpost", 400, sparkpost("1602"), NO, False),
    ("sparkpost", 409, sparkpost("1602"), NO, None),  # the older list: resource in use
    ("sparkpost", 420, sparkpost("2101"), NO, False),
    ("sparkpost", 503, sparkpost("3001"), NO, None),
    ("sparkpost", 500, sparkpost("3001"), NO, None),
    ("sparkpost", 503, HTML, MAYBE, None),
    ("sparkpost", 504, sparkpost("3001"), MAYBE, None),
    ("sparkpost", 429, sparkpost("1902"), NO, None),
    ("brevo", 201, {"messageId": "<2>"}, YES, False),
    ("brevo", 400, {"code": "duplicate_parameter", "message": "m"}, MAYBE, False),
    ("brevo", 400, {"code": "invalid_parameter", "message": "m"}, NO, None),
    ("brevo", 429, {"code": "too_many_requests", "message": "m"}, NO, None),
    ("brevo", 502, HTML, MAYBE, None),
    ("unisender_go", 400, {"status": "error", "code": 204, "message": "m"}, NO, None),
    ("unisender_go", 429, {"status": "error", "code": 903, "message": "m"}, NO, None),
    ("unisender_go", 500, {"status": "error"}, MAYBE, None),
    ("mailersend", 202, None, YES, False),
    ("mailersend", 421, {"message": "maintenance"}, NO, True),
    ("mailersend", 429, {"message": "Your account reached its rate limit. #MS42903"}, NO, None),
    ("mailersend", 422, {"message": "The given data was invalid."}, NO, None),
    ("mailersend", 500, {"message": "Server Error"}, MAYBE, None),
    ("mailgun", 200, {"id": "<1>", "message": "Queued. Thank you."}, YES, False),
    ("mailgun", 200, b"Mailgun Magnificent API", NO, False),
    ("mailgun", 404, b"Domain not found: example.com", NO, None),
    ("mailgun", 429, {"message": "limit exceeded, try again after Tue, 01 Jan 2030 00:00:00 GMT"}, NO, None),
    ("mailgun", 500, {"message": "Internal Server Error"}, MAYBE, None),
    ("mailjet", 200, {"Messages": [{"Status": "success"}]}, YES, False),
    ("mailjet", 400, {"Messages": [{"Status": "success"}, {"Status": "error"}]}, YES, False),
    ("mailjet", 400, {"Messages": [{"Status": "error"}, {"Status": "success"}]}, YES, False),
    ("mailjet", 400, {"Messages": [{"Status": "error"}]}, NO, False),
    ("mailjet", 400, {"ErrorCode": "mj-0002", "StatusCode": 400}, NO, None),
    ("mailjet", 429, {"ErrorMessage": "too many", "StatusCode": 429}, NO, None),
    ("mailjet", 500, {"ErrorIdentifier": "u", "StatusCode": 500}, MAYBE, None),
    ("mailtrap", 200, {"success": True, "message_ids": ["1"]}, YES, False),
    ("mailtrap", 401, {"success": False, "errors": ["Unauthorized"]}, NO, None),
    ("mailtrap", 429, {"success": False, "errors": ["Rate limit"]}, NO, None),
    ("mailtrap", 500, {"success": False, "errors": ["Internal"]}, MAYBE, None),
    ("mandrill", 200, [{"email": "a", "status": "sent", "_id": "1"}], YES, False),
    ("mandrill", 500, {"status": "error", "code": -1, "name": "ValidationError", "message": "m"}, NO, False),
    ("mandrill", 500, {"status": "error", "code": -1, "name": "Invalid_Key", "message": "m"}, NO, False),
    ("mandrill", 500, {"status": "error", "code": -99, "name": "GeneralError", "message": "m"}, MAYBE, None),
    ("mandrill", 503, {"status": "error", "code": -1, "name": "ServiceUnavailable", "message": "m"}, NO, True),
    ("mandrill", 502, HTML, MAYBE, None),
    ("mandrill", 504, HTML, MAYBE, None),
    ("postal", 200, {"status": "success", "data": {"messages": {}}}, YES, False),
    ("postal", 200, postal("error", "UnauthenticatedFromAddress"), NO, False),
    ("postal", 200, postal("parameter-error", ""), NO, False),
    ("postal", 500, HTML, MAYBE, None),
    ("postmark", 200, {"ErrorCode": 0, "MessageID": "1", "Message": "OK"}, YES, False),
    ("postmark", 200, {"MessageID": "1", "Message": "Message accepted, but delivery may be delayed."}, YES, False),
    ("postmark", 422, {"ErrorCode": 300, "Message": "Invalid email request"}, NO, None),
    ("postmark", 422, {"ErrorCode": 405, "Message": "Not allowed to send"}, NO, None),
    ("postmark", 422, {"ErrorCode": 406, "Message": "Inactive recipient"}, NO, None),
    ("postmark", 422, {"ErrorCode": 500, "Message": "Sender signature query exception"}, NO, None),
    ("postmark", 422, {"ErrorCode": 429, "Message": "Rate Limit Exceeded"}, NO, True),
    ("postmark", 429, {"ErrorCode": 429, "Message": "Rate Limit Exceeded"}, NO, None),
    ("postmark", 503, {"ErrorCode": 100, "Message": "Maintenance"}, NO, True),
    ("postmark", 503, HTML, MAYBE, None),
    ("postmark", 500, {"Message": "Internal Server Error"}, MAYBE, None),
    ("scaleway", 200, {"emails": []}, YES, False),
    ("scaleway", 429, {"type": "too_many_requests", "reset_seconds": 12}, NO, None),
    ("scaleway", 403, {"type": "quotas_exceeded", "details": []}, NO, False),
    ("scaleway", 500, {"message": "internal error"}, MAYBE, None),
    ("sendgrid", 202, b"", YES, False),
    ("sendgrid", 403, {"errors": [{"message": "Too many bad requests. Temporary block"}]}, NO, None),
    ("sendgrid", 429, {"errors": [{"message": "too many requests"}]}, NO, None),
    ("sendgrid", 500, {"errors": []}, MAYBE, None),
    ("stripe", 200, {"id": "ch_1"}, YES, False),
    ("stripe", 409, stripe(code="idempotency_key_in_use", type="invalid_request_error"), MAYBE, True),
    ("stripe", 409, stripe(code="lock_timeout", type="invalid_request_error"), NO, None),
    ("stripe", 400, stripe(type="idempotency_error"), NO, False),
    ("stripe", 402, stripe(code="card_declined", type="card_error"), NO, None),
    ("stripe", 500, stripe(type="api_error"), MAYBE, None),
    ("idempotency-key", 422, {"title": "Idempotency-Key is already used"}, NO, False),
    ("idempotency-key", 409, {"title": "A request is outstanding for this Idempotency-Key"}, NO, True),
    ("idempotency-key", 400, {"title": "Idempotency-Key is missing"}, NO, None),
    ("idempotency-key", 500, None, MAYBE, None),
    ("amazon_ses", 500, None, MAYBE, None),
]


@pytest.mark.parametrize(("name", "status", "body", "effect", "retry"), ANSWERS)
def test_documented_answer(name: str, status: int, body: Any, effect: Effect, retry: bool | None) -> None:
    found = means(name, status, body)
    assert (found.effect, found.retry) == (effect, retry)
    assert not found.sure


def test_every_profile_is_asked_here() -> None:
    assert {name for name, *_ in ANSWERS} == set(names())


def test_brevo_duplicate_after_an_unknown_attempt_means_that_it_arrived() -> None:
    found = means("brevo", 400, {"code": "duplicate_parameter", "message": "m"}, tainted=True)
    assert found == Meaning(effect=Effect.APPLIED, retry=False, sure=True)


@pytest.mark.parametrize("name", [name for name in names() if name != "brevo"])
def test_no_refusal_of_another_provider_speaks_for_earlier_attempts(name: str) -> None:
    assert not any(rule.from_key_layer for rule in load(name).rules)


def test_a_repeated_server_error_of_stripe_is_not_asked_for_again() -> None:
    found = means("stripe", 500, stripe(type="api_error"), Idempotent_Replayed="true")
    assert (found.effect, found.retry) == (Effect.UNKNOWN, False)


def test_scaleway_says_in_the_body_how_long() -> None:
    assert means("scaleway", 429, {"type": "too_many_requests", "reset_seconds": 12}).pushback == 12.0
    assert means("scaleway", 429, {"type": "too_many_requests"}).pushback is None


@pytest.mark.parametrize(
    ("name", "headers", "seconds"),
    [
        ("brevo", {"x-sib-ratelimit-limit": "10", "x-sib-ratelimit-remaining": "0", "x-sib-ratelimit-reset": "7"}, 7),
        ("brevo", {"x-sib-ratelimit-remaining": "3", "x-sib-ratelimit-reset": "7"}, None),
        ("sendgrid", {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000060"}, 60),
        ("mailersend", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1000030", "retry-after": "31"}, 31),
        ("mailersend", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1000030"}, 30),
        ("mailersend", {"x-apiquota-remaining": "0", "x-apiquota-reset": "1970-01-13T00:00:00Z"}, 36800),
        ("resend", {"ratelimit-limit": "2", "ratelimit-remaining": "0", "ratelimit-reset": "1"}, 1),
        ("resend", {"retry-after": "2"}, 2),
        ("mandrill", {}, None),
    ],
)
def test_headers_about_waiting(name: str, headers: dict[str, str], seconds: float | None) -> None:
    assert pushback(headers, 1_000_000, load(name).hints) == seconds


def test_every_rule_names_its_source() -> None:
    for name in names():
        for rule in load(name).rules:
            assert rule.source, (name, rule)


def test_no_profile_trusts_an_incomplete_body() -> None:
    # No provider's documentation says that it never acts on one.
    assert not [rule for name in names() for rule in load(name).rules if rule.stage is not None]
