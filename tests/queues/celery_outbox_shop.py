"""A Django project that hands its outbox over to Celery: the app of the worker, and `python -m` the shop itself.

Imported in other processes; everything they must know is in the environment variable SHOP.
"""

from __future__ import annotations

import sys

import celery
import django
from django.conf import settings

from retrypolicy import Constant, Guard, RetryPolicy

from .shop import SECRET, SHOP

POLICY = RetryPolicy(
    max_attempts=50, max_wait=0.2, total_timeout=10.0, lifetime=600.0, backoff=Constant(seconds=0), guard=Guard(lease=1)
)

app = celery.Celery("outbox", broker=SHOP.get("broker"), set_as_current=False)
app.conf.update(broker_transport_options=SHOP.get("options", {}), worker_prefetch_multiplier=1)
app.conf.update(task_publish_retry_policy={"max_retries": 1}, worker_hijack_root_logger=False)


@app.task(name="deliver", acks_late=True, reject_on_worker_lost=True, ignore_result=True, shared=False)
def deliver(key: str) -> None:
    from retrypolicy.django import outbox

    outbox.send(key)


hand_over = deliver.delay


def set_up() -> None:
    settings.configure(
        INSTALLED_APPS=["anymail", "retrypolicy.django", "retrypolicy.anymail"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": SHOP["database"],
                "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"},
            }
        },
        EMAIL_BACKEND="retrypolicy.anymail.backends.postmark.EmailBackend",
        ANYMAIL={"POSTMARK_SERVER_TOKEN": "t", "POSTMARK_API_URL": SHOP["server"]},
        RETRYPOLICY={
            "LEDGER": SHOP["ledger"],
            "SECRET": SECRET,
            "POLICIES": {"mail": POLICY},
            "OUTBOX": {"POLICY": "mail", "HAND_OVER": f"{__spec__.name}.hand_over"},
        },
        SECRET_KEY="not the ledger's",
        USE_TZ=True,
    )
    django.setup()


def sell(first: int, last: int) -> None:
    """Orders and their receipts. What was sold before is sold again: to put a message again is safe."""
    from anymail.message import AnymailMessage
    from django.db import transaction

    from retrypolicy.django import outbox

    for number in range(first, last):
        with transaction.atomic():
            receipt = AnymailMessage("Receipt", f"order {number}", "shop@example.com", ["ann@example.com"])
            outbox.put(receipt, key=f"order/{number}")


def sweep() -> None:
    """As if the time that whoever had a message has for it were over."""
    from retrypolicy.django import outbox
    from retrypolicy.django.delivery import OPEN
    from retrypolicy.django.models import OutboxMessage

    OutboxMessage.objects.filter(state__in=OPEN).update(due=0)
    for _ in outbox.sweep():
        pass


if SHOP and not settings.configured:  # the shop itself has this module twice: as its main one, too
    set_up()

if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "migrate":
        from django.core.management import call_command

        call_command("migrate", "retrypolicy", verbosity=0)
    elif what == "sell":
        sell(*map(int, arguments))
    else:
        sweep()
