"""Are a ledger's answer and record those of the model? Times may differ by a tolerance, where the clock is not ours."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from retrypolicy.guard.ledger import Record, Refused, Taken

_TIMES = ("lease", "first_seen", "first_armed", "last_armed", "not_before", "expires")


def same_answer(answer: Any, expected: Any, tolerance: float) -> None:
    """Raises AssertionError unless an operation answered what the model answers."""
    assert type(answer) is type(expected), (answer, expected)
    if isinstance(answer, Refused):
        same_record(answer.record, expected.record, tolerance)
        assert _close(answer.now, expected.now, tolerance), (answer, expected)
    elif isinstance(answer, Taken):
        for name in ("fence", "attempts", "tainted"):
            assert getattr(answer, name) == getattr(expected, name), (name, answer, expected)
        for name in ("first_seen", "first_armed"):
            assert _close(getattr(answer, name), getattr(expected, name), tolerance), (name, answer, expected)
    else:
        assert answer == expected


def same_record(found: Record | None, expected: Record | None, tolerance: float) -> None:
    """Raises AssertionError unless the ledger's record is the model's."""
    if found is None or expected is None:
        assert found is expected, (found, expected)
        return
    for name in _TIMES:
        mine, other = getattr(found, name), getattr(expected, name)
        assert _close(mine, other, tolerance), (name, mine, other, found, expected)
    assert _timeless(found) == _timeless(expected)


def _timeless(record: Record) -> Record:
    same: dict[str, Any] = dict.fromkeys(_TIMES, 0.0)
    return evolve(record, **same, result=None if record.result is None else dict(record.result))


def _close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return one == other or abs(one - other) <= tolerance
