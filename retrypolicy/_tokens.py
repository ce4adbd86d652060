"""Tokens over time: a bucket that refills, and a sum that forgets. Whole numbers, so that sums are exact."""

from __future__ import annotations

from retrypolicy.clock import Clock


class Sliding:
    """A sum over the last `seconds`, in ten slots. Not thread-safe."""

    __slots__ = ("_clock", "_newest", "_slots", "_total", "_width")

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._clock = clock
        self._width = seconds / 10
        self._slots = [0] * 10
        self._newest = int(clock.monotonic() / self._width)
        self._total = 0

    def add(self, amount: int) -> int:
        self.total()
        self._slots[self._newest % 10] += amount
        self._total += amount
        return self._total

    def total(self) -> int:
        newest = int(self._clock.monotonic() / self._width)
        for number in range(max(self._newest + 1, newest - 9), newest + 1):
            self._total -= self._slots[number % 10]
            self._slots[number % 10] = 0
        self._newest = newest
        return self._total

    def empty(self) -> bool:
        self.total()
        return not any(self._slots)


class Window:
    """Tokens that are forgotten after a while, beside a reserve that is always there. Never full."""

    __slots__ = ("_reserve", "_sliding")
    full = False

    def __init__(self, reserve: int, seconds: float, clock: Clock) -> None:
        self._reserve = reserve
        self._sliding = Sliding(seconds, clock)

    def add(self, amount: int) -> None:
        self._sliding.add(amount)

    def level(self) -> int:
        return self._reserve + self._sliding.total()

    def resting(self) -> bool:
        return self._sliding.empty()


class Bucket:
    """Tokens up to a capacity, refilled at a steady rate (per second)."""

    __slots__ = ("_at", "_capacity", "_clock", "_level", "_rate")

    def __init__(self, capacity: int, rate: float, clock: Clock) -> None:
        self._capacity = self._level = capacity
        self._rate = rate
        self._clock = clock
        self._at = clock.monotonic()

    @property
    def full(self) -> bool:
        return self._level >= self._capacity

    def add(self, amount: int) -> None:
        self._level = max(0, min(self._capacity, self.level() + amount))

    def level(self) -> int:
        if self._rate:
            now = self._clock.monotonic()
            gained = int((now - self._at) * self._rate)
            if self._level + gained >= self._capacity:
                self._level, self._at = self._capacity, now
            elif gained > 0:
                self._level += gained
                self._at += gained / self._rate  # what is short of a whole millionth stays due
        return self._level

    def resting(self) -> bool:
        return self.level() >= self._capacity
