"""Strategies for whole policies, with every part that a policy can have."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from retrypolicy import (
    CircuitBreaker,
    Constant,
    Decorrelated,
    Effect,
    Exponential,
    Guard,
    Limits,
    Linear,
    RetryBudget,
    RetryPolicy,
    Rule,
    Stage,
)
from retrypolicy.backoff import Urllib3Backoff

seconds = st.one_of(st.integers(0, 10_000), st.floats(0, 1e6, allow_nan=False))
positive = st.one_of(st.integers(1, 10_000), st.floats(1e-6, 1e6))
names = st.text(min_size=1, max_size=12).filter(lambda name: name != "none")
statuses = st.integers(100, 599)
jitters = st.sampled_from(["none", "full", "equal", "proportional"])
methods = st.frozensets(st.sampled_from(["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "QUERY", "REPORT"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
)
pointers = st.lists(st.text(alphabet="abc~01/", max_size=4), max_size=3).map(
    lambda parts: "".join(f"/{p}" for p in parts)
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def backoffs(draw: st.DrawFn) -> Any:
    base, more = draw(seconds), draw(seconds)
    kind = draw(st.sampled_from([Constant, Linear, Exponential, Decorrelated, Urllib3Backoff]))
    if kind is Constant:
        return Constant(seconds=base, jitter=draw(jitters))
    if kind is Linear:
        return Linear(base=base, step=draw(seconds), cap=base + more, jitter=draw(jitters))
    if kind is Exponential:
        return Exponential(base=base, factor=draw(positive), cap=base + more, jitter=draw(jitters))
    if kind is Decorrelated:
        return Decorrelated(base=base, cap=base + more)
    return Urllib3Backoff(factor=base, cap=more, jitter=draw(seconds))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    verdict = {
        "effect": draw(maybe(st.sampled_from(Effect))),
        "retry": draw(maybe(st.booleans())),
        "pushback": draw(maybe(seconds | pointers.filter(bool))),
        "from_key_layer": draw(st.booleans()),
        "source": draw(st.text(max_size=8)),
        "tainted": draw(maybe(st.booleans())),
    }
    if all(verdict[name] is None for name in ("effect", "retry", "pushback")):
        verdict["retry"] = False
    if draw(st.booleans()):
        return Rule(stage=draw(st.sampled_from(Stage)), **verdict)
    status = st.frozensets(statuses | st.sampled_from(["1xx", "2xx", "3xx", "4xx", "5xx"]), min_size=1, max_size=4)
    return Rule(
        status=draw(status),
        header=draw(st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=2)),
        json=draw(st.dictionaries(pointers, json_values, max_size=2)),
        **verdict,
    )


@st.composite
def budgets(draw: st.DrawFn) -> RetryBudget:
    charge = draw(st.sampled_from(["retry", "failure"]))
    window = draw(maybe(positive)) if charge == "retry" else None
    return RetryBudget(
        deposit=draw(seconds),
        deposit_on=draw(st.sampled_from(["success", "call"])),
        cost=draw(positive),
        timeout_cost=draw(maybe(positive)),
        throttled_cost=draw(maybe(positive)),
        charge=charge,
        refund=draw(st.booleans()),
        per_second=draw(seconds),
        capacity=None if window is not None else draw(positive),
        window=window,
        name=draw(maybe(names)),
    )


breakers = st.builds(
    CircuitBreaker,
    failure_ratio=st.floats(0.01, 1),
    window=positive,
    minimum=st.integers(1, 100),
    open_for=positive,
    half_open=st.integers(1, 10),
    name=maybe(names),
)
counters = maybe(st.integers(0, 20))
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 50),
    max_wait=seconds,
    total_timeout=maybe(positive),
    attempt_timeout=maybe(positive),
    lifetime=maybe(positive),
    allowed_methods=maybe(methods),
    idempotent_methods=methods,
    status_forcelist=st.frozensets(statuses, max_size=6),
    refusal_statuses=st.frozensets(statuses, max_size=6),
    rules=st.lists(rules(), max_size=3),
    backoff=backoffs(),
    pushback=st.sampled_from(["defer", "cap", "stop", "ignore"]),
    limits=maybe(st.builds(Limits, connect=counters, read=counters, status=counters, other=counters)),
    on_exhausted=st.sampled_from(["return", "raise"]),
    guard=st.builds(
        Guard,
        on_unknown=st.sampled_from(["hold", "reconcile", "resend"]),
        unkeyed=st.sampled_from(["pass", "refuse"]),
        on_ledger_down=st.sampled_from(["closed", "open"]),
        lease=maybe(positive),
    ),
    budget=maybe(budgets()),
    breaker=maybe(breakers),
    name=maybe(names),
)
