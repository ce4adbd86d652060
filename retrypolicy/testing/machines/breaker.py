"""Any circuit breaker against its description: closed until it must open, and never open longer than it says."""

from __future__ import annotations

from typing import ClassVar, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from hypothesis.strategies import SearchStrategy

from retrypolicy.budget import CircuitBreaker
from retrypolicy.clock import VirtualClock
from retrypolicy.testing.machines.coverage import Machine
from retrypolicy.testing.strategies.parts import breakers

_HAIR = 1e-6  # seconds


class Breaking(Protocol):
    """What an engine asks of a breaker."""

    def before(self) -> float | None: ...
    def record(self, healthy: bool | None, started: float | None = None) -> None: ...


class BreakerMachine(Machine):
    """Attempts begin and end, healthy or not or unheard of, several at once, while time passes.

    Closed, it refuses nobody. It opens only with `minimum` attempts and the ratio of failures in its window, and always
    then. Open, it lets nobody through before `open_for` is over, and says truly how long that is. Half open, it lets
    `half_open` probes through at once; when all are healthy it closes, and the first that is not opens it again.
    Override `open` for a breaker of another make, and `breakers` for those to try.
    """

    breakers: ClassVar[SearchStrategy[CircuitBreaker]] = breakers(minimum=st.integers(1, 5))

    def open(self, breaker: CircuitBreaker, clock: VirtualClock) -> Breaking:
        """The breaker at its beginning, for each example."""
        return breaker.state("api.example.com", clock)

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.breaker = data.draw(self.breakers, "breaker")
        self.clock = VirtualClock()
        self.state = self.open(self.breaker, self.clock)
        self.pending: list[float] = []  # when each attempt under way began
        self.phase, self.since, self.passed = "closed", 0.0, 0
        self.probes: list[float] = []  # when each probe that has not ended began
        self.ended: list[tuple[float, bool]] = []  # since it closed: when, and healthy?

    @rule()
    def attempt_begins(self) -> None:
        was, now = self.phase, self.clock.monotonic()
        wait, expected = self.state.before(), self._expected(now)
        if expected is None:
            assert wait is None, f"{was}: refused for {wait} s"
            if self.phase == "half_open":
                self.probes.append(now)
            self.pending.append(now)
        else:
            assert wait is not None, f"{was}: let through {expected:g} s too early"
            assert abs(wait - expected) < _HAIR, f"{was}: says {wait:g} s, and means {expected:g} s"
        self.moved("begins" if wait is None else "refused", was, self.phase)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), healthy=st.sampled_from([False, False, True, None]))
    def attempt_ends(self, data: st.DataObject, healthy: bool | None) -> None:
        started = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1), "which"))
        self._end(healthy, started)

    @precondition(lambda self: self.phase == "closed")
    @rule(failures=st.integers(1, 6))
    def several_fail(self, failures: int) -> None:
        """What takes many draws otherwise."""
        for _ in range(failures):
            self.attempt_begins()
            if self.pending:
                self._end(False, self.pending.pop())

    @precondition(lambda self: self.phase == "half_open")
    @rule(healthy=st.booleans())
    def probe(self, healthy: bool) -> None:
        """What takes many draws otherwise."""
        self.attempt_begins()
        if self.pending:
            self._end(healthy, self.pending.pop())

    @precondition(lambda self: self.phase == "open")
    @rule()
    def rest(self) -> None:
        """It is half open now, with news of before still to come."""
        self.clock.advance(self.breaker.open_for)
        self.attempt_begins()

    @rule(part=st.sampled_from([1.0, 0.05, 0.5, 0.95, 1.05]))
    def time_passes(self, part: float) -> None:
        """As measured by what the breaker waits for."""
        self.clock.advance(part * (self.breaker.window if self.phase == "closed" else self.breaker.open_for))

    def _expected(self, now: float) -> float | None:
        """Seconds to wait; None: go. An open breaker whose time is over becomes half open."""
        if self.phase == "open":
            wait = self.since + self.breaker.open_for - now
            if wait > 0:
                return wait
            self._enter("half_open")
        if self.phase == "half_open":
            self.probes = [began for began in self.probes if began + self.breaker.open_for > now]
            if self.passed + len(self.probes) >= self.breaker.half_open:
                return self.probes[0] + self.breaker.open_for - now
        return None

    def _end(self, healthy: bool | None, started: float) -> None:
        self.state.record(healthy, started)
        was = self.phase
        if started >= self.since:  # else it says nothing of the phase that began after it
            if self.phase == "half_open":
                self._probe_ends(healthy)
            elif self.phase == "closed" and healthy is not None:
                self._attempt_counts(healthy)
        self.moved({True: "healthy", False: "unhealthy", None: "unheard"}[healthy], was, self.phase)

    def _probe_ends(self, healthy: bool | None) -> None:
        if self.probes:
            del self.probes[0]
        if healthy is False:
            self._enter("open")
        elif healthy:
            self.passed += 1
            if self.passed >= self.breaker.half_open:
                self._enter("closed")

    def _attempt_counts(self, healthy: bool) -> None:
        now, window = self.clock.monotonic(), self.breaker.window
        self.ended.append((now, healthy))
        # The window moves in steps of a tenth: what is that near to its end counts, or no longer.
        kept = [each for each in self.ended if now - each[0] <= window + _HAIR]
        doubtful = sum(now - at >= window * 0.9 - _HAIR for at, _ in kept)
        verdicts = {self._opens([healthy for _, healthy in kept[gone:]]) for gone in range(doubtful + 1)}
        opened = self.state.before() is not None
        assert opened in verdicts, f"{'open' if opened else 'closed'} after {[healthy for _, healthy in kept]}"
        if opened:
            self._enter("open")

    def _opens(self, ended: list[bool]) -> bool:
        breaker = self.breaker
        return len(ended) >= breaker.minimum and ended.count(False) / len(ended) >= breaker.failure_ratio

    def _enter(self, phase: str) -> None:
        self.phase, self.since = phase, self.clock.monotonic()
        self.probes, self.ended, self.passed = [], [], 0
