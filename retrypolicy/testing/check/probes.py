"""Scenarios that are always played: the usual failures, and a server that is down while many call it."""

from __future__ import annotations

from collections.abc import Iterator

from retrypolicy.outcome import Defer
from retrypolicy.testing.check.engine import Space
from retrypolicy.testing.check.faults import DROPPED, FINE, REFUSED, TIMEOUT, UNREACHABLE, answer, catalogue
from retrypolicy.testing.check.scenario import Caller, Mode, Scenario
from retrypolicy.testing.check.world import DAY, World

NEVER = "never-retries"
"""The law about all plays together: something is retried."""

CALLS = 100
"""Calls at once to a server that is down."""

STEPS = 12
"""Steps of a send that goes well, or more."""

LATER = (10.0, 4000.0, 2 * DAY)
"""When a queue delivers a message again: while its key is in use, after its lease, after the provider forgot it."""

_USUAL = (REFUSED, answer(503, hint=1.0), answer(429), answer(500), DROPPED)


def usual() -> Iterator[Scenario]:
    """One failure, then all is well."""
    ways: tuple[tuple[str, Mode], ...] = (("GET", "plain"), ("POST", "plain"), ("POST", "guarded"))
    for method, mode in ways:
        for fault in _USUAL:
            yield Scenario(method=method, mode=mode, faults=(fault,))


def retried(world: World) -> bool:
    """Was it tried again, or put off to be tried again?"""
    return world.attempts > 1 or any(isinstance(run.decision, Defer) for run in world.runs)


def outages(calls: int = 10) -> Iterator[Scenario]:
    """So many calls at once, and everything fails."""
    for fault in (REFUSED, answer(429), TIMEOUT):
        yield Scenario(method="GET", faults=(fault,), lasting=True, callers=(Caller(),) * calls, dice=0.5)


def always(space: Space) -> Iterator[Scenario]:
    """What is tried in any case: each fault once, for good, and before an outage; a crash at each step; many calls."""
    faults, ways = catalogue(space.policy, space.provider), space.ways
    for lasting in (False, True):
        for method, mode in ways:
            for fault in faults:
                yield Scenario(method=method, mode=mode, faults=(fault,), lasting=lasting)
    for method, mode in ways:
        if mode == "guarded":  # a queue goes on with it
            for fault in faults:
                yield Scenario(method=method, mode=mode, faults=(fault, UNREACHABLE), lasting=True)
    for later in LATER:
        for step in range(STEPS):
            callers = (Caller(dies=step), Caller(starts=later))
            yield Scenario(method="POST", mode="guarded", faults=(FINE,), callers=callers)
    if space.policy.budget is not None:
        yield from outages(CALLS)
