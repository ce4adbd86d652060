"""next_step(): what a queue does with a job, told from the error that ended it, or from what the ledger has of its key.

Pure but for one read of the ledger, and of the clock where `now` is not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from retrypolicy import errors
from retrypolicy.clock import SystemClock
from retrypolicy.errors import (
    AlreadyDone,
    CallRefused,
    ConfigurationError,
    PolicyError,
    RetryPolicyError,
    SendFailed,
    SendHeld,
)
from retrypolicy.guard import Ledger, Phase, Record
from retrypolicy.guard.key import Secret, check_key, find
from retrypolicy.guard.opening import ledger_from_environment, open_ledger
from retrypolicy.outcome import Effect, Reason, Report
from retrypolicy.policy import WORKER, RetryPolicy
from retrypolicy.reports import report, summary

HELD_LOOK = (60.0, 3600.0)
"""Seconds until a held key is looked at again: as long again as it has waited, but at least and at most these."""

SOON = (5.0, 3600.0)
"""The same for what nobody set a time for: the ledger is away, the worker is being stopped."""


MOST_DEATHS = 12
"""How often a job may end its worker's process, however many attempts its policy has."""


def kills_its_workers(deaths: int, policy: RetryPolicy) -> bool:
    """Was a job begun so often, and never came to an end, that it is taken to be the cause?"""
    return deaths >= min(policy.max_attempts, MOST_DEATHS)


@frozen(kw_only=True)
class RetryAt:
    """Run the job again at `when` (wall-clock seconds since the epoch), under the same key."""

    when: float


@frozen(kw_only=True)
class Wait:
    """Another worker has the key. Run the job again at `when`: by then it has ended, or its lease has."""

    when: float


@frozen(kw_only=True)
class Held:
    """Nobody knows whether the call took effect. Run the job again at `when`: nothing is sent before it is resolved."""

    when: float


@frozen(kw_only=True)
class GiveUp:
    """The job is over, and failed. `error` is fit for a queue: it can be pickled and has no secret in it."""

    error: Exception


@frozen(kw_only=True)
class Settled:
    """The call took effect. `result` is what the ledger kept of it."""

    result: Mapping[str, Any] | None = None


Step = RetryAt | Wait | Held | GiveUp | Settled


def next_step(
    of: object,
    *,
    policy: RetryPolicy = WORKER,
    since: float | None = None,
    ledger: Ledger | str | None = None,
    secret: Secret | str | bytes | Sequence[str | bytes] | None = None,
    now: float | None = None,
) -> Step:
    """What a queue does next with a job.

    of: the exception that ended the job (or a response, where nothing was raised); or the key of its call, which is
        looked up in the ledger.
    policy: the call's own; its `lifetime` says until when a job comes back.
    since: when the job began, in wall-clock seconds since the epoch. None: when its call began.
    ledger, secret: for a key; as `Engine` has them.
    now: wall-clock time; None: what the clock says.

    Attempts and waits were decided by the policy already, in the worker, and are in the ledger: nothing is counted
    here. Raises `ConfigurationError` for what can't be a key, or a key without a ledger; `LedgerUnavailable`;
    `PolicyError` for what is no policy.
    """
    if not isinstance(policy, RetryPolicy):
        raise PolicyError.of("next_step.policy", policy, "a RetryPolicy")
    if isinstance(of, str):
        return _of_key(check_key(of), _ledger(ledger), secret, policy, since)
    found = report(of)
    if not isinstance(of, BaseException) and found is None:
        raise ConfigurationError(
            f"next_step: {type(of).__name__} is not allowed; must be an exception, a response with a report, or a key"
        )
    now = SystemClock().now() if now is None else now
    begun = found.first_seen if since is None and found is not None else since
    end = None if begun is None or policy.lifetime is None else begun + policy.lifetime
    age = 0.0 if begun is None else now - begun
    refusal = _refusal(of)
    match refusal:
        case AlreadyDone():
            return Settled(result=refusal.result)
        case errors.SendInProgress():
            return Wait(when=max(now + 1.0, refusal.retry_at or 0.0))
        case SendHeld():
            return _held(refusal, found, now, age, end)
        case errors.SendDeferred() | errors.CircuitOpen():
            return _again(of, now, refusal.retry_at or now + patience(age, SOON), end)
        case errors.LedgerUnavailable():
            return _again(of, now, now + patience(age, SOON), end)
    if refusal is not None or found is None:
        return GiveUp(error=_fit(of))
    if found.reason in _DEFERRED and found.retry_at is not None:
        return _again(of, now, found.retry_at, end)
    if found.held:
        return _held(of, found, now, age, end)
    if found.reason in _CUT_SHORT and (found.effect is Effect.NOT_APPLIED or found.key_digest is not None):
        return _again(of, now, now + patience(age, SOON), end)
    return GiveUp(error=_fit(of))


_DEFERRED = frozenset({Reason.WAIT_TOO_LONG, Reason.RUN_OVER})
_CUT_SHORT = frozenset({Reason.INTERRUPTED, Reason.STOPPED, Reason.BUDGET_EXHAUSTED, Reason.CIRCUIT_OPEN})
"""Why a run ends though nothing speaks against another one, later or elsewhere."""


def _of_key(key: str, ledger: Ledger, secret: Any, policy: RetryPolicy, since: float | None) -> Step:
    record, now = find(ledger, secret if isinstance(secret, Secret) else Secret.of(secret), key)
    if record is None:
        return RetryAt(when=now)
    begun = record.first_seen if since is None else since
    end = None if policy.lifetime is None else begun + policy.lifetime
    due = max(now, record.not_before)
    match record.phase:
        case Phase.DONE:
            return Settled(result=record.result)
        case Phase.CLAIMED | Phase.ARMED if record.lease >= now:
            return Wait(when=record.lease)
        case Phase.CLAIMED if end is not None and due >= end:
            return GiveUp(error=_over(record))
        case Phase.CLAIMED | Phase.FAILED:
            return RetryAt(when=due)
    if record.not_before > now and (end is None or record.not_before < end):
        return RetryAt(when=record.not_before)  # the provider knows the key: its repeat is due then
    held = SendHeld("an earlier attempt may have been applied; nobody knows", key_digest=record.key.hex())
    return _held(held, None, now, now - begun, end)


def _held(of: object, found: Report | None, now: float, age: float, end: float | None) -> Step:
    if end is not None and now >= end:
        return GiveUp(error=_as_held(of, found))
    when = max(now + patience(age, HELD_LOOK), getattr(of, "retry_at", None) or 0.0)
    return Held(when=when if end is None else min(when, end))


def _as_held(of: object, found: Report | None) -> Exception:
    if isinstance(of, SendHeld):
        return slim(of)
    return SendHeld(
        "the call may have been applied, and nothing showed it during its lifetime. Resolve it: retrypolicy ledger "
        "resolve",
        report=found,
        key_digest=found.key_digest if found is not None else None,
    )


def _again(of: object, now: float, when: float, end: float | None) -> Step:
    when = max(now, when)
    return RetryAt(when=when) if end is None or when < end else GiveUp(error=_fit(of))


def _over(record: Record) -> Exception:
    return errors.DeadlineExceeded("the call's lifetime is over; it was not sent", key_digest=record.key.hex())


def patience(age: float, limits: tuple[float, float]) -> float:
    """Seconds until a job is looked at again: as long again as it has waited, between these limits."""
    return min(max(age, limits[0]), limits[1])


def _ledger(given: Ledger | str | None) -> Ledger:
    given = given or ledger_from_environment()
    if given is None:
        raise ConfigurationError(
            "next_step: a key needs a ledger to look it up in; give one, or set RETRYPOLICY_LEDGER"
        )
    return open_ledger(given)


def _refusal(of: object) -> CallRefused | None:
    """The guard's refusal, here or among the causes: other libraries make errors of their own of ours."""
    seen: set[int] = set()
    while isinstance(of, BaseException) and id(of) not in seen:
        if isinstance(of, CallRefused):
            return of
        seen.add(id(of))
        of = of.__cause__ or of.__context__
    return None


# -- errors that are fit for a queue ----------------------------------------------------------------------------------

_FULL_OF_SECRETS = frozenset({"anymail", "requests", "urllib3", "botocore"})
"""Packages whose errors hold the request, or tell of it: headers, bodies, addresses."""


def slim(error: BaseException) -> RetryPolicyError:
    """The error as a queue may keep it: our own without the part that is a transport's; of others, a `SendFailed`.

    Its traceback is that of the error; its text has class names, statuses and reasons, nothing else.
    """
    found = report(error)
    name = type(error).__name__
    own = _refusal(error) or (error if isinstance(error, RetryPolicyError) else None)
    if own is not None:
        kind: Any = next(cls for cls in type(own).__mro__ if cls.__module__ == errors.__name__)
        facts = {field: getattr(own, field) for field in own._fields if field in own.__dict__}
        made: RetryPolicyError = kind(*own.args[:1], **facts)
    else:
        said = f"{name}: {_last(found)}{summary(found)}" if found is not None else name
        made = SendFailed(said, report=found, error=name)
    return made.with_traceback(error.__traceback__)


def _last(found: Report) -> str:
    status = found.attempts[-1].status if found.attempts else None
    return "" if status is None else f"status {status}, "


def _fit(of: object) -> Exception:
    if not isinstance(of, BaseException):  # a response
        return SendFailed(summary(report(of) or Report()), report=report(of))
    if isinstance(of, Exception) and report(of) is None and not isinstance(of, RetryPolicyError) and _is_clean(of):
        return of  # an error of the job's own, which had no part in a call
    return slim(of)


def _is_clean(error: BaseException) -> bool:
    return not any(cls.__module__.partition(".")[0] in _FULL_OF_SECRETS for cls in type(error).__mro__)
