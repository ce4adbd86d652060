"""The strategy for whole policies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from retrypolicy.policy import RetryPolicy
from retrypolicy.testing.strategies.making import maybe, pinned, seconds, sets
from retrypolicy.testing.strategies.parts import (
    HOUR,
    backoffs,
    breakers,
    budgets,
    guards,
    limits,
    names,
    rules,
    statuses,
)

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "QUERY")


def policies(**fields: Any) -> SearchStrategy[RetryPolicy]:
    """Policies with every part that one can have; the simplest is `RetryPolicy()`.

    A field given by name is as the caller says, a strategy to draw it from or its value:
    `policies(max_attempts=3, backoff=backoffs(max_seconds=5), breaker=None)`. Of the others up to six differ
    from their defaults, within bounds: up to 20 attempts, waits and timeouts up to an hour, lifetimes up to a week.

    Raises `InvalidArgument` for a name that is no field of `RetryPolicy`, or a value that it does not allow.
    """
    timeout = seconds(0.01, HOUR)
    methods = sets(st.sampled_from(METHODS), 4)
    usual: dict[str, SearchStrategy[Any]] = {
        "max_attempts": st.integers(1, 20),
        "max_wait": seconds(0, HOUR),
        "total_timeout": timeout,
        "attempt_timeout": timeout,
        "lifetime": seconds(0.01, 168 * HOUR),
        "allowed_methods": methods,
        "idempotent_methods": methods,
        "status_forcelist": sets(statuses, 3),
        "refusal_statuses": sets(statuses, 3),
        "rules": st.lists(rules(), max_size=2).map(tuple),
        "backoff": backoffs(),
        "pushback": st.sampled_from(["defer", "cap", "stop", "ignore"]),
        "limits": limits(),
        "on_exhausted": st.sampled_from(["return", "raise"]),
        "guard": guards(),
        "budget": budgets(),
        "breaker": breakers(),
        "name": maybe(names),
    }
    return pinned(RetryPolicy, fields, usual, most=6)
