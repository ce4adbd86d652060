from __future__ import annotations

from collections.abc import Iterator

import pytest

from retrypolicy.urllib3 import RetryPoolManager
from tests.urllib3.managers import AT_ONCE


@pytest.fixture
def client() -> Iterator[RetryPoolManager]:
    """A manager that does not wait between its attempts."""
    with RetryPoolManager(AT_ONCE) as manager:
        yield manager
