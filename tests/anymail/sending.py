"""Real backends against a real server on the loopback."""

from __future__ import annotations

import importlib
import json
from typing import Any

from anymail.message import AnymailMessage

from retrypolicy.testing import Answer, FaultServer

JSON = {"Content-Type": "application/json"}
SECRET = "re_an_api_key_that_nobody_may_see"
UUID = "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"
OK = {
    "resend": (200, {"id": UUID}),
    "postmark": (200, {"To": "ann@example.com", "MessageID": UUID, "ErrorCode": 0, "Message": "OK"}),
    "sendgrid": (202, None),
    "unisender_go": (200, {"status": "success", "job_id": "1Zy", "emails": ["ann@example.com", "bob@example.com"]}),
    "mailgun": (200, {"id": "<20160306015544.116301.25145@example.com>", "message": "Queued. Thank you."}),
    "sparkpost": (200, {"results": {"total_rejected_recipients": 0, "total_accepted_recipients": 1, "id": "116"}}),
    "brevo": (201, {"messageId": "<201906041124.44340027797@smtp-relay.mailin.fr>"}),
    "mandrill": (200, [{"email": "ann@example.com", "status": "sent", "_id": "abc123"}]),
}
CREDENTIALS = {"postmark": "server_token"}


def ok(name: str) -> Answer:
    status, body = OK[name]
    return Answer(status, headers=JSON, body=b"" if body is None else json.dumps(body).encode())


def mail(**attributes: Any) -> AnymailMessage:
    message = AnymailMessage("A secret subject", "A secret body", "shop@example.com", ["ann@example.com"])
    for name, value in attributes.items():
        setattr(message, name, value)
    return message


def backend(name: str, server: FaultServer, **options: Any) -> Any:
    module = importlib.import_module(f"retrypolicy.anymail.backends.{name}")
    options = {CREDENTIALS.get(name, "api_key"): SECRET, "api_url": server.url("/"), **options}
    return module.EmailBackend(**options)


def send(name: str, server: FaultServer, *messages: Any, **options: Any) -> int:
    count: int = backend(name, server, **options).send_messages(list(messages))
    return count
