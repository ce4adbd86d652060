"""Laws of HTTP-date (RFC 9110 5.6.7)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy.http.dates import http_date, iso_date

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
EXAMPLE = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()

moments = st.integers(0, int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()))
any_text = st.text(st.characters())  # surrogates included


@pytest.mark.parametrize(
    "text",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
)
def test_the_three_forms_of_the_rfc(text: str) -> None:
    assert http_date(text, NOW) == EXAMPLE
    assert http_date(f"\t {text} ", NOW) == EXAMPLE


@given(moments)
def test_imf_fixdate_as_the_standard_library_writes_it(moment: int) -> None:
    assert http_date(formatdate(moment, usegmt=True), NOW) == moment


@given(moments)
def test_asctime_as_c_writes_it(moment: int) -> None:
    assert http_date(time.asctime(time.gmtime(moment)), NOW) == moment


@given(now=moments, offset=st.integers(-49 * 365 * 86400, 49 * 365 * 86400))
def test_a_two_digit_year_is_found_within_half_a_century(now: int, offset: int) -> None:
    moment = now + offset
    if not 0 <= moment <= 250_000_000_000:
        return
    text = datetime.fromtimestamp(moment, UTC).strftime("%A, %d-%b-%y %H:%M:%S GMT")
    assert http_date(text, now) == moment


def test_a_two_digit_year_more_than_fifty_years_ahead_is_past() -> None:
    """ "MUST interpret a timestamp that appears to be more than 50 years in the future as [...] in the past"."""
    assert http_date("Tuesday, 24-Nov-76 12:00:00 GMT", NOW) == datetime(2076, 11, 24, 12, tzinfo=UTC).timestamp()
    assert http_date("Tuesday, 24-Nov-76 12:00:01 GMT", NOW) == datetime(1976, 11, 24, 12, 0, 1, tzinfo=UTC).timestamp()


def test_a_leap_second_counts() -> None:
    leap = http_date("Sat, 31 Dec 2016 23:59:60 GMT", NOW)
    assert leap == datetime(2017, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Now 1994 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Mon, 07 Nov 1994 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994\n",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert http_date(text, NOW) is None


@given(any_text, st.floats(-1e15, 1e15))
def test_no_text_raises(text: str, now: float) -> None:
    assert http_date(text, now) is None
    iso_date(text)


@given(st.from_regex(r"\A[A-Za-z]{6}, [0-9]{2}-Nov-[0-9]{2} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT\Z"), st.floats())
def test_no_clock_raises(text: str, now: float) -> None:
    result = http_date(text, now)
    assert result is None or isinstance(result, float)


def test_iso_8601() -> None:
    assert iso_date("1994-11-06T08:49:37Z") == EXAMPLE
    assert iso_date("1994-11-06T08:49:37") == EXAMPLE
    assert iso_date("1994-11-06T10:49:37.000+02:00") == EXAMPLE
    assert iso_date("soon") is None
    assert iso_date("0001-01-01T00:00:00+23:59") is None or isinstance(iso_date("0001-01-01T00:00:00+23:59"), float)
