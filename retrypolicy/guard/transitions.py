"""The guard's protocol as pure functions: record and request in, next record out.

Every store does exactly this, atomically; the model check explores exactly this. No function reads a clock.
Why it is safe: design notes in docs/guard.md. In short: only the current owner under the current fence may say
"not applied"; anybody may say "applied"; nothing but evidence or a key that the provider honours leads out of HELD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from retrypolicy.guard.ledger import COLLECTABLE, Filter, Phase, Record, Refused, Take, Taken


def live(record: Record | None, now: float) -> Record | None:
    """The record, or None if it has expired: an expired record counts as never seen."""
    if record is not None and record.expires <= now and record.phase in COLLECTABLE:
        return None
    return record


def matches(record: Record, where: Filter, now: float) -> bool:
    """Whether a listing shows this record. An expired one is not shown, deleted or not."""
    return (
        live(record, now) is not None
        and (not where.phases or record.phase in where.phases)
        and (where.provider is None or record.provider == where.provider)
        and (where.label is None or where.label in record.label)
        and (where.older_than is None or record.first_seen <= now - where.older_than)
    )


def arm(record: Record | None, take: Take, now: float, retention: float) -> tuple[Record | None, Taken | Refused]:
    """An attempt is about to put its first byte on the wire."""
    if record is None:
        return _taken_first(take, now, retention, _ARMED)
    return _take(record, take, now, retention, _ARMED)


def claim(record: Record | None, take: Take, now: float, retention: float) -> tuple[Record | None, Taken | Refused]:
    """Keep the key without arming it. A held key can't be claimed: it already waits."""
    return _take(record, take, now, retention, Phase.CLAIMED)


def _take(
    record: Record | None, take: Take, now: float, retention: float, to: Phase
) -> tuple[Record | None, Taken | Refused]:
    if record is None or live(record, now) is None:
        return _taken_first(take, now, retention, to)
    if record.phase is to and record.owner == take.owner and record.token == take.token:
        return record, _answer(record)  # the same statement again, after a lost reply
    if record.phase is Phase.ARMED and record.lease < now:
        record = _held(record, fence=record.fence + 1)
    if not _may_take(record, take, now, to):
        return record, Refused(record=record, now=now)
    if record.phase is Phase.FAILED:
        # The old call is over: a new one begins, and counts from the start.
        record = _with(record, attempts=0, first_seen=now, result=None)
    if take.generation != record.generation:
        # Another outgoing key: the provider's window starts anew with it.
        record = _with(record, generation=take.generation, first_armed=None)
    return _taken(record, take, now, retention, to)


def _may_take(record: Record, take: Take, now: float, to: Phase) -> bool:
    same = record.fingerprint == take.fingerprint and record.generation == take.generation
    ours = record.phase is Phase.CLAIMED and record.owner == take.owner
    if record.not_before > now and not ours:
        return False
    match record.phase:
        case Phase.CLAIMED:
            free = ours or record.lease < now
            return free and (same or _renewed(record, take))
        case Phase.FAILED:
            return same or _renewed(record, take)
        case Phase.HELD:
            return to is Phase.ARMED and same and covered(record, take.window, now)
        case _:
            return False


def covered(record: Record, window: float | None, now: float) -> bool:
    """May what is held be armed again, for the same content? Only while the provider remembers its key for sure.

    Or at any time, if the policy accepts duplicates: then its window is infinite. A clock that stands before the last
    arm was set back: nobody knows how much of the window is left.
    """
    if window is None or record.first_armed is None or record.last_armed is None:
        return False
    return window == math.inf or record.last_armed <= now < record.first_armed + window


def _renewed(record: Record, take: Take) -> bool:
    """Other content under a key of which nothing was applied: only with a new outgoing key, if one went out before."""
    if record.first_armed is None:
        return take.generation == record.generation
    return take.generation == record.generation + 1


def _taken_first(take: Take, now: float, retention: float, to: Phase) -> tuple[Record, Taken]:
    """What `_taken` makes of a key that was never seen; nearly all are. Spelled out, since each send pays for it."""
    armed = to is _ARMED
    values = _BLANK.copy()
    values["key"] = take.key
    values["phase"] = to
    values["generation"] = take.generation
    values["owner"] = take.owner
    values["token"] = take.token
    values["lease"] = now + take.lease
    values["first_seen"] = now
    values["first_armed"] = values["last_armed"] = when = now if armed else None
    values["attempts"] = attempts = take.attempts
    values["fingerprint"] = take.fingerprint
    values["label"] = take.label
    values["provider"] = take.provider
    not_before = take.not_before
    values["not_before"] = 0.0 if armed else not_before
    values["expires"] = (not_before if not_before > now else now) + retention  # noqa: FURB136 - in a fifth of the time
    record, taken = _new(Record), _new(Taken)
    _fill(record, values)
    values = {"fence": 1, "attempts": attempts, "first_seen": now, "first_armed": when, "tainted": False}
    _fill_taken(taken, values)
    return record, taken


def _taken(record: Record, take: Take, now: float, retention: float, to: Phase) -> tuple[Record, Taken]:
    armed = to is Phase.ARMED
    record = _with(
        record,
        phase=to,
        fence=record.fence + 1,
        owner=take.owner,
        token=take.token,
        lease=now + take.lease,
        fingerprint=take.fingerprint,
        first_armed=(now if record.first_armed is None else record.first_armed) if armed else record.first_armed,
        last_armed=now if armed else record.last_armed,
        attempts=record.attempts + take.attempts,
        not_before=0.0 if armed else take.not_before,
        label=take.label or record.label,
        provider=take.provider or record.provider,
        expires=max(record.expires, now + retention, take.not_before + retention),
    )
    return record, _answer(record)


def _answer(record: Record) -> Taken:
    return Taken(
        fence=record.fence,
        attempts=record.attempts,
        first_seen=record.first_seen,
        first_armed=record.first_armed,
        tainted=record.taint,
    )


def park(
    record: Record | None,
    owner: bytes,
    fence: int,
    now: float,
    retention: float,
    *,
    lease: float = 0.0,
    not_before: float = 0.0,
) -> Record | None:
    """Proven not applied, to be repeated: claimed, or held again if an earlier attempt's outcome is unknown."""
    if record is None or not _owned(record, owner, fence, now, Phase.ARMED, Phase.CLAIMED):
        return record
    if record.taint:
        return _with(_held(record), not_before=not_before)
    return _with(
        record,
        phase=Phase.CLAIMED,
        lease=now + lease if lease > 0 else 0.0,
        not_before=not_before,
        expires=max(record.expires, not_before + retention),
    )


def done(
    record: Record | None, key: bytes, result: Mapping[str, Any], now: float, retention: float, *, provider: str = ""
) -> Record:
    """Applied. Believed from anyone, stale owners included; final: the first result stays."""
    known = live(record, now)
    if known is None:
        known = Record(key=key, phase=_DONE, first_seen=now, provider=provider)
    elif known.phase is _DONE:
        return known
    values = known.__dict__.copy()  # spelled out, since each send pays for it
    values["phase"] = _DONE
    values["taint"] = False
    values["owner"] = values["token"] = None
    values["lease"] = values["not_before"] = 0.0
    values["result"] = dict(result)
    expires = now + retention
    if expires > known.expires:
        values["expires"] = expires
    after = _new(Record)
    _fill(after, values)
    return after


def reject(
    record: Record | None,
    owner: bytes,
    fence: int,
    now: float,
    retention: float,
    *,
    sure: bool = False,
    not_before: float = 0.0,
) -> Record | None:
    """Not applied, and the call is over: failed. If an earlier attempt's outcome is unknown, only a sure one counts.

    From CLAIMED it gives up a call between its attempts.
    """
    if record is None or not _owned(record, owner, fence, now, Phase.ARMED, Phase.CLAIMED):
        return record
    if record.taint and not sure:
        return _with(_held(record), not_before=not_before)
    return _with(
        record,
        phase=Phase.FAILED,
        taint=False,
        owner=None,
        token=None,
        lease=0.0,
        not_before=not_before,
        expires=max(record.expires, not_before + retention),
    )


def unknown(record: Record | None, owner: bytes, fence: int, *, not_before: float = 0.0) -> Record | None:
    """The attempt may have been applied."""
    if record is None or not _owned(record, owner, fence, 0.0, Phase.ARMED):
        return record
    return _with(_held(record), not_before=not_before)


def expire(record: Record | None, fence: int, now: float) -> Record | None:
    """The owner of an armed record is taken for dead. It is never simply run again."""
    if record is None or record.phase is not Phase.ARMED or record.fence != fence or record.lease >= now:
        return record
    return _held(record, fence=fence + 1)


def resolve(
    record: Record | None,
    fence: int,
    verdict: Literal["applied", "not_applied"],
    now: float,
    retention: float,
    *,
    quiet: float = 0.0,
    result: Mapping[str, Any] | None = None,
) -> Record | None:
    """Evidence from a person, the provider or an event, for a held key."""
    if record is None or record.phase is not Phase.HELD or record.fence != fence:
        return record
    if verdict == "applied":
        return done(record, record.key, result or {}, now, retention)
    if record.last_armed is not None and record.last_armed > now - quiet:
        return record  # the provider's index may lag behind: "not found" proves nothing yet
    return _with(
        record,
        phase=Phase.FAILED,
        taint=False,
        fence=record.fence + 1,
        not_before=0.0,
        result=dict(result) if result else None,
        expires=max(record.expires, now + retention),
    )


def _with(record: Record, **changes: Any) -> Record:
    """A copy with other values. attrs.evolve does the same in four times the time."""
    copy = _new(Record)
    _fill(copy, record.__dict__ | changes)
    return copy


# What attrs' own constructors do, in a third of the time: give an empty object its values.
_new = object.__new__
_fill, _fill_taken = Record.__dict__["__dict__"].__set__, Taken.__dict__["__dict__"].__set__
_BLANK: dict[str, Any] = Record(key=b"", phase=Phase.CLAIMED).__dict__
_ARMED, _DONE = Phase.ARMED, Phase.DONE  # to ask the class for a member costs as much as a dictionary


def _owned(record: Record, owner: bytes, fence: int, now: float, *phases: Phase) -> bool:
    return record.phase in phases and record.owner == owner and record.fence == fence and live(record, now) is not None


def _held(record: Record, fence: int | None = None) -> Record:
    return _with(
        record,
        phase=Phase.HELD,
        taint=True,
        owner=None,
        token=None,
        lease=0.0,
        fence=record.fence if fence is None else fence,
    )
