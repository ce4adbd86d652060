"""Silence as evidence: a held message of which the provider's webhooks told nothing for long enough was not sent."""

from __future__ import annotations

from collections.abc import Iterator

from retrypolicy.django import settings
from retrypolicy.guard import upkeep
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record
from retrypolicy.providers import load


def without_event(ledger: Ledger) -> Iterator[tuple[Record, float]]:
    """Held records of which no event came in the time that `RELEASE_AFTER` gives; and these seconds.

    Raises `ConfigurationError` for a bad setting, and `LedgerUnavailable`.
    """
    for name, minutes in settings.release_after().items():
        quiet = max(minutes * 60, load(name).quiet or 0.0)
        now = upkeep.time_of(ledger)
        for record in upkeep.find(ledger, Filter(phases=frozenset({Phase.HELD}), provider=name)):
            if record.last_armed is not None and record.last_armed <= now - quiet:
                yield record, quiet
