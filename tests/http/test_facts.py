"""The tables of methods and statuses say what the RFCs say."""

from __future__ import annotations

from retrypolicy.http.methods import IDEMPOTENT, SAFE
from retrypolicy.http.statuses import FORCELIST, REFUSALS


def test_methods_of_rfc_9110_and_10008() -> None:
    assert {"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"} == SAFE
    assert {"PUT", "DELETE"} == IDEMPOTENT - SAFE
    assert not IDEMPOTENT & {"POST", "PATCH", "CONNECT"}


def test_statuses() -> None:
    assert {408, 421, 425, 429} == REFUSALS
    assert {408, 421, 425, 429, 500, 502, 503, 504} == FORCELIST
    assert all(isinstance(table, frozenset) for table in (SAFE, IDEMPOTENT, REFUSALS, FORCELIST))
