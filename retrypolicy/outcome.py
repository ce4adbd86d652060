"""What one attempt produced, what it did on the server, what is decided, and the report on a call."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen


class _Word(enum.Enum):
    """An enumeration whose repr is code."""

    # One object for each word, so its identity will do; Enum's own hash is a function in Python, and slow.
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class Stage(_Word):
    """How far a failed attempt got. The order is the order of time; UNOBSERVED stands apart."""

    NOT_CONNECTED = "not_connected"  # DNS, TCP, CONNECT or the TLS handshake failed
    NOT_SENT = "not_sent"  # connected, and no byte of the request was handed over
    HEAD_UNFINISHED = "head_unfinished"  # the socket refused part of the header block
    BODY_UNFINISHED = "body_unfinished"  # the head went out, the last body byte did not
    SENT = "sent"  # everything went out, no byte came back
    ANSWERING = "answering"  # at least one byte came back, but no whole head
    UNOBSERVED = "unobserved"  # nobody watched: nothing is known


NOTHING_SENT = frozenset({Stage.NOT_CONNECTED, Stage.NOT_SENT, Stage.HEAD_UNFINISHED})
"""The stages that prove that no complete request head can have reached the server."""


class Effect(_Word):
    """Did the request take effect on the server? (RFC 9110's word is "applied".)"""

    NOT_APPLIED = "not_applied"
    UNKNOWN = "unknown"
    APPLIED = "applied"


class Reason(_Word):
    """Why a decision was taken. The docs' table of stop reasons is drawn from this list."""

    # Stop: the call is over, well or badly.
    SUCCESS = "success"
    NOT_RETRYABLE = "not_retryable"  # the policy does not retry this answer or error
    PERMANENT = "permanent"  # the same attempt would fail the same way (bad certificate, invalid URL)
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSAFE = "unsafe"  # unknown effect, and a repeat could be a second one
    BODY_NOT_REPLAYABLE = "body_not_replayable"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    LIMIT_EXHAUSTED = "limit_exhausted"  # a per-phase counter (`limits`)
    PUSHBACK_TOO_LONG = "pushback_too_long"
    SERVER_SAID_NO = "server_said_no"  # a "do not retry" hint
    TOTAL_TIMEOUT = "total_timeout"
    LIFETIME_OVER = "lifetime_over"
    BUDGET_EXHAUSTED = "budget_exhausted"
    CIRCUIT_OPEN = "circuit_open"
    STOPPED = "stopped"  # Engine.stop()
    INTERRUPTED = "interrupted"  # KeyboardInterrupt, SystemExit, a soft time limit
    GUARDED = "guarded"  # the guard refused the attempt (held, in progress, done, reused)
    OBSERVED = "observed"  # RETRYPOLICY_MODE=observe: only said, not done
    # Retry: why a repeat is safe.
    NOT_SENT = "not_sent"
    NOT_APPLIED = "not_applied"
    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    ACCEPTED_RISK = "accepted_risk"  # Guard(on_unknown="resend")
    # Defer: why not now.
    WAIT_TOO_LONG = "wait_too_long"  # the wait is above max_wait
    RUN_OVER = "run_over"  # total_timeout is used up, attempts and lifetime are left


HINTS = frozenset(
    {
        "date",
        "retry-after",
        "retry-after-ms",
        "ratelimit",
        "ratelimit-policy",
        "ratelimit-reset",
        "ratelimit-remaining",
        "x-should-retry",
        "stripe-should-retry",
    }
)
"""The headers by which any server says when to come back, or not to."""


@functools.lru_cache(maxsize=64)
def _hints_among(names: str) -> tuple[tuple[str, str], ...]:
    """Which of these header names, one a line, are `HINTS`: each in lower case, and as it is spelled.

    Nothing if there is but a date, which says nothing by itself. Kept, since the answers of a server have the same
    names again and again.
    """
    found = tuple((name.lower(), name) for name in names.split("\n") if name.lower() in HINTS)
    return found if any(hint != "date" for hint, _ in found) else ()


@frozen(kw_only=True)
class Answered:
    """An attempt that got a complete response head.

    Headers and body are looked at by rules and never shown: neither is part of the repr.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    body_error: BaseException | None = field(default=None, repr=False)  # the head was whole, the body was not
    pushback: float | None = None  # seconds, where a provider's own header gave one
    reused: bool = False  # a connection that had served before
    _hints: dict[str, str] | None = field(default=None, init=False, eq=False, repr=False)

    @property
    def hints(self) -> Mapping[str, str]:
        """The headers among `HINTS`, by names in lower case: looked for once, since answers have many headers."""
        found = self._hints
        if found is None:
            found = {}
            object.__setattr__(self, "_hints", found)  # kept: it changes nothing that anybody sees
            headers = self.headers
            for hint, name in _hints_among("\n".join(headers)):
                value = headers.get(name)
                if value is not None:  # a field may come in several lines (RFC 9110 5.2)
                    found[hint] = f"{found[hint]}, {value}" if hint in found else value
        return found


@frozen(kw_only=True, weakref_slot=False)
class Failed:
    """An attempt that ended in an error before a complete response head."""

    error: BaseException = field(repr=lambda error: type(error).__name__)
    stage: Stage = Stage.UNOBSERVED
    retry_limit: int | None = None  # repeats that this kind of error is worth: 0 bad certificate, 1 unknown name
    reused: bool = False
    counter: Literal["connect", "read", "other", "none"] | None = None  # of `Limits`, by the transport's own classes


def unobserved(error: BaseException, retry_limit: int | None) -> Failed:
    """`Failed(error=error, retry_limit=retry_limit)`, in a fraction of the time that its constructor takes."""
    failed: Any = _blank(_Failed)
    failed.error = error
    failed.stage = _UNOBSERVED
    failed.retry_limit = retry_limit
    failed.reused = False
    failed.counter = None
    failed.__class__ = Failed
    made: Failed = failed
    return made


def interrupts(error: BaseException) -> bool:
    """Does this error end the work around a call, rather than speak of the call itself?

    KeyboardInterrupt, SystemExit, greenlets' timeouts and cancellations, and the soft time limits of task queues, which
    some of them derive from `Exception` (by name: their packages need not be installed).
    """
    kind: Any = type(error)  # to mypy a class is not hashable
    return is_interrupt(kind)


@functools.lru_cache(maxsize=256)
def is_interrupt(kind: type[BaseException]) -> bool:
    """`interrupts`, for an error of this class."""
    return not issubclass(kind, Exception) or any(
        (cls.__module__, cls.__name__) in _TIME_LIMITS for cls in kind.__mro__
    )


_TIME_LIMITS = frozenset(
    {
        ("billiard.exceptions", "SoftTimeLimitExceeded"),  # Celery
        ("rq.timeouts", "BaseTimeoutException"),
        ("huey.exceptions", "TaskTimeout"),
    }
)

Outcome = Answered | Failed


def surely_unsent(outcome: Outcome) -> bool:
    """Is it proven that no complete request head can have reached the server?"""
    return isinstance(outcome, Failed) and outcome.stage in NOTHING_SENT


@frozen(kw_only=True, weakref_slot=False)
class Retry:
    """Try again after `delay` seconds."""

    delay: float
    reason: Reason = Reason.NOT_APPLIED


@frozen(kw_only=True)
class Defer:
    """Not now: try again at `until` (wall-clock seconds since the epoch), in another run."""

    until: float
    reason: Reason = Reason.WAIT_TOO_LONG


@frozen(kw_only=True)
class Stop:
    """The call is over."""

    reason: Reason


Decision = Retry | Defer | Stop


def retry_after(delay: float, reason: Reason) -> Retry:
    """`Retry(delay=delay, reason=reason)`, in a fraction of the time that its constructor takes."""
    retry: Any = _blank(_Retry)
    retry.delay = delay
    retry.reason = reason
    retry.__class__ = Retry
    made: Retry = retry
    return made


# The two values above are made for every attempt, and a frozen class sets its fields one by one through a function. So
# they are made as one of these, which can be written to, and then become what they are to be. Python allows that where
# the slots are the same, and none is for weak references.
class _Failed:
    __slots__ = ("counter", "error", "retry_limit", "reused", "stage")


class _Retry:
    __slots__ = ("delay", "reason")


_blank = object.__new__
_UNOBSERVED = Stage.UNOBSERVED  # on Python 3.11 the members of an enumeration are properties, and slow


@frozen(kw_only=True)
class AttemptReport:
    """One attempt, as far as it may be told: no header, no body, no address."""

    number: int
    status: int | None = None
    error: str | None = None  # the error's class name
    stage: Stage | None = None  # of a failed attempt
    effect: Effect = Effect.UNKNOWN
    reason: Reason = Reason.SUCCESS
    wait: float = 0.0  # seconds slept after it
    elapsed: float = 0.0  # seconds the attempt took
    reused: bool = False


@frozen(kw_only=True)
class Report:
    """What became of a call: attached to its response or exception (`retrypolicy.report`)."""

    attempts: tuple[AttemptReport, ...] = ()
    total_attempts: int = 0  # over all runs of the call
    effect: Effect = Effect.NOT_APPLIED  # of the whole call: that of its worst attempt
    reason: Reason = Reason.SUCCESS
    first_seen: float | None = None  # wall-clock; when the call began, as far as known
    retry_at: float | None = None  # wall-clock; set when the call was deferred
    held: bool = False
    replayed: bool = False
    recorded: bool | None = None  # is the effect in the ledger? None: no ledger was used
    key_digest: str | None = None
    policy: str | None = None
    provider: str | None = None

    @property
    def waits(self) -> tuple[float, ...]:
        """Seconds slept after each attempt but the last."""
        return tuple(a.wait for a in self.attempts[:-1])

    @property
    def stage(self) -> Stage | None:
        """The stage of the last attempt, if it failed."""
        return self.attempts[-1].stage if self.attempts else None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for a log or a metric."""
        return {
            "attempts": [
                {
                    "number": a.number,
                    "status": a.status,
                    "error": a.error,
                    "stage": a.stage.value if a.stage else None,
                    "effect": a.effect.value,
                    "reason": a.reason.value,
                    "wait": a.wait,
                }
                for a in self.attempts
            ],
            "total_attempts": self.total_attempts,
            "effect": self.effect.value,
            "reason": self.reason.value,
            "first_seen": self.first_seen,
            "retry_at": self.retry_at,
            "held": self.held,
            "replayed": self.replayed,
            "recorded": self.recorded,
            "policy": self.policy,
            "provider": self.provider,
        }
