"""A play as a story that a person can read."""

from __future__ import annotations

from collections.abc import Iterator

from retrypolicy.outcome import Reason
from retrypolicy.testing.check.trace import Attempt, Note
from retrypolicy.testing.check.world import World

LONGEST = 6
"""Attempts that are told one by one; of more than these the middle is left out."""

_REASONS = {
    Reason.SUCCESS: "it is done",
    Reason.ACCEPTED_RISK: "duplicates are accepted",
    Reason.NOT_SENT: "nothing was sent",
    Reason.NOT_APPLIED: "the server did not act on it",
    Reason.IDEMPOTENT: "a repeat has no second effect",
    Reason.KEYED: "the provider knows the key",
    Reason.UNSAFE: "it may have taken effect",
    Reason.ATTEMPTS_EXHAUSTED: "max_attempts is reached",
    Reason.NOT_RETRYABLE: "the policy does not retry this",
    Reason.WAIT_TOO_LONG: "the wait is above max_wait",
    Reason.RUN_OVER: "total_timeout would be over",
    Reason.LIFETIME_OVER: "the lifetime would be over",
    Reason.BUDGET_EXHAUSTED: "the budget is spent",
    Reason.PUSHBACK_TOO_LONG: "the server's wait is above max_wait",
    Reason.SERVER_SAID_NO: "the server said not to",
    Reason.METHOD_NOT_ALLOWED: "the method is not in allowed_methods",
    Reason.PERMANENT: "it would fail the same way",
}
_MODES = {
    "plain": "no key, no ledger",
    "keyed": "a key that the provider honours, no ledger",
    "guarded": "a key and a ledger",
}


def tell(world: World) -> tuple[str, ...]:
    """The lines of the story, in the order of time."""
    return tuple(_lines(world))


def _lines(world: World) -> Iterator[str]:
    scenario, several = world.scenario, len(world.scenario.callers) > 1
    yield f"{scenario.method}, {_MODES[scenario.mode]}"
    attempts = [moment for moment in world.moments if isinstance(moment, Attempt)]
    left_out = set(attempts[LONGEST // 2 : -LONGEST // 2]) if len(attempts) > LONGEST else set()
    told = False
    for moment in world.moments:
        if isinstance(moment, Note):
            yield f"{moment.at:10.2f} s  {moment.text}"
        elif moment in left_out:
            if not told:
                told = True
                yield f"{'':12}... {len(left_out)} more attempts ..."
        else:
            yield from _attempt(moment, several)


def _attempt(attempt: Attempt, several: bool) -> Iterator[str]:
    who = f"caller {attempt.run.caller + 1}, " if several else ""
    yield f"{attempt.at:10.2f} s  {who}attempt {attempt.number}"
    told = {"sent": attempt.sent, "received": attempt.received, "answered": attempt.answered or "not yet"}
    if attempt.action:
        told["decided"] = attempt.action
        if attempt.reason is not None:
            told["decided"] += f": {_REASONS.get(attempt.reason, attempt.reason.value.replace('_', ' '))}"
    if attempt.put_off is not None:
        told["waited"] = f"not here: put off for {attempt.put_off:g} s"
    elif attempt.waited is not None or attempt.action == "retry":
        told["waited"] = f"{attempt.waited or 0.0:g} s"
    for name, words in told.items():
        yield f"{'':14}{name:9} {words}"
