"""The table of phases in docs/guard.md is what the transitions do: it is drawn from them here, and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import evolve

from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import RETENTION, Phase, Record, Refused, Take

PAGE = Path(__file__).parents[2] / "docs" / "guard.md"
NOW = 1000.0
OWNER, OTHER, KEY = b"A" * 16, b"B" * 16, b"k" * 32
_RECORD = Record(
    key=KEY,
    phase=Phase.ARMED,
    owner=OWNER,
    token=b"t",
    lease=NOW + 60,
    first_seen=NOW - 10,
    first_armed=NOW - 10,
    last_armed=NOW - 10,
    attempts=1,
    fingerprint=b"f",
    expires=NOW + RETENTION,
)
_OVER = evolve(_RECORD, owner=None, token=None, lease=0.0)
ROWS: dict[str, Record | None] = {
    "absent": None,
    "claimed": evolve(_RECORD, phase=Phase.CLAIMED),
    "claimed, lease over": evolve(_RECORD, phase=Phase.CLAIMED, lease=NOW - 1),
    "armed": _RECORD,
    "armed, an earlier attempt unknown": evolve(_RECORD, taint=True),
    "armed, lease over": evolve(_RECORD, lease=NOW - 1),
    "held": evolve(_OVER, phase=Phase.HELD, taint=True),
    "done": evolve(_OVER, phase=Phase.DONE),
    "failed": evolve(_OVER, phase=Phase.FAILED),
}


def _take(window: float | None = None) -> Take:
    return Take(key=KEY, owner=OTHER, token=b"u", fingerprint=b"f", lease=60.0, window=window)


def _arm(record: Record | None, window: float | None) -> Record | None:
    after, answer = transitions.arm(record, _take(window), NOW, RETENTION)
    return None if isinstance(answer, Refused) and after is record else after


COLUMNS: dict[str, Callable[[Record | None], Record | None]] = {
    "arm": lambda r: _arm(r, None),
    "arm, key honoured": lambda r: _arm(r, 3600.0),
    "park": lambda r: transitions.park(r, OWNER, 1, NOW, RETENTION),
    "reject": lambda r: transitions.reject(r, OWNER, 1, NOW, RETENTION),
    "unknown": lambda r: transitions.unknown(r, OWNER, 1),
    "done": lambda r: transitions.done(r, KEY, {}, NOW, RETENTION),
    "expire": lambda r: transitions.expire(r, 1, NOW),
    "resolve applied": lambda r: transitions.resolve(r, 1, "applied", NOW, RETENTION),
    "resolve not applied": lambda r: transitions.resolve(r, 1, "not_applied", NOW, RETENTION),
}


def drawn() -> str:
    lines = ["| now | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, record in ROWS.items():
        cells = []
        for step in COLUMNS.values():
            after = step(record)
            cells.append("" if after is None or after is record else after.phase.name.lower())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_of_phases_is_what_the_transitions_do() -> None:
    assert drawn() in PAGE.read_text(encoding="utf-8"), "draw it anew:\n" + drawn()
