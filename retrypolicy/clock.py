"""The only place that reads time or sleeps, and a clock for tests that does neither."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Protocol

from retrypolicy._tasks import on_trio

_LOOK_EVERY = 0.1
"""Seconds between two looks at an event, while a coroutine sleeps."""


class Clock(Protocol):
    """Where an engine and a ledger read time, in seconds, and where they wait."""

    def now(self) -> float:
        """Wall-clock time: seconds since the epoch. May jump."""
        ...

    def monotonic(self) -> float:
        """Time that never goes back, from an arbitrary start."""
        ...

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        """Wait; True if `wake` was set before the time was over."""
        ...

    async def sleep_async(self, seconds: float, wake: threading.Event | None = None) -> bool:
        """`sleep` without blocking the event loop (asyncio or trio)."""
        ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)

    def now(self) -> float:
        return time.time()  # looked up each time: tools that set the time for a test put their own there

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        if wake is not None:
            return wake.wait(max(0.0, seconds))
        time.sleep(max(0.0, seconds))  # nothing, too: others get their turn
        return False

    async def sleep_async(self, seconds: float, wake: threading.Event | None = None) -> bool:
        if wake is None:
            await _async_sleep(max(0.0, seconds))
            return False
        end = time.monotonic() + seconds
        while not wake.is_set():  # no event loop can await an event of threads: it is looked at now and then
            left = end - time.monotonic()
            if left <= 0:
                return False
            await _async_sleep(min(left, _LOOK_EVERY))
        return True

    def __repr__(self) -> str:
        return "SystemClock()"


class VirtualClock:
    """A clock that moves only when told to, or when somebody sleeps on it. Thread-safe.

    `sleeps` lists every wait in order. `jump()` moves the wall clock alone, as an administrator or
    a suspended machine does. Raises ValueError for times that are none.
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._lock = threading.Lock()
        self._elapsed = 0.0
        self._wall = _finite("start", start)
        self.sleeps: list[float] = []

    def now(self) -> float:
        with self._lock:
            return self._wall + self._elapsed

    def monotonic(self) -> float:
        with self._lock:
            return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        if _finite("seconds", seconds) < 0:
            raise ValueError(
                f"seconds: {seconds!r} is not allowed; must be >= 0 (use jump() to set the wall clock back)"
            )
        with self._lock:
            self._elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back; the monotonic clock stays."""
        with self._lock:
            self._wall += _finite("seconds", seconds)

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        if wake is not None and wake.is_set():
            return True
        self._pass(seconds)
        return False

    async def sleep_async(self, seconds: float, wake: threading.Event | None = None) -> bool:
        if wake is not None and wake.is_set():
            return True
        self._pass(seconds)
        await _async_sleep(0)  # other tasks get their turn, as they would in a real wait
        return False

    def _pass(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        with self._lock:
            self.sleeps.append(seconds)
            self._elapsed += seconds


async def _async_sleep(seconds: float) -> None:
    if on_trio():  # anyio is the bridge to trio; an asyncio program need not have it installed
        import anyio

        await anyio.sleep(seconds)
    else:
        import asyncio

        await asyncio.sleep(seconds)


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}: {value!r} is not allowed; must be a finite number of seconds")
    return float(value)
