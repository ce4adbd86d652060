"""Life with a ledger: find records, resolve or release them, purge, count. Every change is told to the audit log."""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from attrs import evolve, field, frozen

from retrypolicy.errors import ConfigurationError
from retrypolicy.events import clean
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record

logger = logging.getLogger("retrypolicy.audit")

SHORTEST_PREFIX = 6
_NOBODY = bytes(32)  # a key that names no call: asks a ledger for its time only


@frozen(kw_only=True)
class Change:
    """What was done, or would be done, to one record. `after` is its phase then; None: nothing changed, see `why`."""

    record: Record = field(repr=False)
    action: str
    by: str
    after: Phase | None = None
    why: str = ""


def whoami() -> str:
    """Who this process acts for, in the audit: account@host."""
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        account = f"uid {os.getuid()}"
    return f"{account}@{socket.gethostname()}"


def moment(seconds: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def time_of(ledger: Ledger) -> float:
    """What the ledger's own clock says."""
    return ledger.read(_NOBODY)[1]


def standing(record: Record, now: float) -> Phase:
    """The phase that counts: an armed record whose lease is over is held, whether or not somebody wrote that down."""
    return Phase.HELD if record.phase is Phase.ARMED and record.lease < now else record.phase


def find(ledger: Ledger, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008 - an immutable value
    """Records that match, as they stand now (see `standing`)."""
    now = time_of(ledger)
    for phases in _searches(where.phases):
        for record in ledger.records(evolve(where, phases=phases)):
            phase = standing(record, now)
            if not where.phases or phase in where.phases:
                yield record if phase is record.phase else evolve(record, phase=phase, taint=True)


def _searches(phases: frozenset[Phase]) -> list[frozenset[Phase]]:
    if Phase.HELD not in phases:
        return [phases]
    # On their own: stores have an index of what is held.
    return [frozenset({Phase.HELD}), (phases | {Phase.ARMED}) - {Phase.HELD}]


def look_up(ledger: Ledger, digest: str) -> Record:
    """The record whose digest begins with these hexadecimal digits. Raises `ConfigurationError` unless it is one."""
    digest = digest.lower().rstrip(".…")
    if len(digest) < SHORTEST_PREFIX or digest.strip("0123456789abcdef"):
        raise ConfigurationError(
            f"{digest!r} is not a digest; must be at least {SHORTEST_PREFIX} of the hexadecimal digits that "
            "the lists of keys show (a key itself goes after --key)"
        )
    if len(digest) == 2 * len(_NOBODY):
        record, now = ledger.read(bytes.fromhex(digest))
        found = [] if record is None else [evolve(record, phase=standing(record, now))]
    else:
        found = [record for record in find(ledger) if record.key.hex().startswith(digest)]
    if not found:
        raise ConfigurationError(f"{digest}: no such record in this ledger")
    if len(found) > 1:
        some = ", ".join(record.key.hex()[: len(digest) + 6] for record in found[:3])
        raise ConfigurationError(f"{digest}: {len(found)} records begin so ({some} ...); give more digits")
    return found[0]


def resolve(
    ledger: Ledger,
    record: Record,
    verdict: Literal["applied", "not_applied"],
    *,
    by: str,
    how: str = "resolved",
    quiet: float = 0.0,
    dry_run: bool = False,
) -> Change:
    """Settle a held record by evidence. Who, when and how is kept in the record's result, and told to the audit log.

    An armed record whose lease is over is held, too. "not_applied" counts only `quiet` seconds after its last arm.
    """
    action = f"resolve {verdict}"
    current, now = ledger.read(record.key)
    if current is None or standing(current, now) is not Phase.HELD:
        return _told(Change(record=current or record, action=action, by=by, why=_not_held(current)))
    after = Phase.DONE if verdict == "applied" else Phase.FAILED
    if verdict == "not_applied" and current.last_armed is not None and current.last_armed > now - quiet:
        return _told(Change(record=current, action=action, by=by, why="too soon after its last attempt to tell"))
    change = Change(record=current, action=action, by=by, after=after)
    if dry_run:
        return change
    fence = current.fence
    if current.phase is Phase.ARMED:
        ledger.expire(current.key, fence)
        fence += 1
    result = {**(current.result or {}), "how": how, "by": by, "at": moment(now)}
    if not ledger.resolve(current.key, fence, verdict, quiet=quiet, result=result):
        change = evolve(change, after=None, why="it changed at this moment; look again")
    return _told(change)


def _not_held(record: Record | None) -> str:
    return "it is gone" if record is None else f"it is {record.phase.name.lower()}, not held"


def release(ledger: Ledger, record: Record, *, by: str, dry_run: bool = False) -> Change:
    """Take a key from its owner, without evidence: claimed becomes free at once, armed becomes held.

    Safe at any time: an owner that lives after all can't go on with it, and its good news is still believed.
    """
    current, now = ledger.read(record.key)
    if current is None or current.phase not in (Phase.CLAIMED, Phase.ARMED):
        why = "it is gone" if current is None else f"it is {current.phase.name.lower()}: nobody has it"
        return _told(Change(record=current or record, action="release", by=by, why=why))
    armed = current.phase is Phase.ARMED
    change = Change(record=current, action="release", by=by, after=Phase.HELD if armed else Phase.CLAIMED)
    if dry_run:
        return change
    owner = current.owner or b""
    if not armed:
        changed = ledger.park(current.key, owner, current.fence)
    elif current.lease < now:
        changed = ledger.expire(current.key, current.fence)
    else:
        changed = ledger.unknown(current.key, owner, current.fence)
    if not changed:
        change = evolve(change, after=None, why="it changed at this moment; look again")
    return _told(change)


def purge(ledger: Ledger, *, by: str, dry_run: bool = False) -> int:
    """Delete every record that is past its retention, in steps; returns how many it was, or would be."""
    if dry_run:
        return ledger.purge(dry_run=True)
    total = 0
    while count := ledger.purge():
        total += count
    logger.info("purge: %d expired record(s) deleted, by %s", total, by)
    return total


def stats(ledger: Ledger) -> dict[str, Any]:
    """How many records stand in each phase, and of the held ones: how many for each provider, and since when."""
    counts = Counter(ledger.counts())
    providers, oldest = held(ledger)
    # Those whose owner died count as held, though nobody wrote it down yet.
    counts[Phase.ARMED] = max(0, counts[Phase.ARMED] + counts[Phase.HELD] - providers.total())
    counts[Phase.HELD] = providers.total()
    return {
        "phases": {phase.name.lower(): counts[phase] for phase in Phase},
        "held_by_provider": dict(sorted(providers.items())),
        "oldest_held_seconds": oldest,
    }


def held(ledger: Ledger) -> tuple[Counter[str], float | None]:
    """How many records are held, for each provider; and how many seconds ago the oldest of them was last armed."""
    now = time_of(ledger)
    providers: Counter[str] = Counter()
    oldest: float | None = None
    for record in find(ledger, Filter(phases=frozenset({Phase.HELD}))):
        providers[record.provider] += 1
        if record.last_armed is not None:
            oldest = record.last_armed if oldest is None else min(oldest, record.last_armed)
    return providers, None if oldest is None else max(0.0, now - oldest)


def as_dict(record: Record) -> Mapping[str, Any]:
    """A record as plain data: nothing that names its owner or its content."""
    return {
        "key": record.key.hex(),
        "phase": record.phase.name.lower(),
        "tainted": record.taint,
        "provider": record.provider,
        "label": record.label,
        "attempts": record.attempts,
        "first_seen": record.first_seen,
        "first_armed": record.first_armed,
        "last_armed": record.last_armed,
        "lease": record.lease or None,
        "not_before": record.not_before or None,
        "expires": record.expires,
        "result": None if record.result is None else dict(record.result),
    }


def _told(change: Change) -> Change:
    key, label = change.record.key.hex()[:12], change.record.label
    what = f"{change.action}: key {key}" + (f" [{clean(label)}]" if label else "")
    before = change.record.phase.name.lower()
    if change.after is None:
        logger.info("%s, by %s: not done, %s", what, change.by, change.why)
    else:
        logger.info("%s, by %s: %s, was %s", what, change.by, change.after.name.lower(), before)
    return change
