from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from retrypolicy import Constant, RetryPolicy
from retrypolicy.guard import MemoryLedger

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def project(ledger: MemoryLedger) -> Iterator[dict[str, Any]]:
    """The setting `RETRYPOLICY`, with a ledger and no waits. What a test puts into the dict counts."""
    setting: dict[str, Any] = {"LEDGER": ledger, "POLICY": AT_ONCE}
    with override_settings(RETRYPOLICY=setting):
        yield setting
