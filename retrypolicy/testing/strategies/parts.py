"""Strategies for the parts of a policy: backoffs, budgets, breakers, guards, limits and rules."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from retrypolicy.backoff import Backoff, Constant, Decorrelated, Exponential, Linear, Urllib3Backoff
from retrypolicy.budget import CircuitBreaker, RetryBudget
from retrypolicy.outcome import Effect, Stage
from retrypolicy.policy import Guard, Limits
from retrypolicy.rules import Rule
from retrypolicy.testing.strategies.making import (
    check_flag,
    check_number,
    check_some,
    making,
    pinned,
    seconds,
    sets,
    some,
)

HOUR = 3600.0

_text = st.text(min_size=1, max_size=12).filter(lambda name: name != "none")  # stands for None in policy files
names = st.sampled_from(["mail", "payments"]) | _text
_usual = st.sampled_from([500, 503, 429, 502, 504, 408, 421, 425, 404, 409])
statuses = _usual | st.integers(100, 599)
final_statuses = _usual | st.integers(200, 599)
jitters = st.sampled_from(["none", "full", "equal", "proportional"])
_flags = st.booleans()
_counts = st.integers(0, 20)

_BACKOFFS: dict[type, tuple[str, ...]] = {
    Constant: ("seconds", "jitter"),
    Exponential: ("base", "factor", "cap", "jitter"),
    Linear: ("base", "step", "cap", "jitter"),
    Decorrelated: ("base", "cap"),
    Urllib3Backoff: ("factor", "cap", "jitter"),
}
_WAITS = ("seconds", "base", "step", "cap")


def backoffs(*, max_seconds: float = HOUR, kinds: Collection[type] | None = None) -> SearchStrategy[Backoff]:
    """Backoffs of which no wait is longer than `max_seconds`. `kinds`: of these classes only."""
    check_number("max_seconds", max_seconds, 0)
    return st.one_of([_backoffs(kind, max_seconds) for kind in check_some("kinds", kinds, _BACKOFFS)])


def _backoffs(kind: type, longest: float) -> SearchStrategy[Any]:
    waits = seconds(0, longest)
    fields: dict[str, SearchStrategy[Any]] = dict.fromkeys(_WAITS, waits)
    if kind is Urllib3Backoff:
        fields |= {"factor": waits, "jitter": waits}
    else:
        fields |= {"factor": st.integers(1, 10) | st.floats(0.1, 10), "jitter": jitters}

    def make(**given: Any) -> Any:
        most = longest
        if given.get("jitter") == "proportional":  # the only one that goes above the cap
            most = longest / 1.2 * (1 - 1e-9)
            given |= {name: min(most, given[name]) for name in _WAITS if name in given}
        if "base" in given:
            given["cap"] = min(most, given["base"] + given["cap"])  # drawn as how far it lies above the base
        return kind(**given)

    return making(make, {name: fields[name] for name in _BACKOFFS[kind]})


def budgets(*, max_tokens: float = 1000.0, shared: bool = False) -> SearchStrategy[RetryBudget]:
    """Budgets of every kind, whose amounts are at most `max_tokens`. `shared`: of the kinds that a fleet can share."""
    check_number("max_tokens", max_tokens, 1)
    check_flag("shared", shared)
    free = seconds(0, max_tokens)
    paid = seconds(0.001, max_tokens)
    fields: dict[str, SearchStrategy[Any]] = {
        "deposit": free,
        "deposit_on": st.sampled_from(["success", "call"]),
        "cost": paid,
        "timeout_cost": paid,
        "throttled_cost": paid,
        "refund": _flags,
        "per_second": free,
        "name": names,
    }
    window = seconds(0.1, HOUR)
    kinds = [
        making(RetryBudget, {}, some({**fields, "capacity": paid})),
        making(RetryBudget, {"charge": st.just("failure")}, some({**fields, "capacity": paid})),
    ]
    if not shared:
        kinds.append(making(RetryBudget, {"capacity": st.none(), "window": window}, some(fields)))
    return st.one_of(kinds)


def breakers(**fields: Any) -> SearchStrategy[CircuitBreaker]:
    """Circuit breakers. A field given by name is as the caller says: a strategy to draw it from, or its value."""
    usual: dict[str, SearchStrategy[Any]] = {
        "failure_ratio": st.floats(0.01, 1),
        "window": seconds(0.1, HOUR),
        "minimum": st.integers(1, 50),
        "open_for": seconds(0.1, HOUR),
        "half_open": st.integers(1, 10),
        "name": names,
    }
    return pinned(CircuitBreaker, fields, usual)


def guards(**fields: Any) -> SearchStrategy[Guard]:
    """Guards. A field given by name is as the caller says: a strategy to draw it from, or its value."""
    usual: dict[str, SearchStrategy[Any]] = {
        "on_unknown": st.sampled_from(["hold", "reconcile", "resend"]),
        "unkeyed": st.sampled_from(["pass", "refuse"]),
        "on_ledger_down": st.sampled_from(["closed", "open"]),
        "lease": seconds(0.1, HOUR),
        "join": seconds(0, 60),
    }
    return pinned(Guard, fields, usual)


def limits(**fields: Any) -> SearchStrategy[Limits]:
    """Counters per phase. A field given by name is as the caller says: a strategy to draw it from, or its value."""
    usual: dict[str, SearchStrategy[Any]] = {
        "connect": _counts,
        "read": _counts,
        "status": _counts,
        "other": _counts,
        "hint": seconds(0, HOUR),
    }
    return pinned(Limits, fields, usual)


_pointers = st.sampled_from(["/name", "/error/code", "/errors/0/type"]) | st.text("ab01/", min_size=1, max_size=6).map(
    "/".__add__
)
_scalars = st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8)
_header_names = st.sampled_from(["x-error", "retry-after"]) | st.text("abcdefg-", min_size=1, max_size=6)


def _pair(names: SearchStrategy[str], values: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    return st.tuples(names, values).map(lambda pair: dict([pair]))


_CONDITIONS: dict[str, SearchStrategy[Any]] = {
    "status": sets(statuses | st.sampled_from(["4xx", "5xx", "1xx", "2xx", "3xx"]), 3, least=1),
    "header": _pair(_header_names, st.just("*") | st.text("abc 01", max_size=6)),
    "json": _pair(_pointers, _scalars | st.lists(_scalars, max_size=3)),
    "body": st.text(min_size=1, max_size=8),
}
_VERDICTS: dict[str, SearchStrategy[Any]] = {
    "effect": st.sampled_from(Effect),
    "retry": st.booleans(),
    "pushback": seconds(0, HOUR) | _pointers,
}
_STAGES: dict[str, SearchStrategy[Any]] = {"stage": st.sampled_from(Stage)}
_MORE: dict[str, SearchStrategy[Any]] = {
    "tainted": st.booleans(),
    "from_key_layer": st.booleans(),
    "source": st.text(max_size=8),
}
_said = (some(_VERDICTS, least=1, most=2), some(_MORE, most=2))
_rules = making(Rule, {}, some(_CONDITIONS, least=1, most=2), *_said) | making(Rule, _STAGES, *_said)


def rules() -> SearchStrategy[Rule]:
    """Rules with at least one condition and at least one verdict."""
    return _rules
