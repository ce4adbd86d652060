"""Events resolve keys: whatever a provider tells of a message proves that it took the message.

Anymail's webhook views have checked who speaks before they send the signal `tracking`.
"""

from __future__ import annotations

import logging
from typing import Any

from retrypolicy.django import settings
from retrypolicy.django.keys import METADATA
from retrypolicy.errors import RetryPolicyError
from retrypolicy.guard.key import find
from retrypolicy.guard.ledger import Ledger, Phase, Record
from retrypolicy.providers import load

logger = logging.getLogger("retrypolicy.ledger")

_OF_A_MESSAGE = frozenset({
    "queued", "sent", "rejected", "failed", "bounced", "deferred", "delivered", "opened", "clicked", "complained",
    "unsubscribed",
})  # fmt: skip
"""Anymail's event types that tell of a message that the provider has taken, whatever it did with it then."""


def on_event(sender: Any, event: Any, esp_name: str, **kwargs: Any) -> None:
    """Receives Anymail's signal `tracking`. Never raises: the provider would send the event again and again."""
    key = (event.metadata or {}).get(METADATA)
    if not isinstance(key, str) or not key or event.event_type not in _OF_A_MESSAGE:
        return
    try:
        ledger = settings.ledger()
        if ledger is not None:
            arrived(ledger, key, event.message_id)
    except RetryPolicyError as error:
        logger.error("an event from %s could not be recorded: %s", esp_name, error)


def arrived(ledger: Ledger, key: str, message_id: str | None = None) -> bool:
    """The provider has this message: done, unless its sender is just about to say so. True if this changed the record.

    Raises `LedgerUnavailable`.
    """
    record, now = find(ledger, settings.the_secret(), key)
    if record is None or record.phase is Phase.DONE or (record.phase is Phase.ARMED and record.lease >= now):
        return False
    changed = ledger.done(record.key, _result(record, message_id), provider=record.provider)
    if changed:
        logger.info("key %s is done: an event of its provider names it", record.key.hex()[:12])
    return changed


def _result(record: Record, message_id: str | None) -> dict[str, Any]:
    """What a replay can use, as far as an event tells it."""
    result: dict[str, Any] = {"status": 200, "how": "event"}
    try:
        kept = load(record.provider).answers.keep.get("id")
    except RetryPolicyError:
        return result  # a profile of another release
    if kept is not None and message_id is not None and (clean := kept.clean(message_id)) is not None:
        result["id"] = clean
    return result
