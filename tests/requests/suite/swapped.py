"""For requests' own tests: puts our adapter in the place of `HTTPAdapter`, before anything is imported from there.

`nox -s requests_suite` runs them with `-p swapped`: with HTTPAdapter's defaults (one attempt), unless SWAPPED says
otherwise. "default": with our default policy. "broken": nothing is sent, and many tests have to fail, or the swap had
no effect.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import requests
import requests.adapters
import requests.sessions

from retrypolicy.requests import RetryAdapter
from retrypolicy.testing import Blackhole, FaultServer

MODE = os.environ.get("SWAPPED", "")


class Swapped(RetryAdapter):
    """`RetryAdapter` with HTTPAdapter's positional arguments, which it has not: its first one is the policy."""

    def __init__(
        self, pool_connections: int = 10, pool_maxsize: int = 10, max_retries: Any = 0, pool_block: bool = False
    ) -> None:
        default = MODE == "default" and max_retries == 0
        super().__init__(
            max_retries=None if default else max_retries,
            pool_connections=pool_connections,
            pool_maxsize=pool_maxsize,
            pool_block=pool_block,
        )

    def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]  # the same, by keyword
        if MODE == "broken":
            raise requests.ConnectionError("broken on purpose")
        return super().send(request, **options)


requests.adapters.HTTPAdapter = Swapped  # type: ignore[misc]  # that is the point
requests.sessions.HTTPAdapter = Swapped  # type: ignore[misc]

_silence = FaultServer([Blackhole()])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Some tests connect to 10.255.255.1 and expect silence, which not every network gives."""
    _silence.__enter__()
    for item in items:
        module = getattr(item, "module", None)
        if hasattr(module, "TARPIT"):
            module.TARPIT = _silence.url().rstrip("/")


def pytest_unconfigure() -> None:
    _silence.close()
