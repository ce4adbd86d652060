"""The server's own hint about when to come back, or not to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen

from retrypolicy._validate import choice, strict
from retrypolicy.errors import PolicyError
from retrypolicy.http.dates import http_date, iso_date
from retrypolicy.http.ratelimit import exhausted, number, rate_limit

LONGEST = 1e9
"""Seconds (31 years) beyond which a hint is nonsense, and is ignored.

Above all it is an epoch time where seconds are due. Ignoring is the careful side: a 503 with such a
header then counts as one without a hint.
"""

Unit = Literal["seconds", "milliseconds", "epoch", "epoch_ms", "http-date", "iso8601"]
_UNITS: tuple[Unit, ...] = ("seconds", "milliseconds", "epoch", "epoch_ms", "http-date", "iso8601")


def _field_name(instance: Any, attribute: Any, value: Any) -> None:
    if attribute.name == "when_header" and value is None:
        return
    if not isinstance(value, str) or not value or not value.isascii() or value != value.strip():
        allowed = "a header's name" + (", or None" if attribute.name == "when_header" else "")
        raise PolicyError.of(f"Hint.{attribute.name}", value, allowed)


@strict
@frozen(kw_only=True)
class Hint:
    """A header of one API that says when to come back, such as `X-RateLimit-Reset`.

    Its unit must be told, because servers disagree and a guess is wrong by decades: a time to wait in "seconds"
    or "milliseconds", or a moment as "epoch" (seconds), "epoch_ms", "http-date" or "iso8601" (UTC if it has no zone).
    With `when_header` the hint counts only while that header is 0, e.g. `X-RateLimit-Remaining`.
    """

    header: str = field(validator=_field_name)
    unit: Unit = field(default="seconds", validator=choice(*_UNITS))
    when_header: str | None = field(default=None, validator=_field_name)


def pushback(headers: Mapping[str, str], now: float, hints: Sequence[Hint] = ()) -> float | None:
    """Seconds to wait by the server's own word, at least 0; None if it gave none. No value of a header raises.

    The first of these that can be read is taken: `Retry-After` (RFC 9110 10.2.3, before all others by the draft on
    RateLimit fields), `retry-after-ms`, the `hints` of the provider, `RateLimit` (with
    `RateLimit-Policy`), `RateLimit-Reset` with `RateLimit-Remaining` (both in seconds, both only when nothing is left).

    A moment is measured against the response's own `Date` where that is valid, so that two clocks that disagree do no
    harm, else against `now` (seconds since the epoch); a moment in the past is 0. Fractions of a second are read,
    though RFC 9110 has none. Everything else (signs, exponents, lists, other digits than ASCII, nothing at all, waits
    above `LONGEST`) is as if the header were absent.
    """
    fields: dict[str, str] = {}
    for name, value in headers.items():  # a field may come in several lines (RFC 9110 5.2)
        name = name.lower()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return read_pushback(fields, now, hints)


def read_pushback(fields: Mapping[str, str], now: float, hints: Sequence[Hint] = ()) -> float | None:
    """`pushback` for headers whose names are in lower case."""
    usual = fields.get("retry-after", "")
    if usual.isdigit() and usual.isascii() and len(usual) < 9:
        return float(usual)

    def until(moment: float | None) -> float | None:
        if moment is None:
            return None
        date = http_date(fields.get("date", ""), now)
        return max(0.0, moment - (now if date is None else date))

    def read(value: str, unit: Unit) -> float | None:
        if unit == "http-date":
            return until(http_date(value, now))
        if unit == "iso8601":
            return until(iso_date(value))
        amount = number(value)
        if amount is None:
            return None
        if unit.startswith("epoch"):
            return until(amount / 1000 if unit == "epoch_ms" else amount)
        return amount / 1000 if unit == "milliseconds" else amount

    for hint in (*_COMMON, *hints):
        said = fields.get(hint.header.lower())
        if said is None or (hint.when_header and number(fields.get(hint.when_header.lower(), "")) != 0):
            continue
        wait = _sensible(read(said, hint.unit))
        if wait is not None:
            return wait
    wait = None
    if "ratelimit" in fields:
        wait = _sensible(rate_limit(fields["ratelimit"], fields.get("ratelimit-policy", "")))
    if wait is None and "ratelimit-reset" in fields:
        wait = _sensible(exhausted(fields.get("ratelimit-remaining", ""), fields["ratelimit-reset"]))
    return wait


def do_not_retry(headers: Mapping[str, str]) -> bool | None:
    """True if the server says not to try again, False if it says to; None if it says neither.

    Read from `x-should-retry` and `stripe-should-retry`, each `true` or `false`. Where they disagree it is True.
    """
    said = {value.strip(" \t").lower() for name, value in headers.items() if name.lower() in SHOULD_RETRY}
    if "false" in said:
        return True
    return False if "true" in said else None


_COMMON = (
    Hint(header="retry-after", unit="seconds"),
    Hint(header="retry-after", unit="http-date"),
    Hint(header="retry-after-ms", unit="milliseconds"),
)
SHOULD_RETRY = frozenset({"x-should-retry", "stripe-should-retry"})


def _sensible(wait: float | None) -> float | None:
    return wait if wait is not None and wait <= LONGEST else None
