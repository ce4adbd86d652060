"""Switches for people's own unit tests: nothing retried, nothing slept, everything told. Each is one per process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import overload

from retrypolicy import driving, engine
from retrypolicy.call import Call
from retrypolicy.errors import PolicyError
from retrypolicy.outcome import Report


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


@contextlib.contextmanager
def capped(seconds: float = 0.0) -> Iterator[None]:
    """Inside, no engine or adapter of this process sleeps longer than `seconds` between two attempts.

    What is decided stays as it is: the same attempts, and the waits of the report are those that would have been slept.
    Raises `PolicyError` for anything but a number of seconds.
    """
    given: object = seconds
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
        raise PolicyError.of("capped.seconds", given, "a number >= 0")
    before = driving.longest_sleep
    driving.longest_sleep = given
    try:
        yield
    finally:
        driving.longest_sleep = before


class Reports(Sequence[Report]):
    """The reports on all calls of this process that ended while it was watched, in the order of their ends."""

    def __init__(self) -> None:
        self._calls: list[Call] = []  # not their reports: a refusal is noted after the end

    def add(self, call: Call) -> None:
        self._calls.append(call)

    @overload
    def __getitem__(self, index: int) -> Report: ...
    @overload
    def __getitem__(self, index: slice) -> list[Report]: ...
    def __getitem__(self, index: int | slice) -> Report | list[Report]:
        if isinstance(index, slice):
            return [call.report() for call in self._calls[index]]
        return self._calls[index].report()

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"Reports({list(self)!r})"


@contextlib.contextmanager
def watched() -> Iterator[Reports]:
    """Inside, the report on every call of this process is collected, whichever engine or adapter makes it."""
    reports, before = Reports(), driving.watchers
    driving.watchers = (*before, reports.add)
    try:
        yield reports
    finally:
        driving.watchers = before
