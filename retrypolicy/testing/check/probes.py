"""Scenarios that are always played: the usual failures, and a server that is down while many call it."""

from __future__ import annotations

from collections.abc import Iterator

from retrypolicy.outcome import Defer
from retrypolicy.policy import RetryPolicy
from retrypolicy.testing.check.faults import DROPPED, REFUSED, TIMEOUT, answer
from retrypolicy.testing.check.scenario import Caller, Mode, Scenario
from retrypolicy.testing.check.world import World

NEVER = "never-retries"
"""The law about all plays together: something is retried."""

CALLS = 100
"""Calls at once to a server that is down."""

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


def overloads(policy: RetryPolicy) -> Iterator[Scenario]:
    """The outages that a budget must stand."""
    return outages(CALLS) if policy.budget is not None else iter(())
