"""What no play may show. Each law looks at one play, and returns what is wrong in words, or None."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from attrs import frozen

from retrypolicy.budget import RetryBudget
from retrypolicy.guard.ledger import Phase
from retrypolicy.http.methods import IDEMPOTENT, SAFE
from retrypolicy.outcome import Effect
from retrypolicy.testing.check.trace import Attempt, Run
from retrypolicy.testing.check.world import World

_HAIR = 1e-6
"""Seconds that sums of floating-point numbers may be wrong by."""


def duplicate(world: World) -> str | None:
    """The server acts on a call once, unless its method is one of which a repeat has no second effect.

    RFC 9110 9.2.2 says which those are, whatever `idempotent_methods` says.
    """
    if world.scenario.method in IDEMPOTENT:
        return None
    for identity in {run.identity for run in world.runs}:
        times = sum(effect.call == identity for effect in world.server.effects)
        if times > 1:
            return f"the server acted on the call {times} times"
    return None


def false_report(world: World) -> str | None:
    """What a run's report says of the effect is so: not applied, and applied."""
    if world.scenario.method in SAFE:
        return None  # there is no effect to speak of
    for run in world.runs:
        if run.report is None or not run.attempts:
            continue
        own = any(effect.attempt in run.attempts for effect in world.server.effects)
        ever = any(effect.call == run.identity for effect in world.server.effects)
        if run.report.effect is Effect.NOT_APPLIED and own:
            return "the report says that the call was not applied, but the server acted on it"
        if run.report.effect is Effect.APPLIED and not ever:
            return "the report says that the call was applied, but the server never acted on it"
    return None


def endless(world: World) -> str | None:
    """A call makes no more attempts than `max_attempts`, and something else than a huge number ends it.

    Over several runs only where the ledger loses nothing. Somebody else may have ended the call between two of them:
    then a new one began, and is counted from there.
    """
    scenario = world.scenario
    for chain in [[run] for run in world.runs] if scenario.trouble else _chains(world):
        numbers = [attempt.number for run in chain for attempt in run.attempts]
        made = len(numbers)
        if len(scenario.callers) > 1 and 1 in numbers:
            made = numbers[::-1].index(1) + 1
        if made > world.policy.max_attempts:
            return f"the call made {made} attempts, and max_attempts is {world.policy.max_attempts}"
    if world.cut_off and world.untimed:
        return f"after {world.attempts - 1} attempts the call still goes on"
    return None


def deadline(world: World) -> str | None:
    """No run lasts longer than `total_timeout`, no attempt longer than `attempt_timeout`, no call than `lifetime`.

    What a ledger takes for its replies is not counted, and the lifetime only where no clock jumps and the ledger works.
    """
    policy, scenario = world.policy, world.scenario
    for run in world.runs:
        took = 0.0 if run.ended is None else run.ended - run.began - run.ledger_seconds
        if policy.total_timeout is not None and took > policy.total_timeout + _HAIR:
            return f"the run took {took:g} s, and total_timeout is {policy.total_timeout:g} s"
        for attempt in run.attempts:
            took = 0.0 if attempt.ended is None else attempt.ended - attempt.at - run.ledger_seconds
            if policy.attempt_timeout is not None and took > policy.attempt_timeout + _HAIR:
                return f"an attempt took {took:g} s, and attempt_timeout is {policy.attempt_timeout:g} s"
    if policy.lifetime is None or scenario.jumps or scenario.trouble:
        return None
    for chain in _chains(world):
        attempts = [attempt for run in chain for attempt in run.attempts]
        if attempts and attempts[-1].at - attempts[0].at > policy.lifetime + _HAIR:
            after = attempts[-1].at - attempts[0].at
            return f"an attempt began {after:g} s after the first one, and lifetime is {policy.lifetime:g} s"
    return None


def long_wait(world: World) -> str | None:
    """No wait is longer than `max_wait`, and each is a finite number of seconds."""
    if world.bad_wait is not None:
        return f"a wait of {world.bad_wait} s"
    for attempt in _attempts(world):
        if attempt.waited is not None and attempt.waited > world.policy.max_wait + _HAIR:
            return f"it slept {attempt.waited:g} s, and max_wait is {world.policy.max_wait:g} s"
    return None


def pushback(world: World) -> str | None:
    """Whoever the server asked to wait, or not to come again, does so (`pushback="cap"`: for `max_wait`).

    Not where a clock jumps: a later run goes by the clock.
    """
    policy = world.policy
    if world.scenario.jumps:
        return None
    for chain in _chains(world):
        attempts = [attempt for run in chain for attempt in run.attempts]
        for before, after in pairwise(attempts):
            if before.ended is None:
                continue
            if before.forbids and policy.limits is None and after.run is before.run:
                return "the server said not to try again, and there was another attempt"
            wait = before.hint or 0.0
            if policy.pushback == "cap":
                wait = min(wait, policy.max_wait)
            if policy.limits is not None and policy.limits.hint is not None:
                wait = min(wait, policy.limits.hint)
            # Dates are told in whole seconds.
            if after.at - before.ended < wait - 1 - _HAIR:
                waited = after.at - before.ended
                return f"the server asked to be left alone for {wait:g} s, and the next attempt came after {waited:g} s"
    return None


def load(world: World) -> str | None:
    """While everything fails, there are no more retries than the budget can pay for."""
    budget = world.policy.budget
    if budget is None or any(attempt.answered.startswith("2") for attempt in _attempts(world)):
        return None
    calls, attempts = len(world.scenario.callers), len(list(_attempts(world)))
    allowed = _affordable(budget, calls, world.ended)
    if attempts - calls > allowed + _HAIR:
        return f"{calls} calls made {attempts - calls} retries, and the budget pays for {int(allowed)}"
    return None


def _affordable(budget: RetryBudget, calls: int, seconds: float) -> float:
    """Retries that a budget pays for at the most, from full, while nothing succeeds."""
    costs = [c for c in (budget.cost, budget.timeout_cost, budget.throttled_cost) if c is not None]
    deposits = budget.deposit * calls if budget.deposit_on == "call" else 0.0
    free = budget.per_second * budget.cost
    if budget.capacity is not None:
        spent = budget.capacity / 2 if budget.charge == "failure" else budget.capacity
        return (spent + deposits + free * seconds) / min(costs)
    window = budget.window or 0.0
    return (deposits + free * (seconds + window * 1.1)) / min(costs)


def in_flight(world: World) -> str | None:
    """A day after everything has ended, nobody believes the key to be in use."""
    record, now = world.left_behind()
    if record is None or record.phase not in (Phase.ARMED, Phase.CLAIMED) or record.lease < now:
        return None
    left = record.lease - now
    return f"a day later the key still counts as in use, for another {left:g} s, and nobody uses it"


def broken(world: World) -> str | None:
    """The parts that the user brought along (a backoff, a rule) raise nothing."""
    error = next((run.error for run in world.runs if run.error is not None), None)
    return None if error is None else f"{type(error).__name__} was raised in the middle of the call"


@frozen
class Law:
    """A law by its name."""

    title: str  # what a finding says
    check: Callable[[World], str | None]

    def keeps(self, world: World) -> bool:
        """Does this play keep the law?"""
        return self.check(world) is None


LAWS: Mapping[str, Law] = {
    "duplicate": Law("a call can take effect twice", duplicate),
    "pushback": Law("a server that asks for time is not left alone", pushback),
    "endless": Law("a call may go on for ever", endless),
    "deadline": Law("a time limit does not hold", deadline),
    "long-wait": Law("a wait is longer than was said", long_wait),
    "in-flight": Law("a key can stay in flight", in_flight),
    "load": Law("retries cost more than the budget allows", load),
    "false-report": Law("a report can be wrong about the effect", false_report),
    "broken": Law("a part of the policy fails", broken),
}
"""Laws of single plays, the gravest first."""


def _attempts(world: World) -> Iterator[Attempt]:
    for run in world.runs:
        yield from run.attempts


def _chains(world: World) -> Iterator[list[Run]]:
    """Runs that follow each other, since each was deferred to the next."""
    following = {id(run.follows): run for run in world.runs if run.follows is not None}
    for run in world.runs:
        if run.follows is None:
            chain = [run]
            while (after := following.get(id(chain[-1]))) is not None:
                chain.append(after)
            yield chain
