"""Budgets that many processes spend together, in Redis or Valkey, each with one of its own to fall back to."""

from __future__ import annotations

from typing import Any, Protocol

from retrypolicy._tokens import Bucket
from retrypolicy.clock import Clock


class SharedState(Protocol):
    """Where processes keep their buckets together. All amounts are whole numbers."""

    def move(self, key: str, *, put: int, take: int, capacity: int, rate: float) -> int:
        """In one step: refill the bucket at `rate` per second, put in `put`, take out `take` if there is that much.

        A bucket that is not known is full. `put` may be below 0; the level stays from 0 to `capacity`. Returns the
        level before the taking, so it was taken if that is at least `take`. Raises what it likes where it can't.
        """
        ...


class RedisClient(Protocol):
    """What is used of a client of redis-py or valkey-py. Give it a short `socket_timeout`: callers wait for it."""

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any: ...


class RedisState:
    """Buckets in Redis (5 or later) or Valkey, timed by the server's clock.

    A bucket that nobody touched for as long as it takes to fill, or for a day where it never does by itself, is
    forgotten, and so full. Losing all of them does no harm beyond that. Keys begin with `prefix`.
    """

    def __init__(self, client: RedisClient, *, prefix: str = "retrypolicy:budget:") -> None:
        self._client = client
        self._prefix = prefix

    def move(self, key: str, *, put: int, take: int, capacity: int, rate: float) -> int:
        return int(self._client.eval(_MOVE, 1, self._prefix + key, put, take, capacity, repr(float(rate))))


_MOVE = """
local put, take, capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local stored = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = math.min(tonumber(stored[1]) or capacity, capacity)
local at = math.min(tonumber(stored[2]) or now, now)
local lifetime = 86400
if rate > 0 then
  local gained = math.floor((now - at) * rate / 1000000)
  if level + gained >= capacity then
    level, at = capacity, now
  else
    level, at = level + gained, at + math.ceil(gained * 1000000 / rate)
  end
  lifetime = math.ceil(capacity / rate) + 1
end
level = math.max(0, math.min(capacity, level + put))
local before = level
if before >= take then level = before - take end
redis.call('HSET', KEYS[1], 'level', string.format('%.0f', level), 'at', string.format('%.0f', at))
redis.call('EXPIRE', KEYS[1], string.format('%.0f', math.min(lifetime, 31536000)))
return string.format('%.0f', before)
"""


class SharedBucket:
    """A bucket of the fleet, as one process sees it. Not thread-safe.

    What successes put in is sent along with the next question, or once a second: a success seldom waits for the
    network. While the shared state can't be reached the process goes on with a bucket of its own, and asks again
    after `RETRY_AFTER` seconds.
    """

    SYNC_EVERY = 1.0
    RETRY_AFTER = 5.0

    def __init__(self, shared: SharedState, key: str, capacity: int, rate: float, clock: Clock) -> None:
        self._shared = shared
        self._key = key
        self._capacity = capacity
        self._rate = rate
        self._clock = clock
        self._local = Bucket(capacity, rate, clock)
        self._pending = 0
        self._due = clock.monotonic()  # when to ask again, whether or not there is a question
        self.alone = False  # the shared state could not be reached when it was last asked

    @property
    def full(self) -> bool:
        return not self._pending and self._local.full and self._clock.monotonic() < self._due

    def add(self, amount: int) -> None:
        self._local.add(amount)
        if not self.alone:  # what happens alone is not told to the others: neither side of the account
            self._pending += amount
        if self._clock.monotonic() >= self._due:
            self._move(0)

    def take(self, cost: int) -> bool:
        level = self._move(cost)
        return self._local.take(cost) if level is None else level >= cost

    def level(self) -> int:
        level = self._move(0)
        return self._local.level() if level is None else level

    def resting(self) -> bool:
        return not self._pending and self._local.resting()

    def _move(self, take: int) -> int | None:
        """The shared level before the taking; None if it can't be asked."""
        now = self._clock.monotonic()
        if self.alone and now < self._due:
            return None
        put, self._pending = self._pending, 0
        try:
            level = self._shared.move(self._key, put=put, take=take, capacity=self._capacity, rate=self._rate)
        except Exception as error:  # whatever a client raises: a budget must not fail a call
            if not self.alone:
                _warn(error)
            self.alone, self._due = True, now + self.RETRY_AFTER
            return None
        self.alone, self._due = False, now + self.SYNC_EVERY
        self._local.put_right(level - take if level >= take else level)
        return level


def _warn(error: Exception) -> None:
    import logging

    logging.getLogger("retrypolicy").warning(
        "The shared retry budgets can't be reached (%s): this process goes on with its own.", type(error).__name__
    )
