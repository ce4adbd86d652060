"""What the admin shows of a ledger: rows for people, of whatever store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from attrs import evolve, frozen

from retrypolicy.django import settings
from retrypolicy.django.keys import normal_key
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import upkeep
from retrypolicy.guard.key import find
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record

MOST_READ = 5_000
"""Records that one page looks at: a ledger may hold millions, in no order that would help."""
MOST_SHOWN = 200

VIEWS: Mapping[str, tuple[str, frozenset[Phase]]] = {
    "held": ("Held", frozenset({Phase.HELD})),
    "in_flight": ("In flight", frozenset({Phase.ARMED, Phase.CLAIMED})),
    "settled": ("Settled", frozenset({Phase.DONE, Phase.FAILED})),
    "all": ("All", frozenset()),
}
AGES: Mapping[str, tuple[str, float | None]] = {
    "": ("Any age", None),
    "15m": ("Over 15 minutes", 900.0),
    "1h": ("Over an hour", 3600.0),
    "1d": ("Over a day", 86400.0),
}
_MEANING = {
    Phase.CLAIMED: "Between two attempts, or waiting until it is due; nothing is unknown.",
    Phase.ARMED: "An attempt is on the wire right now.",
    Phase.HELD: "An attempt may have been applied, and nothing shows that it was not. It waits for evidence.",
    Phase.DONE: "Applied. A repeat is answered from this record; nothing is sent.",
    Phase.FAILED: "Not applied. The next call with this key is sent.",
}


@frozen
class Row:
    """One record, as a page shows it."""

    record: Record

    @property
    def digest(self) -> str:
        return self.record.key.hex()

    @property
    def short(self) -> str:
        return self.digest[:12]

    @property
    def state(self) -> str:
        return self.record.phase.name.lower()

    @property
    def held(self) -> bool:
        return self.record.phase is Phase.HELD

    @property
    def meaning(self) -> str:
        return _MEANING[self.record.phase]

    @property
    def why(self) -> str:
        """What brought it there, in a few words: as much as a record tells."""
        record, told = self.record, self.record.result or {}
        match record.phase:
            case Phase.HELD:
                return "its sender died, or is silent" if record.owner is not None else "its answer was lost"
            case Phase.ARMED:
                return "on the wire"
            case Phase.CLAIMED:
                return "not due yet" if record.not_before else "between two attempts"
        if "how" in told:
            return f"{told['how']} by {told['by']}" if told.get("by") else str(told["how"])
        if record.phase is Phase.FAILED:
            return "refused"
        return f"answered {told['status']}" if "status" in told else "answered"

    @property
    def first_seen(self) -> datetime | None:
        return _moment(self.record.first_seen)

    @property
    def last_attempt(self) -> datetime | None:
        return _moment(self.record.last_armed)

    @property
    def not_before(self) -> datetime | None:
        return _moment(self.record.not_before)

    @property
    def known(self) -> list[tuple[str, Any]]:
        """What the ledger kept of the answer, or of who resolved it."""
        return sorted((self.record.result or {}).items())


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


@frozen
class Page:
    """Rows that match, the newest first; whether there may be more; and every provider seen."""

    rows: list[Row]
    more: bool
    providers: list[str]


def page(ledger: Ledger, chosen: Mapping[str, str]) -> Page:
    """What a page with these parameters (`phase`, `provider`, `age`, `q`) lists. Raises `LedgerUnavailable`."""
    _, phases = VIEWS[chosen["phase"] if chosen.get("phase") in VIEWS else "held"]
    age = AGES.get(chosen.get("age", ""), ("", None))[1]
    read = list(islice(upkeep.find(ledger, Filter(phases=phases, older_than=age)), MOST_READ + 1))
    providers = sorted({record.provider for record in read if record.provider})
    wanted, text = chosen.get("provider", ""), chosen.get("q", "").strip()
    found = [
        record
        for record in read[:MOST_READ]
        if (not wanted or record.provider == wanted) and (not text or text.lower() in record.label.lower())
    ]
    if text:
        named = _by_key(ledger, text)
        if named is not None and named.key not in {record.key for record in found}:
            found.append(named)
    found.sort(key=lambda record: record.last_armed or record.first_seen, reverse=True)
    more = len(read) > MOST_READ or len(found) > MOST_SHOWN
    return Page([Row(record) for record in found[:MOST_SHOWN]], more, providers)


def _by_key(ledger: Ledger, text: str) -> Record | None:
    try:
        return find(ledger, settings.the_secret(), normal_key(text))[0]
    except ConfigurationError:
        return None  # what was typed can't be a key


def row(ledger: Ledger, digest: str) -> Row | None:
    """The record with this digest, as it stands now. Raises `LedgerUnavailable`."""
    try:
        key = bytes.fromhex(digest)
    except ValueError:
        return None
    record, now = ledger.read(key)
    if record is None:
        return None
    return Row(evolve(record, phase=upkeep.standing(record, now)))
