"""Shops that die at a given point of a sale, and sweepers: each a process of its own, forked from this one.

What it must know is in the environment variable SHOP. A line of input is a process to make, of which it tells the
number; "wait" and a number is answered with how that one ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

SHOP: dict[str, Any] = json.loads(os.environ.get("SHOP", "{}"))
SECRET = "a secret for the shop"


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sell(kind: str, point: str) -> None:
    """One sale, and its receipt: as Django's documentation has it, or by the outbox."""
    from anymail.message import AnymailMessage
    from anymail.signals import post_send
    from django.db import connection, transaction

    from retrypolicy.django import outbox

    receipt = AnymailMessage("Receipt", f"{kind} {point}", "shop@example.com", ["ann@example.com"])
    if point == "recorded":
        post_send.connect(die, weak=False)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders (name) VALUES (%s)", [f"{kind} {point}"])
        if point == "committed":
            transaction.on_commit(die)
        if kind == "plain":
            transaction.on_commit(receipt.send)
        elif kind == "early":
            receipt.send()
        else:
            outbox.put(receipt, key=f"receipt/{point}")
        if point == "open":
            die()
    time.sleep(60)  # nobody comes here


def main() -> None:
    import django
    from django.conf import settings
    from django.core.management import call_command

    from retrypolicy import Constant, Guard, RetryPolicy

    policy = RetryPolicy(backoff=Constant(seconds=0), lifetime=600.0, guard=Guard(lease=0.5))
    settings.configure(
        INSTALLED_APPS=["anymail", "retrypolicy.django", "retrypolicy.anymail"],
        DATABASES={"default": SHOP["database"]},
        EMAIL_BACKEND="retrypolicy.anymail.backends.postmark.EmailBackend",
        ANYMAIL={"POSTMARK_SERVER_TOKEN": "t", "POSTMARK_API_URL": SHOP["server"]},
        RETRYPOLICY={
            "LEDGER": "default",
            "SECRET": SECRET,
            "POLICIES": {"mail": policy},
            "OUTBOX": {"POLICY": "mail"},
        },
        SECRET_KEY="not the ledger's",
        USE_TZ=True,
    )
    django.setup()
    import anymail.backends.postmark  # noqa: F401 - once for all

    import retrypolicy.anymail.backends.postmark  # noqa: F401

    for line in sys.stdin:
        what, *arguments = line.split()
        if what == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1]), flush=True)
            continue
        answer = os.fork()
        if not answer and what == "sweep":
            call_command("retrypolicy", "sweep", stdout=sys.stderr)
            os._exit(0)
        if not answer and what == "sell":
            if arguments[0] != "ours":
                settings.EMAIL_BACKEND = "anymail.backends.postmark.EmailBackend"
            sell(*arguments)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
