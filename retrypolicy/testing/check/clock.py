"""The model's clock: it moves when the world moves it, and can be wound back for the next play."""

from __future__ import annotations

import threading


class ModelClock:
    """A `Clock` on which nobody sleeps. `shift` is how wrong the wall clock goes."""

    START = 1_000_000_000.0

    def __init__(self) -> None:
        self.wind_back()

    def wind_back(self) -> None:
        """As new."""
        self.elapsed = 0.0
        self.shift = 0.0

    def now(self) -> float:
        return self.START + self.elapsed + self.shift

    def true_now(self) -> float:
        """What the servers' clocks show."""
        return self.START + self.elapsed

    def monotonic(self) -> float:
        return self.elapsed

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> bool:
        raise AssertionError("in the model the world lets time pass")

    async def sleep_async(self, seconds: float, wake: threading.Event | None = None) -> bool:
        raise AssertionError("in the model the world lets time pass")
