"""The process that sends: an application with Django and Anymail, once in each way. It may be killed at any moment.

It reads one line of JSON (what to send, and how), and writes a line for each message that it is finished with: "sent",
or "failed" with the error's class. What it says decides what is delivered to it again after a crash, and nothing else.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.utils.module_loading import import_string

from retrypolicy.backoff import Exponential
from retrypolicy.demo import MESSAGE_HEADER, TIMEOUT
from retrypolicy.demo.mailbox_file import Letter, read_letters
from retrypolicy.errors import SendDeferred, SendInProgress
from retrypolicy.policy import Guard, RetryPolicy

BACKENDS = {
    "plain": {
        "mandrill": "anymail.backends.mandrill.EmailBackend",
        "resend": "anymail.backends.resend.EmailBackend",
    },
    "recipe": {
        "mandrill": "retrypolicy.demo.recipe.MandrillBackend",
        "resend": "retrypolicy.demo.recipe.ResendBackend",
    },
    "retrypolicy": {
        "mandrill": "retrypolicy.anymail.backends.mandrill.EmailBackend",
        "resend": "retrypolicy.anymail.backends.resend.EmailBackend",
    },
}
"""What the ways of sending differ in: the one line in a project's settings."""

POLICY = RetryPolicy(
    name="demo",
    max_attempts=4,
    max_wait=2.0,
    total_timeout=10.0,
    backoff=Exponential(base=0.1, factor=2.0, cap=0.5, jitter="equal"),
    guard=Guard(lease=1.0),  # seconds; after a crash a key is looked at again this much later
)
"""`WEB`, with shorter waits."""

_AGAIN = 0.2  # seconds until a queue delivers again what is in progress elsewhere, or not due
_PATIENCE = 10.0  # seconds after which it stops doing so


def set_up(ledger: str, secret: str) -> None:
    """What a project's settings.py says. Both APIs' addresses are given to the backends."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    settings.configure(
        INSTALLED_APPS=["anymail"],
        SECRET_KEY=secret,
        DEFAULT_FROM_EMAIL="shop@example.com",
        USE_TZ=True,
        ANYMAIL={
            "REQUESTS_TIMEOUT": TIMEOUT,
            "RESEND_VERIFY_ATTACHMENT_EXTENSIONS": False,  # mail from real mailboxes has all sorts
            "IGNORE_UNSUPPORTED_FEATURES": True,
        },
        RETRYPOLICY={"LEDGER": ledger, "POLICY": POLICY},
    )
    django.setup()


def backends(mode: str, port: int) -> dict[str, Any]:
    """The mail backends of this way of sending, by API."""
    roots = {"mandrill": f"http://127.0.0.1:{port}/api/1.0/", "resend": f"http://127.0.0.1:{port}/"}
    return {api: import_string(BACKENDS[mode][api])(api_key="demo", api_url=root) for api, root in roots.items()}


def compose(letter: Letter, api: str, number: int) -> EmailMultiAlternatives:
    """The message as an application would make it. Only retrypolicy's backends read its key and its label."""
    message = EmailMultiAlternatives(
        subject=letter.subject,
        body=letter.text,
        from_email=letter.sender,
        to=letter.to,
        cc=letter.cc,
        bcc=letter.bcc,
        reply_to=letter.reply_to,
        headers={MESSAGE_HEADER: str(number)},
        attachments=[(a.name, a.content, a.kind) for a in letter.attachments],
    )
    if letter.html is not None:
        message.attach_alternative(letter.html, "text/html")
    message.idempotency_key = f"demo/{api}/{number}"  # type: ignore[attr-defined]  # a plain attribute, as Anymail's own
    message.retry_label = f"{number}: {letter.subject}"  # type: ignore[attr-defined]  # as above
    return message


def send_all(order: Mapping[str, Any]) -> None:
    """Send every message of the order, as a queue's worker does: what is in progress or not due comes again later."""
    letters = read_letters(Path(order["messages"]), order["limit"])
    by_api = backends(order["mode"], order["port"])
    for backend in by_api.values():
        backend.open()
    waiting = deque((api, number) for api, number in order["todo"])
    late: deque[tuple[str, int]] = deque()
    end = time.monotonic() + _PATIENCE
    while waiting or late:
        if not waiting:
            if time.monotonic() > end:
                break  # and says nothing of these: a queue would still have them
            time.sleep(_AGAIN)
            waiting, late = late, waiting
        api, number = waiting.popleft()
        outcome, error = "sent", ""
        try:
            by_api[api].send_messages([compose(letters[number - 1], api, number)])
        except (SendInProgress, SendDeferred):
            late.append((api, number))
            continue
        except Exception as failure:  # an application's last resort: said, and on to the next message
            outcome, error = "failed", type(failure).__name__
        print(json.dumps({"api": api, "message": number, "outcome": outcome, "error": error}), flush=True)


def main() -> None:
    """Read the order, set up Django, send."""
    order = json.loads(sys.stdin.readline())
    set_up(order["ledger"], order["secret"])
    send_all(order)


if __name__ == "__main__":
    main()
