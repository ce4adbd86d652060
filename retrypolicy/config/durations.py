"""Durations as people write them: "500ms", "2m", "1h30m"."""

from __future__ import annotations

import re

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PARTS = "".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?){unit})?" for unit in _UNITS)

PATTERN = rf"^(?=[0-9]){_PARTS}$(?!\n)"
"""Numbers with the units d, h, m, s and ms, in this order, each at most once. The same to Python and ECMAScript."""


def seconds(text: str) -> float | None:
    """How many seconds the text says; None if it is no duration."""
    match = re.match(PATTERN, text)
    if match is None:
        return None
    said = zip(match.groups(), _UNITS.values(), strict=True)
    return sum(float(number) * unit for number, unit in said if number is not None)
