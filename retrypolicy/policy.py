"""RetryPolicy: what may be retried, how long to wait, when to stop, how sends are guarded. A value, no state.

Presets: `WEB` for calls made inside a web request, `WORKER` for background workers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from attrs import evolve, field, fields, frozen, has

from retrypolicy import plugins
from retrypolicy._validate import Seconds, choice, instance_or_none, integer, number, optional_number, strict
from retrypolicy.backoff import BACKOFFS, Backoff, Exponential
from retrypolicy.budget import CircuitBreaker, RetryBudget
from retrypolicy.errors import PolicyError
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.http.statuses import FORCELIST, REFUSALS
from retrypolicy.rules import Rule

LONGEST_ATTEMPT = 300.0
"""Seconds that an attempt is believed to take at most where no time limit is set: for the lease of its key."""


def _methods(field: str, value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PolicyError.of(f"RetryPolicy.{field}", value, 'a collection of method names, such as {"GET", "POST"}')
    names = list(value)
    for name in names:
        if not isinstance(name, str) or not name.isascii() or not name.replace("-", "").isalnum():
            raise PolicyError.of(f"RetryPolicy.{field}", name, 'a method name such as "POST"')
    return frozenset(name.upper() for name in names)


def _allowed_methods(value: Iterable[str] | None) -> frozenset[str] | None:
    return None if value is None else _methods("allowed_methods", value)


def _idempotent_methods(value: Iterable[str]) -> frozenset[str]:
    return _methods("idempotent_methods", value)


def _statuses(field: str, value: Any) -> frozenset[int]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise PolicyError.of(f"RetryPolicy.{field}", value, "a collection of statuses from 100 to 599")
    statuses = list(value)
    for status in statuses:
        if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
            raise PolicyError.of(f"RetryPolicy.{field}", status, "a status from 100 to 599")
    return frozenset(int(status) for status in statuses)


def _status_forcelist(value: Iterable[int]) -> frozenset[int]:
    return _statuses("status_forcelist", value)


def _refusal_statuses(value: Iterable[int]) -> frozenset[int]:
    return _statuses("refusal_statuses", value)


def _sorted(value: Any) -> str:
    """A set as code, in an order that does not change from run to run."""
    if value is None:
        return "None"
    return f"frozenset({{{', '.join(map(repr, sorted(value)))}}})" if value else "frozenset()"


@strict
@frozen(kw_only=True)
class Guard:
    """How sends are guarded against duplicates.

    on_unknown: what becomes of a key whose attempt may have been applied: "hold" it for evidence; "reconcile" it
        through a registered reconciler; "resend" it and accept duplicates.
    unkeyed: an unsafe request without a key where there is a ledger, or with a key that nothing honours:
        "pass" it as without a ledger, or "refuse" it (`ConfigurationError` before sending).
    on_ledger_down: "closed": `LedgerUnavailable`, nothing is sent; "open": send all the same, but only where the
        provider honours the key.
    lease: seconds that an attempt is believed alive without a sign; None: from the policy's own time limits.
    join: seconds that a call waits for another one of this process under the same key, to share what comes of it;
        0: `SendInProgress` at once, as for those of other processes.
    """

    on_unknown: Literal["hold", "reconcile", "resend"] = field(
        default="hold", validator=choice("hold", "reconcile", "resend")
    )
    unkeyed: Literal["pass", "refuse"] = field(default="pass", validator=choice("pass", "refuse"))
    on_ledger_down: Literal["closed", "open"] = field(default="closed", validator=choice("closed", "open"))
    lease: Seconds | None = field(default=None, validator=optional_number(0, above=True))
    join: Seconds = field(default=0.0, validator=number(0))


@strict
@frozen(kw_only=True)
class Limits:
    """Counters per phase, as urllib3 has them: how many retries each kind of failure gets. None: no limit of its own.

    connect: nothing was sent. read: sent, and no answer. status: answered. other: anything else.
    hint: seconds to which a longer Retry-After is cut.

    A policy with limits goes by urllib3's rules, as far as they are safe: a failure is of the kind that urllib3 gives
    it, and only that says whether it is repeated; `allowed_methods` count for reads and answers, sent or not; a lost
    body is not fetched again; of the server's hints only Retry-After is read, and it takes the place of the backoff.
    """

    connect: int | None = field(default=None, validator=integer(0, optional=True))
    read: int | None = field(default=None, validator=integer(0, optional=True))
    status: int | None = field(default=None, validator=integer(0, optional=True))
    other: int | None = field(default=None, validator=integer(0, optional=True))
    hint: Seconds | None = field(default=None, validator=optional_number(0))


def _backoff(instance: Any, attribute: Any, value: Any) -> None:
    if not callable(getattr(value, "delay", None)):
        raise PolicyError.of(
            "RetryPolicy.backoff", value, "a Backoff: Constant, Linear, Exponential, Decorrelated, ..."
        )


def _rules(value: Any) -> tuple[Rule, ...]:
    if isinstance(value, (str, bytes, Rule)) or not isinstance(value, Iterable):
        raise PolicyError.of("RetryPolicy.rules", value, "a sequence of Rule")
    rules = tuple(value)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise PolicyError.of("RetryPolicy.rules", rule, "a Rule")
    return rules


@strict
@frozen(kw_only=True)
class RetryPolicy:
    """What may be retried, how long to wait, and when to stop. Immutable; compare, store and share it freely.

    max_attempts: tries in all, the first included.
    max_wait: the longest wait that is slept, in seconds; a longer one becomes a Defer.
    total_timeout: wall-clock seconds for one run: every connect, send, receive and wait.
    attempt_timeout: wall-clock seconds for one attempt.
    lifetime: seconds from the first attempt after which the call is not tried again, over all its runs.
    allowed_methods: what may be repeated once bytes were sent; None: every method; an empty set: none.
    idempotent_methods: methods whose repeat has no second effect (RFC 9110 9.2.2). POST here accepts duplicates.
    status_forcelist: answers worth another attempt.
    refusal_statuses: answers that say that nothing was applied.
    rules: what answers mean, before the standard table; first match wins.
    backoff: how long to wait before the server's own hint.
    pushback: a hint beyond max_wait: "defer", "cap" or "stop"; "ignore": hints are not read.
    limits, on_exhausted: counters per phase, and whether running out of attempts raises; for policies from urllib3.
    guard: how sends are guarded. budget, breaker: what a process may spend on retries, and when it stops calling.
    name: for reports, metrics, and the shared state of budget and breaker.

    Raises `PolicyError`, which names the field, the value and what is allowed.
    """

    max_attempts: int = field(default=4, validator=integer(1))
    max_wait: Seconds = field(default=60.0, validator=number(0))
    total_timeout: Seconds | None = field(default=None, validator=optional_number(0, above=True))
    attempt_timeout: Seconds | None = field(default=None, validator=optional_number(0, above=True))
    lifetime: Seconds | None = field(default=None, validator=optional_number(0, above=True))
    allowed_methods: frozenset[str] | None = field(default=None, repr=_sorted, converter=_allowed_methods)
    idempotent_methods: frozenset[str] = field(
        default=IDEMPOTENT,
        repr=_sorted,
        converter=_idempotent_methods,
    )
    status_forcelist: frozenset[int] = field(default=FORCELIST, repr=_sorted, converter=_status_forcelist)
    refusal_statuses: frozenset[int] = field(default=REFUSALS, repr=_sorted, converter=_refusal_statuses)
    rules: tuple[Rule, ...] = field(default=(), converter=_rules)
    backoff: Backoff = field(factory=Exponential, validator=_backoff)
    pushback: Literal["defer", "cap", "stop", "ignore"] = field(
        default="defer", validator=choice("defer", "cap", "stop", "ignore")
    )
    limits: Limits | None = field(default=None, validator=instance_or_none(Limits))
    on_exhausted: Literal["return", "raise"] = field(default="return", validator=choice("return", "raise"))
    guard: Guard = field(factory=Guard)
    budget: RetryBudget | None = field(default=None, validator=instance_or_none(RetryBudget))
    breaker: CircuitBreaker | None = field(default=None, validator=instance_or_none(CircuitBreaker))
    name: str | None = field(default=None, validator=instance_or_none(str))

    @guard.validator  # pyright: ignore[reportAttributeAccessIssue]
    def _check_guard(self, attribute: Any, value: Any) -> None:
        if not isinstance(value, Guard):
            raise PolicyError.of("RetryPolicy.guard", value, "a Guard")

    def with_(self, **changes: Any) -> RetryPolicy:
        """A copy with some fields changed. Raises `PolicyError` for an unknown field or a bad value."""
        return evolve(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The whole policy as plain data, for JSON; `load_policies` makes the same policy of it again.

        Raises `PolicyError` for a backoff that no name stands for.
        """
        return {a.name: _plain(getattr(self, a.name)) for a in fields(RetryPolicy)}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, frozenset):
        return sorted(value, key=lambda item: (str(type(item)), item))
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if callable(getattr(value, "delay", None)):
        name = plugins.name_of("backoffs", value, BACKOFFS) if has(type(value)) else None
        if name is None:
            raise PolicyError.of(
                "RetryPolicy.backoff", value, "an attrs class with an entry point in retrypolicy.backoffs"
            )
        return {"type": name} | {a.name: _plain(getattr(value, a.name)) for a in fields(type(value))}
    if has(type(value)):
        return {a.name: _plain(getattr(value, a.name)) for a in fields(type(value))}
    return value


WEB = RetryPolicy(
    name="web",
    max_attempts=3,
    max_wait=2.0,
    total_timeout=10.0,
    backoff=Exponential(base=0.25, factor=2.0, cap=2.0, jitter="full"),
)
"""Inside a web request: 10 seconds in all, waits to 2 seconds; a longer hint ends the run with `report.retry_at`."""

WORKER = RetryPolicy(
    name="worker",
    # On average these waits outlive an outage of eleven hours. At most they take a little less than a day, and less
    # than the 24 hours for which a provider such as Resend honours a key.
    max_attempts=35,
    max_wait=60.0,
    total_timeout=300.0,
    attempt_timeout=60.0,
    lifetime=86400.0,
    backoff=Exponential(base=1.0, factor=2.0, cap=3600.0, jitter="full"),
)
"""In a background worker: short waits are slept, longer ones deferred to the queue; a call lives up to a day."""

PRESETS = {"web": WEB, "worker": WORKER}
"""By the names that policy files and settings know them by."""
