"""A Django project with django-mailer, as a process that forks one child for each command it reads: that is quick.

Stock django-mailer with Anymail, or django-mailer under a policy. Everything it must know is in the variable SHOP.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import django
from django.conf import settings

SHOP: dict[str, Any] = json.loads(os.environ["SHOP"])
POINTS = ["before", "wire", "after", "deleted"]
LEASE = 0.5
HERE = "retrypolicy.queues.django_mailer"


def configure() -> None:
    stock = SHOP["stock"]
    apps = [] if stock else ["retrypolicy.django", "retrypolicy.anymail", HERE]
    ours = {
        "EMAIL_BACKEND": f"{HERE}.DbBackend",
        "MAILER_EMAIL_BACKEND": f"{HERE}.EmailBackend",
        "MAILER_ERROR_HANDLER": f"{HERE}.on_error",
    }
    theirs = {
        "EMAIL_BACKEND": "mailer.backend.DbBackend",
        "MAILER_EMAIL_BACKEND": "anymail.backends.postmark.EmailBackend",
    }
    settings.configure(
        **(theirs if stock else ours),
        INSTALLED_APPS=["anymail", "mailer", *apps],
        DATABASES={"default": SHOP["database"]},
        SECRET_KEY="a key for tests only",
        USE_TZ=True,
        ANYMAIL={
            "POSTMARK_SERVER_TOKEN": "secret",
            "POSTMARK_API_URL": SHOP["server"],
            "REQUESTS_TIMEOUT": 10,
        },
        MAILER_LOCK_PATH=str(Path(SHOP["place"], "send_mail")),
        RETRYPOLICY={
            "LEDGER": "default",
            "DJANGO_MAILER": {
                "BACKEND": "retrypolicy.anymail.backends.postmark.EmailBackend",
                "OPTIONS": {"retry_policy": "quick"},
            },
            "POLICIES": {
                "quick": {
                    "extends": "worker",
                    "max_wait": 0.2,
                    "total_timeout": 10.0,
                    "attempt_timeout": 10.0,
                    "lifetime": 86400.0,
                    "backoff": {"type": "exponential", "base": 0.01, "cap": 0.05},
                    "guard": {"lease": LEASE},
                },
            },
        },
    )
    django.setup()
    # What each child would import is there before.
    import_module("anymail.backends.postmark" if stock else "retrypolicy.anymail.backends.postmark")
    import_module("mailer.engine" if stock else f"{HERE}.handler")
    if not stock:
        from retrypolicy import step
        from retrypolicy.queues.django_mailer import lock

        lock.GRACE = SHOP["grace"]
        step.HELD_LOOK = (SHOP["look"], 3600.0)


def arrive(point: str) -> None:
    """Die here, once, by kill -9."""
    try:
        Path(SHOP["place"], point).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def connect() -> None:
    """To the points at which messages of that subject kill their sender. On the wire the server does it."""
    from anymail.signals import post_send, pre_send
    from django.db.models.signals import post_delete
    from mailer.models import Message

    def before(message: Any, **kwargs: Any) -> None:
        if message.subject == "before":
            arrive("before")

    def after(message: Any, **kwargs: Any) -> None:
        if message.subject == "after":
            arrive("after")

    def deleted(instance: Any, **kwargs: Any) -> None:
        if instance.subject == "deleted":
            arrive("deleted")

    pre_send.connect(before, weak=False)
    post_send.connect(after, weak=False)
    post_delete.connect(deleted, sender=Message, weak=False)


def do(command: str, *arguments: Any) -> Any:
    """What the parent asked for."""
    from django.core.mail import EmailMessage, get_connection
    from django.core.management import call_command
    from mailer.models import Message, MessageLog

    if command == "queue":
        made = [EmailMessage(subject, "Hello", "shop@example.com", ["ann@example.com"]) for subject in arguments]
        for message in made:
            message.retry_label = message.subject
        return get_connection().send_messages(made)
    if command == "rows":
        return [[row.subject, row.priority] for row in Message.objects.order_by("pk")]
    if command == "log":
        return [[row.subject, row.result] for row in MessageLog.objects.order_by("pk")]
    if command == "held":
        from retrypolicy.django.settings import required_ledger
        from retrypolicy.guard import Phase

        return [record.label for record in required_ledger().records() if record.phase is Phase.HELD]
    out = io.StringIO()
    call_command(command, *arguments, **({"stdout": out} if command == "retry_due" else {"verbosity": 0}))
    return out.getvalue().strip()


def main() -> None:
    configure()
    connect()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            say(result=do(*json.loads(line)))
            os._exit(0)
        say(pid=pid)
        _, status = os.waitpid(pid, 0)
        say(code=os.waitstatus_to_exitcode(status))


def say(**what: Any) -> None:
    """One line, at once."""
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
