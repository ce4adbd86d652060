"""Fixtures for pytest, opt-in: `-p retrypolicy.testing.pytest_plugin`, or `pytest_plugins` in a conftest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import ssl

    from retrypolicy.testing import FaultServer, Reports, VirtualClock


class StartFaultServer(Protocol):
    """What the fixture `fault_server` gives."""

    def __call__(self, script: Any = (), *, tls: bool | ssl.SSLContext = False) -> FaultServer: ...


@pytest.fixture
def fault_server() -> Iterator[StartFaultServer]:
    """Start a fault server, or several, that end with the test: `server = start([Answer(503), Answer(200)])`."""
    from retrypolicy.testing import FaultServer

    with contextlib.ExitStack() as servers:

        def start(script: Any = (), *, tls: bool | ssl.SSLContext = False) -> FaultServer:
            return servers.enter_context(FaultServer(script, tls=tls))

        yield start


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that moves only when told to, or when somebody sleeps on it; for `clock=` of engines and ledgers."""
    from retrypolicy.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def retry_reports() -> Iterator[Reports]:
    """The reports on all calls that end in the test, whichever engine or adapter makes them."""
    from retrypolicy.testing import watched

    with watched() as reports:
        yield reports
