"""Laws of the server's hints: what each header means, which one wins, and that none can do harm."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPHeaderDict

from retrypolicy import Answered, Constant, RetryPolicy, decide
from retrypolicy.decision import History, Retry
from retrypolicy.errors import PolicyError
from retrypolicy.http.pushback import LONGEST, Hint, do_not_retry, pushback

NOW = 1_795_500_000.0
GITHUB = Hint(header="X-RateLimit-Reset", unit="epoch", when_header="X-RateLimit-Remaining")

any_text = st.text(st.characters())  # surrogates included
names = st.sampled_from(
    [
        "Retry-After",
        "retry-after-ms",
        "Date",
        "RateLimit",
        "RateLimit-Policy",
        "RateLimit-Remaining",
        "RateLimit-Reset",
        "X-Reset",
        "X-Left",
    ]
)
looks_like_a_number = st.from_regex(r"\A[-+ ]?[0-9\u0660-\u0669]*\.?[0-9]*(e[0-9]+)?\Z")
looks_like_a_limit = st.from_regex(r'\A("[a-z]*"|[a-z]+(=[0-9]+)?)(;[rt]=[0-9]*){0,3}(, ?(reset|remaining)=[0-9]*)*\Z')
units = st.sampled_from(["seconds", "milliseconds", "epoch", "epoch_ms", "http-date", "iso8601"])


@given(st.dictionaries(names, any_text | looks_like_a_number | looks_like_a_limit), units)
@example({"Retry-After": "9" * 5000}, "seconds")
@example({"RateLimit": '"' * 3000}, "seconds")
@example({"X-Reset": "9999-12-31T23:59:59-23:59"}, "iso8601")
def test_no_value_of_a_header_raises(headers: dict[str, str], unit: Any) -> None:
    hints = [Hint(header="X-Reset", unit=unit), Hint(header="X-Reset", unit=unit, when_header="X-Left")]
    wait = pushback(headers, NOW, hints)
    assert wait is None or 0 <= wait <= LONGEST
    assert do_not_retry(headers) is None


@given(st.dictionaries(st.sampled_from(["x-should-retry", "Stripe-Should-Retry"]), any_text))
def test_no_value_of_should_retry_raises(headers: dict[str, str]) -> None:
    assert do_not_retry(headers) in (None, True, False)


@given(st.integers(0, int(LONGEST)))
def test_delay_seconds(seconds: int) -> None:
    """`delay-seconds = 1*DIGIT` (RFC 9110 10.2.3)."""
    assert pushback({"Retry-After": str(seconds)}, NOW) == seconds


@given(st.integers(0, 86400), st.integers(-(10**6), 10**6))
def test_a_date_is_measured_by_the_servers_own_clock(seconds: int, skew: int) -> None:
    date = int(NOW) + skew
    headers = {"Retry-After": formatdate(date + seconds, usegmt=True), "Date": formatdate(date, usegmt=True)}
    assert pushback(headers, NOW) == seconds
    del headers["Date"]
    assert pushback(headers, NOW) == max(0, seconds + skew)
    assert pushback({**headers, "Date": "today"}, NOW) == max(0, seconds + skew)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120\t", 120.0),
        ("007", 7.0),
        ("1.5", 1.5),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),  # in the past
        # Not in the grammar: as if it were absent.
        ("", None),
        (" ", None),
        ("-1", None),
        ("+5", None),
        ("1e3", None),
        ("0x10", None),
        ("1_000", None),
        ("1.", None),
        (".5", None),
        ("٣", None),
        ("²", None),
        ("5, 10", None),
        ("5;", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("5\n", None),
        # Nonsense: an epoch for a delay, and worse.
        ("1795500000", None),
        ("1" + "0" * 400, None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert pushback({"Retry-After": value}, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ('"default";r=0;t=30', 30),
        ('"default"; r=0; t=30', 30),
        ('"default";t=30;r=0', 30),
        ('"default";r=0;t=30;pk=:cHNhdmU=:', 30),
        ('"burst";r=0;t=5,"daily";r=0;t=900 , "x";r=1;t=9999', 900),
        ('"a;r=0;t=5";r=1;t=30', None),
        ('"a\\"b";r=0;t=30', 30),
        ('"default";r=50;t=30', None),  # quota is left
        ('"default";r=0', None),
        ('"default";t=30', None),
        ('"default";r=0;t=-30', None),
        ('"default;r=0;t=30', None),  # malformed: MUST be ignored
        ('"default";r=0;t=30,', None),
        ('"default";r=0;t=30 x', None),
        ("limit=10, remaining=0, reset=7", 7),  # revision 07
        ("limit=10,remaining=0,reset=7", 7),
        ("limit=10, remaining=1, reset=7", None),
        ("limit=10, reset=7", None),
        ("limit=10, remaining=0", None),
        ("10", None),
        ("", None),
    ],
)
def test_rate_limit(value: str, seconds: float | None) -> None:
    assert pushback({"RateLimit": value}, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "policy", "seconds"),
    [
        ('"burst";r=0', '"burst";q=100;w=60,"daily";q=1000;w=86400', 60),
        ('"burst";r=0;t=7', '"burst";q=100;w=60', 7),  # the server knows better
        ('"burst";r=1', '"burst";q=100;w=60', None),
        ('"burst";r=0', '"daily";q=1000;w=86400', None),
        ('"burst";r=0', '"burst";q=100', None),
        ('"burst";r=0', '"burst";q=100;w=60,', None),  # malformed: MUST be ignored
        ('"burst";r=0', "100;w=10", None),
        (None, '"burst";q=100;w=60', None),  # a policy alone says nothing of what is left
    ],
)
def test_rate_limit_policy(value: str | None, policy: str, seconds: float | None) -> None:
    headers = {"RateLimit-Policy": policy} | ({} if value is None else {"RateLimit": value})
    assert pushback(headers, NOW) == seconds
    wanted = RetryPolicy(backoff=Constant(seconds=0), max_wait=100.0)
    decision = decide(wanted, History(), Answered(status=429, headers=headers), now=NOW, random=0.5)
    assert isinstance(decision, Retry)
    assert decision.delay == (seconds or 0.0)


def test_rate_limit_of_the_early_drafts() -> None:
    assert pushback({"RateLimit-Remaining": "0", "RateLimit-Reset": "7"}, NOW) == 7
    assert pushback({"RateLimit-Remaining": "1", "RateLimit-Reset": "7"}, NOW) is None
    assert pushback({"RateLimit-Reset": "7"}, NOW) is None


def test_order() -> None:
    headers = {
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": "5",
        "RateLimit": '"default";r=0;t=4',
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int(NOW) + 3),
        "Retry-After-Ms": "2000",
        "Retry-After": "1",
    }
    waits = []
    for _ in range(5):
        waits.append(pushback(headers, NOW, [GITHUB]))
        headers.popitem()
        if "X-RateLimit-Remaining" in headers and "X-RateLimit-Reset" not in headers:
            headers.popitem()
    assert waits == [1, 2, 3, 4, 5]
    assert pushback({"Retry-After": "soon", "retry-after-ms": "250"}, NOW) == 0.25
    assert pushback({"Retry-After": "1795500000", "RateLimit": '"default";r=0;t=4'}, NOW) == 4


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("seconds", "60"),
        ("milliseconds", "60000"),
        ("epoch", "1795500060"),
        ("epoch_ms", "1795500060000"),
        ("http-date", "Tue, 24 Nov 2026 06:01:00 GMT"),
        ("iso8601", "2026-11-24T06:01:00Z"),
        ("iso8601", "2026-11-24T06:01:00"),
        ("iso8601", "2026-11-24T08:01:00.000+02:00"),
    ],
)
def test_units_of_hints(unit: Any, value: str) -> None:
    hint = Hint(header="x-reset", unit=unit)
    assert pushback({"X-Reset": value}, NOW, [hint]) == 60
    assert pushback({"X-Reset": value}, NOW) is None  # no unit is ever guessed
    if unit not in ("seconds", "milliseconds"):
        assert pushback({"X-Reset": value}, NOW + 90, [hint]) == 0
        assert pushback({"X-Reset": value, "Date": "Tue, 24 Nov 2026 06:00:30 GMT"}, NOW + 90, [hint]) == 30


def test_a_wrong_unit_is_not_believed() -> None:
    assert pushback({"X-Reset": "1795500060"}, NOW, [Hint(header="X-Reset", unit="seconds")]) is None
    assert pushback({"X-Reset": "1795500060000"}, NOW, [Hint(header="X-Reset", unit="epoch")]) is None


def test_a_hint_counts_only_when_nothing_is_left() -> None:
    headers = {"X-RateLimit-Reset": "1795500060", "X-RateLimit-Remaining": "0"}
    assert pushback(headers, NOW, [GITHUB]) == 60
    assert pushback({**headers, "X-RateLimit-Remaining": "1"}, NOW, [GITHUB]) is None
    assert pushback({**headers, "X-RateLimit-Remaining": ""}, NOW, [GITHUB]) is None
    assert pushback({"X-RateLimit-Reset": "1795500060"}, NOW, [GITHUB]) is None


@pytest.mark.parametrize("mapping", [dict, CaseInsensitiveDict, HTTPHeaderDict])
@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
def test_any_mapping_and_any_case(mapping: Any, name: str) -> None:
    assert pushback(mapping({name: "3"}), NOW) == 3


def test_a_field_sent_twice_is_not_read() -> None:
    headers = HTTPHeaderDict()
    headers.add("Retry-After", "3")
    headers.add("Retry-After", "5")
    assert pushback(headers, NOW) is None
    assert pushback({"Retry-After": "3", "retry-after": "5"}, NOW) is None


def test_a_list_sent_in_two_fields_is_one_list() -> None:
    headers = HTTPHeaderDict()
    headers.add("RateLimit", '"burst";r=0;t=5')
    headers.add("RateLimit", '"daily";r=0;t=900')
    assert pushback(headers, NOW) == 900


def test_do_not_retry() -> None:
    assert do_not_retry({}) is None
    assert do_not_retry({"X-Should-Retry": "false"}) is True
    assert do_not_retry({"x-should-retry": " TRUE "}) is False
    assert do_not_retry({"Stripe-Should-Retry": "false"}) is True
    assert do_not_retry({"Stripe-Should-Retry": "true"}) is False
    assert do_not_retry({"Stripe-Should-Retry": "true", "x-should-retry": "false"}) is True
    assert do_not_retry({"x-should-retry": "perhaps"}) is None


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"header": ""}, "Hint.header"),
        ({"header": 5}, "Hint.header"),
        ({"header": None}, "Hint.header"),
        ({"header": "X-Réset"}, "Hint.header"),
        ({"header": "X-Reset", "unit": "fortnights"}, "Hint.unit"),
        ({"header": "X-Reset", "when_header": " "}, "Hint.when_header"),
    ],
)
def test_bad_hints_are_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Hint(**fields)
    assert caught.value.field == name
    assert name in str(caught.value)


def test_a_hint_can_be_written_down() -> None:
    assert eval(repr(GITHUB)) == GITHUB
    assert hash(GITHUB) == hash(eval(repr(GITHUB)))
