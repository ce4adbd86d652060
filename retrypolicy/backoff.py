"""How long to wait before the next attempt, before the server's own hint is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from attrs import field, frozen

from retrypolicy._validate import Seconds as Seconds
from retrypolicy._validate import choice, number, strict
from retrypolicy.errors import PolicyError

Jitter = Literal["none", "full", "equal", "proportional"]
"""How a delay is spread, so that clients that failed together don't come back together.

"none": not at all. "full": from 0 to the delay. "equal": from half of it to all of it (both: AWS Architecture Blog,
"Exponential Backoff And Jitter"). "proportional": 20 % to either side (gRPC A6), the only one that can exceed the cap.
It is applied after the cap: the other way round every delay at the cap would be the same.
"""


class Backoff(Protocol):
    """A rule for the waits between attempts. Yours may be any value with this method."""

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        """Seconds to wait before a retry; finite, at least 0, and the same for the same arguments.

        `retry` is 1 for the first one; `previous` is the wait before this one (longer than what this method returned
        where the server asked for more), None for the first; `random` is a number from 0 up to, not including, 1.
        """
        ...


def _not_below_base(instance: Any, attribute: Any, value: Any) -> None:
    if value < instance.base:
        allowed = f"a number >= base ({instance.base:g})"
        raise PolicyError.of(f"{type(instance).__name__}.{attribute.name}", value, allowed)


_jitter: Callable[[Any, Any, Jitter], None] = choice("none", "full", "equal", "proportional")


@strict
@frozen(kw_only=True)
class Constant:
    """The same wait every time: `seconds`."""

    seconds: Seconds = field(default=1.0, validator=number(0))
    jitter: Jitter = field(default="none", validator=_jitter)

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        return _spread(self.seconds, self.jitter, random)

    def bounds(self, retry: int) -> tuple[float, float]:
        """The shortest and the longest that `delay` can be, in seconds."""
        return _range(self.seconds, self.jitter)


@strict
@frozen(kw_only=True)
class Linear:
    """Waits that grow by `step` seconds: base, base + step, base + 2 step, ... up to `cap`."""

    base: Seconds = field(default=0.5, validator=number(0))
    step: Seconds = field(default=0.5, validator=number(0))
    cap: Seconds = field(default=10.0, validator=[number(0), _not_below_base])
    jitter: Jitter = field(default="full", validator=_jitter)

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        return _spread(self._full(retry), self.jitter, random)

    def bounds(self, retry: int) -> tuple[float, float]:
        """The shortest and the longest that `delay` can be, in seconds."""
        return _range(self._full(retry), self.jitter)

    def _full(self, retry: int) -> float:
        return min(self.cap, self.base + self.step * (retry - 1))


@strict
@frozen(kw_only=True)
class Exponential:
    """Waits that grow by a factor: base, base * factor, base * factor**2, ... up to `cap` seconds.

    AWS 2.1 is `Exponential(base=0.05, cap=20.0)`; gRPC A6 is one with `jitter="proportional"`.
    """

    base: Seconds = field(default=0.5, validator=number(0))
    factor: float = field(default=2.0, validator=number(0, above=True))
    cap: Seconds = field(default=10.0, validator=[number(0), _not_below_base])
    jitter: Jitter = field(default="full", validator=_jitter)

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        return _spread(self._full(retry), self.jitter, random)

    def bounds(self, retry: int) -> tuple[float, float]:
        """The shortest and the longest that `delay` can be, in seconds."""
        return _range(self._full(retry), self.jitter)

    def _full(self, retry: int) -> float:
        try:
            return min(self.cap, self.base * float(self.factor) ** (retry - 1))
        except OverflowError:
            return self.cap if self.base else 0.0


@strict
@frozen(kw_only=True)
class Decorrelated:
    """Waits drawn from `base` to three times the wait before, the first time from `base` to three times `base`.

    From the AWS Architecture Blog, "Exponential Backoff And Jitter", with one change: there the draw is cut to the cap,
    so that most waits become the cap itself; here the range is cut to it, and the draw stays spread out.
    Its mean grows by 1.5 from one wait to the next.
    """

    base: Seconds = field(default=0.5, validator=number(0))
    cap: Seconds = field(default=10.0, validator=[number(0), _not_below_base])

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        before = self.base if previous is None else max(self.base, previous)
        return self.base + (min(self.cap, 3 * before) - self.base) * random

    def bounds(self, retry: int) -> tuple[float, float]:
        """The shortest and the longest that `delay` can be, in seconds."""
        return self.base, Exponential(base=self.base, factor=3, cap=self.cap, jitter="none").delay(retry + 1, None, 0.0)


@strict
@frozen(kw_only=True)
class Urllib3Backoff:
    """urllib3's waits: none before the first retry, then `factor` * 2 ** (retry - 1) plus up to `jitter`, within `cap`.

    From urllib3.util.Retry.get_backoff_time; the jitter is added before the cap, so capped waits are all alike.
    """

    factor: float = field(default=0.0, validator=number(0))
    cap: Seconds = field(default=120.0, validator=number(0))
    jitter: Seconds = field(default=0.0, validator=number(0))

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        if retry <= 1:
            return 0.0
        # 2 ** 1000 is far beyond any cap; more would overflow.
        return min(self.cap, self.factor * 2.0 ** min(retry - 1, 1000) + random * self.jitter)

    def bounds(self, retry: int) -> tuple[float, float]:
        """The shortest and the longest that `delay` can be, in seconds."""
        return self.delay(retry, None, 0.0), self.delay(retry, None, 1.0)


BACKOFFS = {
    "constant": "retrypolicy.backoff:Constant",
    "decorrelated": "retrypolicy.backoff:Decorrelated",
    "exponential": "retrypolicy.backoff:Exponential",
    "linear": "retrypolicy.backoff:Linear",
    "urllib3": "retrypolicy.backoff:Urllib3Backoff",
}
"""What policy files call them. Others are found through the entry points `retrypolicy.backoffs`."""


def _spread(seconds: float, jitter: Jitter, random: float) -> float:
    if jitter == "full":
        return seconds * random
    if jitter == "equal":
        return seconds * (0.5 + 0.5 * random)
    if jitter == "proportional":
        return seconds * (0.8 + 0.4 * random)
    return seconds


def _range(seconds: float, jitter: Jitter) -> tuple[float, float]:
    return _spread(seconds, jitter, 0.0), _spread(seconds, jitter, 1.0)
