"""The outbox: a message is part of the transaction it is put in, and is sent after COMMIT, once, whoever dies when.

    with transaction.atomic():
        order.save()
        outbox.put(receipt_for(order), key=f"receipt/{order.pk}")

After COMMIT it is sent at once, or handed over to a queue. What that did not settle, `manage.py retrypolicy sweep`
finds. The guard of the backend that sends it stops whatever is sent twice, since the row's key is the key of the send.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.core.mail import EmailMessage
from django.db import router, transaction

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.django import settings
from retrypolicy.django.naming import name_of
from retrypolicy.django.stored import dump
from retrypolicy.errors import ConfigurationError, KeyReused
from retrypolicy.guard.key import check_key
from retrypolicy.step import slim

if TYPE_CHECKING:
    from retrypolicy.django.delivery import Delivered as Delivered
    from retrypolicy.django.delivery import send as send
    from retrypolicy.django.delivery import sweep as sweep

__all__ = ["Delivered", "put", "send", "sweep"]

HAND_OVER_TIME = 60.0
"""Seconds that whoever a message is handed over to has, before a sweeper looks at it."""

clock: Clock = SystemClock()
logger = logging.getLogger("retrypolicy")


def put(
    message: EmailMessage,
    *,
    key: str | None = None,
    policy: str | None = None,
    mailer: str | None = None,
    using: str | None = None,
) -> str:
    """Store a message in the caller's transaction; it is sent after COMMIT. Returns its key.

    A row that is there under this key already stays as it is, if it says the same: to put a message again is safe.

    key: names the message, as `message.idempotency_key` does (and is put there). None: as for a message that is sent
        directly, its own, the enclosing operation's, or a random one.
    policy: the name of a policy; None: `RETRYPOLICY["OUTBOX"]["POLICY"]`, else "worker".
    mailer: its name in `MAILERS` (Django 6.1); None: the default one.
    using: the alias of the database that has the transaction; None: the one that models are written to.

    Raises `ConfigurationError` for what can't be stored, a key that can't be one, or the name of a policy or mailer
    that does not exist; `KeyReused` if another message is in the outbox under this key. Nothing is written then.
    """
    from retrypolicy.django.models import OutboxMessage

    if policy is not None and not isinstance(policy, str):
        raise ConfigurationError(f"policy: {type(policy).__name__} can't be stored; must be the name of a policy")
    settings.outbox_policy(policy or "")
    settings.outbox_hand_over()
    _check_mailer(mailer)
    if not isinstance(message, EmailMessage):
        raise ConfigurationError(f"message: {type(message).__name__} is not allowed; must be an EmailMessage")
    if key is not None:
        message.idempotency_key = check_key(key)  # type: ignore[attr-defined]  # ours, as Anymail's users know it
    name = name_of(message, remembers=True)
    assert name.key is not None
    content = dump(message, **({} if name.not_after is None else {"not_after": name.not_after}))
    using = using or router.db_for_write(OutboxMessage)
    now = clock.now()
    row = OutboxMessage(
        key=name.key,
        content=content,
        label=name.label,
        policy=policy or "",
        mailer=mailer or "",
        since=now,
        due=now + HAND_OVER_TIME,
    )
    rows = OutboxMessage.objects.using(using)
    found = None
    for _ in range(3):  # a row in the way may be settled, and gone, before it is looked at
        rows.bulk_create([row], ignore_conflicts=True)  # a failed INSERT would end the caller's transaction
        found = rows.filter(key=name.key).values_list("content", flat=True).first()
        if found is not None:
            break
    if found != content:
        raise KeyReused("another message is in the outbox under this key; this one was not stored")
    transaction.on_commit(partial(hand_over, name.key, using), using=using)
    return name.key


def hand_over(key: str, using: str) -> None:
    """After COMMIT: send the message, or tell whoever is to do it. Raises nothing: the sweeper is there for that."""
    from retrypolicy.django.models import OutboxMessage

    try:
        tell: Any = settings.outbox_hand_over()
        if tell is None:
            from retrypolicy.django.delivery import send

            send(key, using=using)
        elif using == router.db_for_write(OutboxMessage):
            tell(key)
        else:
            tell(key, using=using)
    except Exception as error:
        # Not the text of others' errors, nor a traceback: they may tell a broker's password, or the message.
        logger.error("a message in the outbox was not handed over: %s; the sweeper finds it", slim(error))


def _check_mailer(name: str | None) -> None:
    if name is None:
        return
    known = getattr(django_settings, "MAILERS", None) or {}
    if name not in known:
        must = f"one of {', '.join(known)}" if known else "left out, where the settings have no MAILERS (Django 6.1)"
        raise ConfigurationError(f"mailer: {name!r} is not allowed; must be {must}")


def __getattr__(name: str) -> Any:
    # Lazily: `put` is for everybody, and models are not there before the apps are.
    if name in ("Delivered", "send", "sweep"):
        from retrypolicy.django import delivery

        return getattr(delivery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
