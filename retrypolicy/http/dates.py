"""HTTP-date in its three forms, and ISO 8601, as seconds since the epoch."""

from __future__ import annotations

import re

_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"[a-z]{{3}}, (?P<day>[0-9]{{2}}) (?P<month>[a-z]{{3}}) (?P<year>[0-9]{{4}}) {_TIME} GMT",  # IMF-fixdate
        rf"[a-z]{{6,9}}, (?P<day>[0-9]{{2}})-(?P<month>[a-z]{{3}})-(?P<year>[0-9]{{2}}) {_TIME} GMT",  # rfc850-date
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",  # asctime-date
    )
)
_UNIX_EPOCH = 719163  # date(1970, 1, 1).toordinal()


def http_date(text: str, now: float) -> float | None:
    """The moment that an HTTP-date names (RFC 9110 5.6.7), or None where it is none. Never raises.

    All three forms are read, in any case of letters; a wrong name of the day is not minded. `now` (seconds
    since the epoch) is only for the two-digit years of the obsolete RFC 850 form: such a date is taken to
    be no more than 50 years ahead.
    """
    text = text.strip(" \t")
    for form in _FORMS:
        match = form.fullmatch(text)
        if match is None:
            continue
        month = _MONTHS.get(match["month"].lower())
        hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
        if month is None or hour > 23 or minute > 59 or second > 60:  # 60: a leap second
            return None
        moment = (month, int(match["day"]), hour, minute, second)
        year = int(match["year"])
        if len(match["year"]) == 2:
            full = _full_year(year, moment, now)
            if full is None:
                return None
            year = full
        return _epoch(year, *moment)
    return None


def iso_date(text: str) -> float | None:
    """The moment that an ISO 8601 time names, in UTC if it has no zone; None where it is none. Never raises."""
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text.strip(" \t"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


def _full_year(year: int, moment: tuple[int, int, int, int, int], now: float) -> int | None:
    from datetime import UTC, datetime

    try:
        today = datetime.fromtimestamp(now, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    latest = today.year + 50
    full = latest - (latest - year) % 100
    ahead = (full - 50, *moment) > (today.year, today.month, today.day, today.hour, today.minute, today.second)
    return full - 100 if ahead else full


def _epoch(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float | None:
    from datetime import date

    try:
        days = date(year, month, day).toordinal() - _UNIX_EPOCH
    except ValueError:
        return None
    return float(days * 86400 + hour * 3600 + minute * 60 + second)
