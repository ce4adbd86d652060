"""decide(): the one place where a retry is decided. Pure: no clock, no random source, no environment.

The order of its checks: success, not retryable, unsafe, attempts used up, pushback, delay, deadline, budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attrs import field, frozen

from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.http.pushback import SHOULD_RETRY, do_not_retry, read_pushback
from retrypolicy.outcome import (
    NOTHING_SENT,
    Answered,
    Decision,
    Defer,
    Effect,
    Failed,
    Outcome,
    Reason,
    Retry,
    Stop,
    interrupts,
    is_interrupt,
    retry_after,
    surely_unsent,
)
from retrypolicy.policy import Limits, RetryPolicy
from retrypolicy.rules import Meaning, meaning, standard

__all__ = ["Decision", "Defer", "History", "Retry", "Stop", "decide", "judge", "raises", "understand"]


@frozen(kw_only=True)
class History:
    """What is known of a call when one of its attempts has ended. Times are wall-clock seconds since the epoch.

    attempts: made so far over the whole call, the one that just ended included.
    elapsed: seconds since this run began.
    first_seen: when the call began. None: now.
    previous: the last wait, for backoffs that build on it.
    tainted: an earlier attempt's effect is unknown.
    replayable: the body can be sent again (or none of it was read).
    key_until: until when the provider honours the call's key on a repeat. None: it does not.
    accepts_duplicates: the policy was told to re-send where the outcome is unknown.
    not_after: when the call loses its purpose.
    streak: how many attempts before this one, in a row, ended in an error with a retry limit of its own.
    spent: retries so far by kind of failure, for `limits`.
    """

    method: str = "GET"
    attempts: int = 1
    elapsed: float = 0.0
    first_seen: float | None = None
    previous: float | None = None
    tainted: bool = False
    replayable: bool = True
    key_until: float | None = None
    accepts_duplicates: bool = False
    not_after: float | None = None
    streak: int = 0
    spent: Mapping[str, int] = field(factory=dict)


class Known(Protocol):
    """What a decision is taken from: a `History`, or a running call, which has the same."""

    @property
    def method(self) -> str: ...
    @property
    def attempts(self) -> int: ...
    @property
    def elapsed(self) -> float: ...
    @property
    def first_seen(self) -> float | None: ...
    @property
    def previous(self) -> float | None: ...
    @property
    def tainted(self) -> bool: ...
    @property
    def replayable(self) -> bool: ...
    @property
    def key_until(self) -> float | None: ...
    @property
    def accepts_duplicates(self) -> bool: ...
    @property
    def not_after(self) -> float | None: ...
    @property
    def streak(self) -> int: ...
    @property
    def spent(self) -> Mapping[str, int]: ...


_SUCCESS = Stop(reason=Reason.SUCCESS)

# For what every attempt asks: on Python 3.11 the members of an enumeration are properties, and slow.
_NOT_APPLIED, _UNKNOWN, _APPLIED = Effect
_IDEMPOTENT, _KEYED = Reason.IDEMPOTENT, Reason.KEYED


def decide(
    policy: RetryPolicy,
    history: History,
    outcome: Outcome,
    *,
    now: float,
    random: float,
    permit: bool = True,
) -> Decision:
    """What to do after an attempt.

    `now` is wall-clock time; `random` is one number from [0, 1); `permit` says whether the budget allows a retry.
    """
    said, effect = understand(policy, history, outcome, now)
    return judge(policy, history, outcome, said, effect, now, random, permit)


def understand(policy: RetryPolicy, history: Known, outcome: Outcome, now: float) -> tuple[Meaning, Effect]:
    """What an outcome means under a policy, and which effect the call has by now: what `judge` goes by."""
    unsafe = history.method not in {"GET", "HEAD"}
    if policy.rules:
        said = meaning(
            outcome,
            rules=policy.rules,
            refusal_statuses=policy.refusal_statuses,
            unsafe=unsafe,
            tainted=history.tainted,
            now=now,
        )
    else:
        said = standard(outcome, policy.refusal_statuses, unsafe, now)
    # A call's effect is that of its worst attempt: after an unknown one, a refusal proves nothing (unless sure).
    if said.effect is _NOT_APPLIED and history.tainted and not said.sure:
        return said, _UNKNOWN
    return said, said.effect


def judge(
    policy: RetryPolicy,
    history: Known,
    outcome: Outcome,
    said: Meaning,
    effect: Effect,
    now: float,
    random: float,
    permit: bool = True,
) -> Decision:
    """`decide()` for a caller who already knows what the outcome means, and the effect that the call has."""
    answer = None if isinstance(outcome, Failed) else outcome
    body_lost = answer is not None and answer.body_error is not None
    applied = said.effect is _APPLIED and not body_lost
    if applied and said.retry is not True:
        return _SUCCESS
    if isinstance(outcome, Failed):
        no = _no_failure_to_retry(policy, history, outcome, said)
    else:
        no = _no_answer_to_retry(policy, outcome, said, body_lost)
    if no is not None:
        return Stop(reason=no)
    safe, why = _safety(policy, history, outcome, effect, now)
    if not safe:
        return _SUCCESS if applied else Stop(reason=why)
    if not history.replayable:
        return Stop(reason=Reason.BODY_NOT_REPLAYABLE)
    if history.attempts >= policy.max_attempts:
        return Stop(reason=Reason.ATTEMPTS_EXHAUSTED)
    if policy.limits is not None and _over_limit(policy.limits, history.spent, outcome):
        return Stop(reason=Reason.LIMIT_EXHAUSTED)
    delay = policy.backoff.delay(history.attempts, history.previous, random)
    hint = said.pushback if answer is None else _hint(policy, answer, said, now)
    if hint is not None and policy.pushback != "ignore":
        if hint > policy.max_wait:
            if policy.pushback == "stop":
                return Stop(reason=Reason.PUSHBACK_TOO_LONG)
            if policy.pushback == "cap":
                hint = policy.max_wait
        if hint > delay or (hint > 0 and policy.limits is not None):
            delay = hint
    due = now + delay
    if policy.lifetime is not None or history.not_after is not None:
        end = _end(policy, history, now)
        if end is not None and due >= end:
            return Stop(reason=Reason.LIFETIME_OVER)
    if why is _KEYED and history.key_until is not None and due >= history.key_until:
        return Stop(reason=Reason.UNSAFE)  # by then the provider may have forgotten the key
    if delay > policy.max_wait:
        return Defer(until=due, reason=Reason.WAIT_TOO_LONG)
    if policy.total_timeout is not None and history.elapsed + delay >= policy.total_timeout:
        return Defer(until=due, reason=Reason.RUN_OVER)
    if not permit:
        return Stop(reason=Reason.BUDGET_EXHAUSTED)
    return retry_after(delay, why)


def raises(policy: RetryPolicy, outcome: Outcome, decision: Decision) -> bool:
    """Is this answer, with no retry left, raised as an error of its own (`on_exhausted`)?"""
    if policy.on_exhausted != "raise" or not isinstance(outcome, Answered) or outcome.body_error is not None:
        return False
    if policy.limits is None or decision.reason is Reason.LIMIT_EXHAUSTED:
        return decision.reason in (Reason.ATTEMPTS_EXHAUSTED, Reason.LIMIT_EXHAUSTED)
    stopped = decision.reason in (Reason.ATTEMPTS_EXHAUSTED, Reason.UNSAFE)
    return stopped and outcome.status in policy.status_forcelist


def _no_failure_to_retry(policy: RetryPolicy, history: Known, outcome: Failed, said: Meaning) -> Reason | None:
    kind: Any = type(outcome.error)  # to mypy a class is not hashable
    if is_interrupt(kind):
        return Reason.INTERRUPTED
    if policy.limits is not None and outcome.counter is not None:
        return Reason.NOT_RETRYABLE if outcome.counter == "none" else None
    if outcome.retry_limit is not None and history.streak >= outcome.retry_limit:
        return Reason.PERMANENT
    return Reason.NOT_RETRYABLE if said.retry is False else None


def _no_answer_to_retry(policy: RetryPolicy, outcome: Answered, said: Meaning, body_lost: bool) -> Reason | None:
    if outcome.body_error is not None:
        if interrupts(outcome.body_error):
            return Reason.INTERRUPTED
        if policy.limits is not None:
            return Reason.NOT_RETRYABLE
    if said.retry is not None:
        return None if said.retry or body_lost else Reason.NOT_RETRYABLE
    hints = outcome.hints
    if hints and policy.pushback != "ignore" and policy.limits is None and not SHOULD_RETRY.isdisjoint(hints):
        forbidden = do_not_retry(hints)
        if forbidden is not None:
            return Reason.SERVER_SAID_NO if forbidden else None
    if outcome.status in policy.status_forcelist or body_lost:
        return None
    return Reason.NOT_RETRYABLE


def _safety(policy: RetryPolicy, history: Known, outcome: Outcome, effect: Effect, now: float) -> tuple[bool, Reason]:
    """Is a repeat safe, and why (not)? Rules 1 to 4 of the safety rule."""
    allowed = policy.allowed_methods is None or history.method in policy.allowed_methods
    if not allowed and (
        not surely_unsent(outcome) if policy.limits is None else kind_of(outcome) in ("read", "status")
    ):
        return False, Reason.METHOD_NOT_ALLOWED
    if effect is _NOT_APPLIED:
        return True, Reason.NOT_SENT if surely_unsent(outcome) else Reason.NOT_APPLIED
    if history.method in policy.idempotent_methods:
        # A repeat that only somebody's own list calls idempotent is named for what it is.
        return True, _IDEMPOTENT if history.method in IDEMPOTENT else Reason.ACCEPTED_RISK
    if history.key_until is not None and now < history.key_until:
        return True, _KEYED
    if history.accepts_duplicates:
        return True, Reason.ACCEPTED_RISK
    return False, Reason.UNSAFE


def _over_limit(limits: Limits, spent: Mapping[str, int], outcome: Outcome) -> bool:
    kind = kind_of(outcome)
    limit: int | None = getattr(limits, kind)
    return limit is not None and spent.get(kind, 0) >= limit


def kind_of(outcome: Outcome) -> str:
    """Which counter of `Limits` an outcome belongs to."""
    if isinstance(outcome, Answered):
        return "status" if outcome.body_error is None else "read"
    if outcome.counter is not None and outcome.counter != "none":
        return outcome.counter
    return "connect" if outcome.stage in NOTHING_SENT else "read"


def _hint(policy: RetryPolicy, outcome: Answered, said: Meaning, now: float) -> float | None:
    if said.pushback is not None:
        return said.pushback
    if outcome.pushback is not None:
        return outcome.pushback
    hints = outcome.hints
    if not hints:
        return None
    if policy.limits is None:
        return read_pushback(hints, now)
    hint = read_pushback({name: hints[name] for name in ("retry-after", "date") if name in hints}, now)
    return hint if hint is None or policy.limits.hint is None else min(hint, policy.limits.hint)


def _end(policy: RetryPolicy, history: Known, now: float) -> float | None:
    if policy.lifetime is None:
        return history.not_after
    end = (now if history.first_seen is None else history.first_seen) + policy.lifetime
    return end if history.not_after is None else min(end, history.not_after)
