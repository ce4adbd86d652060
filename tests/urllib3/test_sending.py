"""What requests and urllib3 have in common: time-outs that are cut short, and keys that do not go along."""

from __future__ import annotations

from typing import Any

import pytest
from urllib3.util import Timeout

from retrypolicy.errors import ConfigurationError
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.urllib3.sending import clipped, drop_key, idle_limit

LEFT = 2.0


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        (None, LEFT),
        (1, 1),
        (1.5, 1.5),
        (30, LEFT),
        ((1, 30), (1, LEFT)),
        ((30.0, None), (LEFT, LEFT)),
        ((1, 2, 3), (1, 2, 3)),  # requests says what is wrong with it
    ],
)
def test_a_timeout_is_no_longer_than_what_is_left(given: Any, cut: Any) -> None:
    assert clipped(given, LEFT) == cut


@pytest.mark.parametrize(
    ("given", "connect", "read", "total"),
    [
        (Timeout(), LEFT, LEFT, None),
        (Timeout(connect=1, read=1.5, total=30), 1, 1.5, 30),
        (Timeout(connect=30, read=1), LEFT, 1, None),
        (Timeout(connect=1, read=None), 1, LEFT, None),
    ],
    ids=str,
)
def test_a_timeout_of_urllib3_is_cut_in_each_of_its_parts(
    given: Timeout, connect: float, read: float, total: float | None
) -> None:
    cut = clipped(given, LEFT)
    assert (cut.connect_timeout, cut._read, cut.total) == (connect, read, total)


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_where_nothing_is_left_a_timeout_is_short_but_one(left: float) -> None:
    """urllib3 takes no zero and nothing below it."""
    assert clipped(5, left) == 0.001
    assert clipped(Timeout(1), left).connect_timeout == 0.001


@pytest.mark.parametrize("given", [None, 0, 0.5, 60])
def test_an_idle_limit_is_a_number_of_seconds(given: Any) -> None:
    assert idle_limit(given) == given


@pytest.mark.parametrize("given", ["4", True, -0.1])
def test_an_idle_limit_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_idle: .* is not allowed"):
        idle_limit(given)


@pytest.mark.parametrize(
    ("placement", "left"),
    [
        (None, {"X-Key", "X-Other"}),
        (KeyPlacement(header="X-Key", window=60.0, margin=5.0), {"X-Other"}),
        (KeyPlacement(pointer="/key", window=60.0, margin=5.0), {"X-Key", "X-Other"}),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_keys_are_dropped_and_nothing_else(placement: KeyPlacement | None, left: set[str], own: bool) -> None:
    headers = {"X-Key": "k", "X-Other": "1"} | ({"Idempotency-Key": "k"} if own else {})
    drop_key(headers, Provider(name="made-up", hosts=("127.0.0.1",), key=placement))
    assert headers.keys() == left


def test_without_a_provider_the_callers_own_key_is_dropped() -> None:
    headers = {"Idempotency-Key": "k", "X-Key": "k"}
    drop_key(headers, None)
    assert headers == {"X-Key": "k"}
    drop_key(headers, None)
    assert headers == {"X-Key": "k"}
