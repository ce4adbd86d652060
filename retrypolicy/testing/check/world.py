"""The model world: callers, network, server and ledger in virtual time, around the real engine and its calls."""

from __future__ import annotations

import heapq
import math

from retrypolicy.events import Decided, Event
from retrypolicy.guard.ledger import Record
from retrypolicy.testing.check.client import Client
from retrypolicy.testing.check.engine import Space
from retrypolicy.testing.check.faults import FINE, Fault
from retrypolicy.testing.check.scenario import Scenario, Trouble
from retrypolicy.testing.check.server import Server
from retrypolicy.testing.check.trace import Attempt, Moment, Note, Run

MANY = 100
"""Attempts after which a call with no time limit counts as one that never ends."""
MOST = 1000
"""Attempts that are played."""
DAY = 86400.0


class World:
    """One play. Afterwards its attributes tell what happened."""

    def __init__(self, space: Space, scenario: Scenario) -> None:
        self.space = space
        self.policy = space.policy
        self.scenario = scenario
        self.url = space.url
        self.clock = space.clock
        self.engine = engine = space.engine(scenario.mode)
        self.server = space.reconciler.server = Server(space.provider)
        engine.random = lambda: scenario.dice
        engine.listeners = (self,)
        self.runs: list[Run] = []
        self.moments: list[Moment] = []
        self.untimed = self.policy.total_timeout is None and self.policy.lifetime is None
        self.ended = 0.0
        self.steps = 0
        self.attempts = 0
        self.cut_off = False  # it went on after the most attempts that are played
        self.bad_wait: float | None = None  # a wait that is none
        self._current: Client | None = None
        self._operations = 0
        self._trouble = dict(scenario.trouble)
        self._jumps = sorted(scenario.jumps, key=lambda jump: jump.at, reverse=True)

    def play(self) -> World:
        """To the end."""
        callers, engine = self.scenario.callers, self.engine
        clients = [Client(self, i, caller.dies) for i, caller in enumerate(callers)]
        agenda: list[tuple[float, int, Client]] = [(c.starts, i, clients[i]) for i, c in enumerate(callers)]
        heapq.heapify(agenda)
        order = len(callers)
        while agenda and not self.cut_off:
            at, _, client = heapq.heappop(agenda)
            self._pass_to(at)
            self._current, engine.chores = client, client.chores
            self.steps += 1
            seconds = client.step()
            if seconds is None:
                continue
            if not 0 <= seconds < math.inf:
                self.bad_wait = seconds
                continue
            order += 1
            heapq.heappush(agenda, (at + seconds, order, client))
        self.ended = self.clock.elapsed
        for client in clients:
            client.die()
        return self

    def left_behind(self) -> tuple[Record | None, float]:
        """What the ledger keeps of the call, and its clock, a day after everything has ended, by whatever clock."""
        call = next((run.call for run in self.runs if run.call is not None and run.call.guarded), None)
        if call is None or self.engine.ledger is None:
            return None, 0.0
        self.clock.elapsed = self.ended + DAY + sum(abs(jump.seconds) for jump in self.scenario.jumps)
        return self.engine.ledger.read(call.digest)

    def _pass_to(self, at: float) -> None:
        while self._jumps and self._jumps[-1].at <= at:
            jump = self._jumps.pop()
            self.clock.elapsed = max(self.clock.elapsed, jump.at)
            self.clock.shift += jump.seconds
            self.note(f"the client's clock jumps by {jump.seconds:+g} s")
        self.clock.elapsed = at

    # -- what the callers meet ---------------------------------------------------------------------------------------

    def next_fault(self) -> Fault:
        """What becomes of the next attempt."""
        faults, number = self.scenario.faults, self.attempts
        self.attempts += 1
        calls = len(self.scenario.callers) if self.scenario.mode == "plain" else 1
        self.cut_off = self.attempts > calls * (MANY if self.untimed else MOST)
        if number < len(faults):
            return faults[number]
        return faults[-1] if self.scenario.lasting else FINE

    def take_back(self, attempt: Attempt) -> None:
        """It was none."""
        self.moments.remove(attempt)
        self.attempts -= 1

    def trouble(self) -> Trouble | None:
        """What happens to the next operation of the ledger."""
        self._operations += 1
        return self._trouble.get(self._operations - 1)

    def receive(self, attempt: Attempt, fault: Fault, key: str | None) -> Fault:
        """The request reaches the server."""
        server, now = self.server, self.clock.monotonic()
        call, before = attempt.run.identity, len(server.effects)
        really = server.receive(fault, call=call, attempt=attempt, key=key, now=now)
        if len(server.effects) > before:
            times = sum(effect.call == call for effect in server.effects)
            when = f" {fault.late:g} s later" if fault.late else ""
            again = "" if times == 1 else f", for the {_nth(times)} time"
            attempt.received = f"{fault.sent}, and acted on it{when}{again}"
        elif really is not fault and fault.applies:
            attempt.received = "all of it, knew the key, and did nothing more"
        else:
            attempt.received = f"{fault.sent}, and did nothing"
        return really

    def wait(self, run: Run, seconds: float) -> None:
        """A caller sleeps."""
        if run.attempts:
            run.attempts[-1].waited = seconds

    def note(self, text: str) -> None:
        """For the story."""
        self.moments.append(Note(self.clock.monotonic(), text))

    def on_event(self, event: Event) -> None:
        """The engine tells what it decided."""
        run = None if self._current is None else self._current.run
        if isinstance(event, Decided) and run is not None and run.attempts:
            attempt = run.attempts[-1]
            attempt.number, attempt.action, attempt.reason = event.number, event.action, event.reason


def _nth(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number if number < 20 else number % 10, 'th') }"
