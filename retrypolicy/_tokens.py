"""Tokens over time: a bucket that refills, and a sum that forgets. Whole numbers, so that sums are exact."""

from __future__ import annotations

from retrypolicy.clock import Clock


class Sliding:
    """A sum over the last `seconds`, in ten slots. Times are monotonic seconds. Not thread-safe."""

    __slots__ = ("_newest", "_slots", "_total", "_width")

    def __init__(self, seconds: float, now: float) -> None:
        self._width = seconds / 10
        self._slots = [0] * 10
        self._newest = int(now / self._width)
        self._total = 0

    def add(self, amount: int, now: float) -> int:
        total = self.total(now) + amount
        self._slots[self._newest % 10] += amount
        self._total = total
        return total

    def total(self, now: float) -> int:
        newest = int(now / self._width)
        if newest > self._newest:
            for number in range(max(self._newest + 1, newest - 9), newest + 1):
                self._total -= self._slots[number % 10]
                self._slots[number % 10] = 0
            self._newest = newest
        return self._total

    def empty(self, now: float) -> bool:
        self.total(now)
        return not any(self._slots)


class Window:
    """Tokens that are forgotten after a while, beside a reserve that is always there. Never full."""

    __slots__ = ("_clock", "_reserve", "_sliding")
    full = False

    def __init__(self, reserve: int, seconds: float, clock: Clock) -> None:
        self._reserve = reserve
        self._clock = clock
        self._sliding = Sliding(seconds, clock.monotonic())

    def add(self, amount: int) -> None:
        self._sliding.add(amount, self._clock.monotonic())

    def take(self, cost: int) -> bool:
        enough = self.level() >= cost
        if enough:
            self.add(-cost)
        return enough

    def level(self) -> int:
        return self._reserve + self._sliding.total(self._clock.monotonic())

    def resting(self) -> bool:
        return self._sliding.empty(self._clock.monotonic())


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
        level = self.level()
        self._refilled(level)
        self._level = max(0, min(self._capacity, level + amount))

    def _refilled(self, level: int) -> None:
        if self._rate:
            # The part of a token's millionth that is short stays due, so that asking often loses nothing.
            full = level == self._capacity
            self._at = self._clock.monotonic() if full else self._at + (level - self._level) / self._rate

    def take(self, cost: int) -> bool:
        level = self.level()
        if level < cost:
            return False
        self._refilled(level)
        self._level = level - cost
        return True

    def put_right(self, level: int) -> None:
        """Believe somebody who knows better."""
        self._level, self._at = level, self._clock.monotonic()

    def level(self) -> int:
        if not self._rate:
            return self._level
        return min(self._capacity, self._level + int((self._clock.monotonic() - self._at) * self._rate))

    def resting(self) -> bool:
        return self.level() >= self._capacity
