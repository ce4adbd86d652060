"""From the outbox to the provider: whose turn it is, what became of it, and what is done with the row then.

A row is taken by one conditional UPDATE, committed before anything is sent, so that no lock is held meanwhile. Whoever
dies with it leaves a row that is due again later; the guard knows what was sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from attrs import frozen
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router, transaction
from django.db.models import Count, F, Q

from retrypolicy.django import outbox, settings
from retrypolicy.django.ledger import testing
from retrypolicy.django.models import OutboxMessage
from retrypolicy.django.stored import load
from retrypolicy.errors import ConfigurationError, PolicyError, SendFailed
from retrypolicy.guard.operation import operation
from retrypolicy.policy import WORKER, RetryPolicy
from retrypolicy.reports import report
from retrypolicy.step import (
    SOON,
    GiveUp,
    Held,
    RetryAt,
    Settled,
    Step,
    Wait,
    kills_its_workers,
    next_step,
    patience,
    slim,
)

State = OutboxMessage.State
OPEN = (State.WAITING, State.HELD)

_MARGIN = 60.0
"""Seconds that a row stays with whoever took it, beyond the longest attempt that its policy allows."""

LATE = 900.0
"""Seconds after which a message that is due, and is not sent, is a sign that nobody sweeps."""

logger = logging.getLogger("retrypolicy")


@frozen(kw_only=True)
class Delivered:
    """What one turn of a message came to. `name`: its label, or the row's number."""

    name: str
    step: Step
    readable: bool = True


def send(key: str, *, using: str | None = None) -> Step | None:
    """Send the message with this key, if it is in the outbox and nobody else's turn: what a queue calls.

    None: there is none (it was settled), or somebody else has it. Otherwise what became of it; nothing is left to do
    with that: a row that is not settled is the sweeper's. Never waits for another attempt.

    Raises `ConfigurationError` inside a transaction: the row must be taken for all to see.
    """
    using = using or router.db_for_write(OutboxMessage)
    mine = Q(key=key) & (Q(turn=0) | Q(due__lte=outbox.clock.now()))
    row = _take(using, mine)
    return None if row is None else _deliver(row, using).step


def sweep(*, using: str | None = None, limit: int | None = None) -> Iterator[Delivered]:
    """Send what is due, one after another, at most `limit`. Any number of sweepers may run at once.

    Raises `ConfigurationError` inside a transaction.
    """
    using = using or router.db_for_write(OutboxMessage)
    begun, count = outbox.clock.now(), 0
    while limit is None or count < limit:
        row = _take(using, Q(due__lte=begun))
        if row is None:
            return
        yield _deliver(row, using)
        count += 1


def outcome(found: Delivered) -> str:
    """What became of a turn, in one word: sent, waiting, held, failed, unreadable."""
    match found.step:
        case Settled():
            return "sent"
        case Held():
            return str(State.HELD.label)
        case GiveUp():
            return str((State.FAILED if found.readable else State.UNREADABLE).label)
    return str(State.WAITING.label)


def look() -> Iterator[tuple[str, bool]]:
    """What there is to say of the outbox, for people; and whether somebody must do something."""
    rows = OutboxMessage.objects.all()
    try:
        counts = dict(rows.values_list("state").annotate(Count("pk")).order_by("state"))
        late = rows.filter(state__in=OPEN, due__lt=outbox.clock.now() - LATE).count()
    except DatabaseError as error:
        if settings.setting("OUTBOX") is not None:
            yield f"can't be read ({type(error).__name__}); run manage.py migrate", True
        return
    for state, count in counts.items():
        yield f"{count} message(s) {State(state).label}", state not in OPEN
    if late:
        yield f"{late} message(s) were due {LATE / 60:.0f} minutes ago: does manage.py retrypolicy sweep run?", True


def _take(using: str, which: Q) -> OutboxMessage | None:
    rows = OutboxMessage.objects.using(using).filter(which, state__in=OPEN).order_by("due")
    skips = connections[using].features.has_select_for_update_skip_locked
    while True:
        row = None if skips else rows.first()
        with _committed(using):
            if skips:
                row = rows.select_for_update(skip_locked=True).first()
            if row is None:
                return None
            changes = {"turn": F("turn") + 1, "unfinished": F("unfinished") + 1}
            mine = rows.filter(pk=row.pk, turn=row.turn).order_by()
            if mine.update(due=outbox.clock.now() + _longest(row), **changes):
                row.turn += 1
                return row


def _committed(using: str) -> Any:
    if connections[using].in_atomic_block and not testing():
        raise ConfigurationError(
            "the outbox can't be sent from inside a transaction; send after it: transaction.on_commit, or the sweeper"
        )
    return transaction.atomic(using=using)


def _longest(row: OutboxMessage) -> float:
    try:
        policy = settings.outbox_policy(row.policy)
    except (ConfigurationError, PolicyError):
        policy = WORKER  # it will be told in its turn
    return _MARGIN + (policy.attempt_timeout or policy.total_timeout or 60.0)


def _deliver(row: OutboxMessage, using: str) -> Delivered:
    policy, readable = WORKER, True
    error: BaseException | None = None
    step: Step
    try:
        policy = settings.outbox_policy(row.policy)
        if kills_its_workers(row.unfinished, policy):
            raise SendFailed(
                f"its sending was begun {row.unfinished} times and never came to an end: it may kill whoever sends "
                "it. It is not sent again by itself"
            )
        readable = False
        message = load(row.content)
        readable = True
        step = _sent(row, message, _at_once(policy))
    except Exception as caught:
        error = caught
        step = _after(caught, row, policy, readable)
    _settle(row, using, step, error, readable)
    return Delivered(name=str(row), step=step, readable=readable)


def _at_once(policy: RetryPolicy) -> RetryPolicy:
    """The same policy, but every wait is the row's: nobody else has to wait behind it."""
    return policy.with_(max_wait=0.0, pushback="defer" if policy.pushback == "cap" else policy.pushback)


def _sent(row: OutboxMessage, message: Any, policy: RetryPolicy) -> Step:
    message.idempotency_key = row.key
    message.retry_label = row.label
    options = {"using": row.mailer} if row.mailer else {}
    with operation(policy=policy, label=row.label):
        count = message.send(**options)
    if count == 0 and message.recipients():
        return GiveUp(error=SendFailed("the backend sent nothing, and raised nothing: is it told to fail silently?"))
    return Settled()


def _after(error: Exception, row: OutboxMessage, policy: RetryPolicy, readable: bool) -> Step:
    now = outbox.clock.now()
    fixable = isinstance(error, (ConfigurationError, PolicyError, ImproperlyConfigured))
    if not readable or not fixable:
        return next_step(error, policy=policy, since=row.since, now=now)
    # The settings are wrong; nothing was sent, and nothing is wrong with the message.
    when = now + patience(now - row.since, SOON)
    over = policy.lifetime is not None and when >= row.since + policy.lifetime
    return GiveUp(error=slim(error)) if over else RetryAt(when=when)


def _settle(row: OutboxMessage, using: str, step: Step, error: BaseException | None, readable: bool) -> None:
    rows = OutboxMessage.objects.using(using).filter(pk=row.pk)
    if isinstance(step, Settled):
        rows.delete()  # whoever has the row by now: it is done
        return
    if isinstance(step, GiveUp):
        error = step.error
        logger.error("message %d in the outbox is not sent again: %s", row.pk, slim(error))
    trouble = "" if error is None else str(slim(error))
    found = None if error is None else report(error)
    digest = getattr(error, "key_digest", None) or getattr(found, "key_digest", None) or ""
    changes: dict[str, Any] = {"trouble": trouble, "unfinished": 0}
    soonest = outbox.clock.now() + 1.0  # the ledger's clock may differ from ours: not again and again until they meet
    if digest:
        changes["digest"] = digest
    match step:
        case RetryAt(when=when) | Wait(when=when):
            changes |= {"state": State.WAITING, "due": max(when, soonest)}
        case Held(when=when):
            changes |= {"state": State.HELD, "due": max(when, soonest)}
        case GiveUp():
            changes |= {"state": State.FAILED if readable else State.UNREADABLE}
    rows.filter(turn=row.turn).update(**changes)
