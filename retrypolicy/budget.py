"""What a process may spend on retries, when it stops calling a host at all, and the state of both.

`RetryBudget` and `CircuitBreaker` are values. What they have counted is kept once per process for each value and host,
so that all adapters, sessions and threads share it; a fork starts anew in the child. An engine asks for the state at
each call (`budget.state(host, clock)`) rather than keep it, and makes these calls on it:

    on_call()            once per call, before its first attempt
    on_failure(kind)     after every attempt that failed in a way that the policy retries, or with a "do not retry"
                         from the server; also after the last one
    permit(kind)         when all else says "retry": takes the cost of one, or refuses
    on_success(last)     after the attempt that succeeded; `last`: the kind of the call's last permitted retry, or None

    before()             before every attempt: None, or the seconds until it makes sense to ask again
    record(healthy, started)    after every attempt that `before` let through
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, TypeVar

from attrs import field, frozen

from retrypolicy._tokens import Bucket, Sliding, Window
from retrypolicy._validate import Checked, Seconds, choice, flag, integer, number, optional_number, strict
from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import PolicyError
from retrypolicy.shared import SharedBucket, SharedState

Kind = Literal["transient", "timeout", "throttled"]
"""Why an attempt failed, as far as budgets tell apart: throttled wins over timeout, timeout over transient."""


def _not_empty(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise PolicyError.of(f"{type(instance).__name__}.name", value, "a str that is not empty, or None")


_name = Checked(_not_empty, {"minLength": 1})


def _fits(instance: Any, attribute: Any, value: Any) -> None:
    if (value is None) == (instance.capacity is None):
        allowed = "None unless capacity is None" if value is not None else "a number of seconds if capacity is None"
        raise PolicyError.of("RetryBudget.window", value, allowed)
    if instance.charge == "failure" and value is not None:
        raise PolicyError.of("RetryBudget.charge", instance.charge, "retry where there is a window")


@strict
@frozen(kw_only=True, cache_hash=True)  # it is looked up at every call
class RetryBudget:
    """A bucket of tokens that retries are paid from. It starts full; the first attempt of a call is always free.

    The default lets one retry happen for every five successes, and one a second besides, with 100 in hand: in the long
    run a server sees at most 1.2 times the calls. Other systems' budgets: `grpc`, `finagle`, `aws`.

    deposit: tokens put in at every success, or at every call (`deposit_on`).
    cost, timeout_cost, throttled_cost: tokens for a retry after that kind of failure (None: as `cost`).
    charge: "retry": a retry that is permitted pays. "failure": every failure pays, and retries are permitted while more
        than half of the capacity is left (gRPC A6).
    refund: a success after retries puts back what the last of them cost, instead of `deposit` (AWS).
    per_second: retries per second that come for free.
    capacity: the most tokens that the bucket holds.
    window: instead of a capacity, seconds after which deposits and payments are forgotten; the free retries of that
        time are then in hand at once (Finagle). In steps of a tenth.
    name: tells apart budgets that are otherwise equal. Equal budgets share their state, host by host.

    All amounts are kept in millionths of a token. Raises `PolicyError`.
    """

    deposit: float = field(default=0.2, validator=number(0))
    deposit_on: Literal["success", "call"] = field(default="success", validator=choice("success", "call"))
    cost: float = field(default=1.0, validator=number(0, above=True))
    timeout_cost: float | None = field(default=None, validator=optional_number(0, above=True))
    throttled_cost: float | None = field(default=None, validator=optional_number(0, above=True))
    charge: Literal["retry", "failure"] = field(default="retry", validator=choice("retry", "failure"))
    refund: bool = field(default=False, validator=flag)
    per_second: float = field(default=1.0, validator=number(0))
    capacity: float | None = field(default=100.0, validator=optional_number(0, above=True))
    window: Seconds | None = field(default=None, validator=[optional_number(0, above=True), _fits])
    name: str | None = field(default=None, validator=_name)

    @classmethod
    def grpc(cls, *, max_tokens: float = 10.0, token_ratio: float = 0.1, name: str | None = None) -> RetryBudget:
        """The throttle of gRFC A6: a failure costs 1, a success gives `token_ratio`, retries need more than half.

        gRPC allows `max_tokens` up to 1000 and three decimals in `token_ratio`, and has no defaults; these are those of
        its example.
        """
        return cls(deposit=token_ratio, charge="failure", capacity=max_tokens, per_second=0.0, name=name)

    @classmethod
    def finagle(
        cls, *, ratio: float = 0.2, per_second: float = 10, ttl: float = 10.0, name: str | None = None
    ) -> RetryBudget:
        """The RetryBudget of Finagle (percentCanRetry, minRetriesPerSec, ttl), and with these defaults of Linkerd.

        Finagle rounds the cost to thousandths of a deposit, and so does this: `ratio=0.3` gives 1000/3333.
        """
        cost = int(1000 / ratio) / 1000 if ratio else 1.0
        return cls(
            deposit=1.0 if ratio else 0.0,
            deposit_on="call",
            cost=cost,
            per_second=per_second,
            capacity=None,
            window=ttl,
            name=name,
        )

    @classmethod
    def aws(cls, *, version: Literal["2.0", "2.1"] = "2.1", name: str | None = None) -> RetryBudget:
        """The retry quota of the AWS SDKs' standard mode; 2.1 is their default from November 2026."""
        if version not in ("2.0", "2.1"):
            raise PolicyError.of("RetryBudget.aws.version", version, '"2.0" or "2.1"')
        costs = (5.0, 10.0, 5.0) if version == "2.0" else (14.0, 14.0, 5.0)
        cost, timeout, throttled = costs
        return cls(
            deposit=1.0,
            cost=cost,
            timeout_cost=timeout,
            throttled_cost=throttled,
            refund=True,
            per_second=0.0,
            capacity=500.0,
            name=name,
        )

    def state(self, host: str, clock: Clock, shared: SharedState | None = None) -> BudgetState:
        """What this process, or with `shared` the fleet, has spent on this host so far. Any text may stand for a host.

        Only a budget with a capacity can be shared (else `PolicyError`). In the fleet it goes by its `name`, so that
        its numbers may change in a rolling update; without one by all of its values.
        """
        if shared is None:
            return _budgets.get(self, host, clock, lambda: BudgetState(self, host, clock))
        if self.capacity is None:
            raise PolicyError.of("RetryBudget.capacity", None, "a number, for a budget that is shared")
        return _budgets.get((self, shared), host, clock, lambda: BudgetState(self, host, clock, shared))


@strict
@frozen(kw_only=True, cache_hash=True)
class CircuitBreaker:
    """Stops calls to a host that mostly fails, and lets a few through later to see whether it is back.

    It opens when at least `minimum` attempts ended within `window` seconds and at least `failure_ratio` of them were
    unhealthy. After `open_for` seconds it lets `half_open` probes through at once: if all are healthy it closes, and
    the first that is not opens it again. A probe that is silent for `open_for` seconds gives its place to another.

    Only what speaks of the server's health counts: a 5xx or a timeout against it, an answer such as 200 or 404 for it,
    and a refusal of ours or a name that can't be resolved not at all. `name` as in `RetryBudget`. Raises `PolicyError`.
    """

    failure_ratio: float = field(default=0.5, validator=number(0, 1, above=True))
    window: Seconds = field(default=30.0, validator=number(0, above=True))
    minimum: int = field(default=20, validator=integer(1))
    open_for: Seconds = field(default=10.0, validator=number(0, above=True))
    half_open: int = field(default=1, validator=integer(1))
    name: str | None = field(default=None, validator=_name)

    def state(self, host: str, clock: Clock) -> BreakerState:
        """What this process has seen of this host so far. Any text may stand for the host."""
        return _breakers.get(self, host, clock, lambda: BreakerState(self, clock))


_SCALE = 1_000_000  # tokens are counted in whole millionths: ten times 0.1 must be 1


def _scaled(tokens: float) -> int:
    return round(tokens * _SCALE)


def _digest(budget: RetryBudget) -> str:
    import hashlib

    return hashlib.sha256(repr(budget).encode()).hexdigest()[:16]


class BudgetState:
    """What one process has spent of a `RetryBudget` on one host. Thread-safe. The module says when to call what."""

    def __init__(self, budget: RetryBudget, host: str, clock: Clock, shared: SharedState | None = None) -> None:
        self.budget = budget
        self._host = host
        self._shared = shared
        self._clock = clock
        deposit = _scaled(budget.deposit)
        self._per_call = deposit if budget.deposit_on == "call" else 0
        self._per_success = deposit if budget.deposit_on == "success" else 0
        self._costs: dict[Kind, int] = {
            "transient": _scaled(budget.cost),
            "timeout": _scaled(budget.cost if budget.timeout_cost is None else budget.timeout_cost),
            "throttled": _scaled(budget.cost if budget.throttled_cost is None else budget.throttled_cost),
        }
        self._failures_pay = budget.charge == "failure"
        self.reset()

    def reset(self) -> None:
        """Start anew, as in a child process."""
        budget, cost = self.budget, self._costs["transient"]
        self._lock = threading.Lock()
        self._account: Window | Bucket | SharedBucket
        if budget.capacity is not None:
            capacity, rate = _scaled(budget.capacity), budget.per_second * cost
            if self._shared is None:
                self._account = Bucket(capacity, rate, self._clock)
            else:
                key = f"{budget.name or _digest(budget)}:{self._host}"
                self._account = SharedBucket(self._shared, key, capacity, rate, self._clock)
        elif budget.window is not None:
            self._account = Window(round(budget.per_second * budget.window * cost), budget.window, self._clock)
        self._half = 0 if budget.capacity is None else _scaled(budget.capacity) // 2

    def on_call(self) -> None:
        """A call begins."""
        if self._per_call and not self._account.full:
            with self._lock:
                self._account.add(self._per_call)

    def on_success(self, last: Kind | None = None) -> None:
        """An attempt succeeded; `last` is the kind of the last retry that was permitted to its call."""
        amount = self._costs[last] if last is not None and self.budget.refund else self._per_success
        if amount and not self._account.full:
            with self._lock:
                self._account.add(amount)

    def on_failure(self, kind: Kind = "transient") -> None:
        """An attempt failed in a way that is worth a retry, whether or not there will be one."""
        if self._failures_pay:
            with self._lock:
                self._account.add(-self._costs[kind])

    def permit(self, kind: Kind = "transient") -> bool:
        """May there be a retry? If so it is paid for; if not nothing is taken."""
        with self._lock:
            if self._failures_pay:
                return self._account.level() > self._half
            return self._account.take(self._costs[kind])

    @property
    def alone(self) -> bool:
        """This budget is shared, and the others could not be reached when it was last tried."""
        return isinstance(self._account, SharedBucket) and self._account.alone

    @property
    def balance(self) -> float:
        """Tokens in hand; below 0 if deposits were forgotten before what was paid from them."""
        with self._lock:
            return self._account.level() / _SCALE

    def resting(self) -> bool:
        """Is this state as good as new?"""
        with self._lock:
            return self._account.resting()


Phase = Literal["closed", "open", "half_open"]


class BreakerState:
    """What one process has seen of one host through a `CircuitBreaker`. Thread-safe."""

    def __init__(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self.breaker = breaker
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start anew, as in a child process."""
        self._lock = threading.Lock()
        self._phase: Phase
        self._probes: list[float]  # when each probe that has not reported began
        self._passed: int  # probes that were healthy
        self._close()

    @property
    def phase(self) -> Phase:
        """Closed: all may pass. Open: none, until the next `before` after `open_for`. Half open: probes."""
        return self._phase

    def before(self) -> float | None:
        """None if an attempt may be made now (it must then be recorded), else the seconds until one might be."""
        if self._phase == "closed":
            return None
        with self._lock:
            now, open_for = self._clock.monotonic(), self.breaker.open_for
            if self._phase == "open":
                wait = self._since + open_for - now
                if wait > 0:
                    return wait
                self._enter("half_open")
            if self._phase == "half_open":
                self._probes = [probe for probe in self._probes if probe + open_for > now]
                if self._passed + len(self._probes) >= self.breaker.half_open:
                    return self._probes[0] + open_for - now
                self._probes.append(now)
            return None

    def record(self, healthy: bool | None, started: float | None = None) -> None:
        """An attempt ended: the server is well, is not, or (None) nobody can tell.

        `started` is when the attempt began (monotonic seconds). With it an attempt that began before the breaker last
        changed is told from a probe, and left out.
        """
        if healthy is None and self._phase == "closed":
            return
        with self._lock:
            if self._phase == "open" or (started is not None and started < self._since):
                return
            if self._phase == "half_open":
                self._record_probe(healthy)
            elif healthy is not None:
                now = self._clock.monotonic()
                calls, failures = self._calls.add(1, now), self._failures.add(0 if healthy else 1, now)
                if calls >= self.breaker.minimum and failures / calls >= self.breaker.failure_ratio:
                    self._enter("open")

    def resting(self) -> bool:
        """Is this state as good as new?"""
        with self._lock:
            return self._phase == "closed" and self._calls.empty(self._clock.monotonic())

    def _record_probe(self, healthy: bool | None) -> None:
        if self._probes:
            del self._probes[0]
        if healthy:
            self._passed += 1
            if self._passed >= self.breaker.half_open:
                self._close()
        elif healthy is not None:
            self._enter("open")

    def _close(self) -> None:
        self._enter("closed")
        self._calls = Sliding(self.breaker.window, self._since)
        self._failures = Sliding(self.breaker.window, self._since)

    def _enter(self, phase: Phase) -> None:
        self._since = self._clock.monotonic()
        self._probes, self._passed = [], 0
        self._phase = phase


State = TypeVar("State", BudgetState, BreakerState)


class _Registry(Generic[State]):
    """The states of one process: by value and host, and apart for each clock that is not the system's."""

    LIMIT = 1024

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[tuple[Hashable, str, Clock | None], State] = {}

    def get(self, value: Hashable, host: str, clock: Clock, make: Callable[[], State]) -> State:
        key = (value, host, None if isinstance(clock, SystemClock) else clock)
        state = self._states.get(key)
        if state is None:
            with self._lock:
                state = self._states.get(key)
                if state is None:
                    if len(self._states) >= self.LIMIT:
                        self._forget()
                    state = self._states[key] = make()
        return state

    def start_anew(self) -> None:
        # In the child of a fork the locks may be held by threads that it does not have.
        self._lock = threading.Lock()
        for state in self._states.values():
            state.reset()

    def _forget(self) -> None:
        """Make room: those as good as new lose nothing; after them the oldest go."""
        busy = [(key, state) for key, state in self._states.items() if not state.resting()]
        self._states = dict(busy[-self.LIMIT // 2 :])


_budgets: _Registry[BudgetState] = _Registry()
_breakers: _Registry[BreakerState] = _Registry()


def _start_anew() -> None:
    _budgets.start_anew()
    _breakers.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
