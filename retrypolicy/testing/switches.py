"""Switches for people's own unit tests: nothing retried, nothing slept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from retrypolicy import engine


@contextlib.contextmanager
def deactivated() -> Iterator[None]:
    """Inside, every engine and adapter of this process makes one plain attempt: no retry, no wait, no guard.

    For tests of code that sends through this library, whose doubles stand in for the server.
    """
    before = engine.override
    engine.override = "off"
    try:
        yield
    finally:
        engine.override = before
