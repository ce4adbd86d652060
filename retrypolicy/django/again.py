"""Send again: a person says of a message in the outbox that it did not arrive, or that whatever stopped it is over."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial

from django.db import router, transaction

from retrypolicy.django import outbox, settings
from retrypolicy.django.models import OutboxMessage
from retrypolicy.guard import upkeep
from retrypolicy.guard.key import find
from retrypolicy.guard.ledger import Phase

logger = logging.getLogger("retrypolicy.audit")

HOW = "sent again from the outbox"
_BUSY = frozenset({Phase.ARMED, Phase.CLAIMED})


def in_outbox(digests: Collection[str]) -> dict[str, OutboxMessage]:
    """The messages that belong to these records of the ledger, as far as the outbox has them."""
    return {row.digest: row for row in OutboxMessage.objects.filter(digest__in=digests)}


def send_again(row: OutboxMessage, *, by: str) -> str:
    """Release its key if that is held, and send it after COMMIT; its lifetime begins anew. Returns "", or why not.

    Its row counts as the person found it: if somebody else settled it since, nothing is sent. Raises
    `ConfigurationError` and `LedgerUnavailable`.
    """
    ledger = settings.ledger()
    if ledger is not None:
        record, now = find(ledger, settings.the_secret(), row.key)
        if record is not None and upkeep.standing(record, now) is Phase.HELD:
            change = upkeep.resolve(ledger, record, "not_applied", by=by, how=HOW)
            if change.after is None:
                return change.why
        elif record is not None and record.phase in _BUSY and record.lease >= now:
            return "somebody is sending it right now"
    using = router.db_for_write(OutboxMessage)
    now = outbox.clock.now()
    rows = OutboxMessage.objects.using(using).filter(pk=row.pk)
    if not rows.update(state=OutboxMessage.State.WAITING, since=now, due=now, unfinished=0):
        return "it was settled meanwhile"
    logger.info("send again: message %d in the outbox, by %s", row.pk, by)
    transaction.on_commit(partial(outbox.hand_over, row.key, using), using=using)
    return ""


def look_at(digest: str) -> None:
    """Something became known of this record: its message is due now."""
    rows = OutboxMessage.objects.filter(digest=digest, state=OutboxMessage.State.HELD)
    rows.update(due=outbox.clock.now())
