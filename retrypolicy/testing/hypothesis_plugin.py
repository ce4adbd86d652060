"""What hypothesis loads when it is imported: `from_type()` then knows our types without an import in the test.

It imports the values alone, no strategy, no transport and no store: those come when the first example is drawn.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def register() -> None:
    """Register a strategy for each type (the entry point `retrypolicy` in the group `hypothesis`)."""
    from hypothesis.strategies import register_type_strategy

    from retrypolicy import backoff, budget, outcome, policy, rules
    from retrypolicy.decision import History

    named = {
        policy.RetryPolicy: "policies",
        policy.Guard: "guards",
        policy.Limits: "limits",
        rules.Rule: "rules",
        budget.RetryBudget: "budgets",
        budget.CircuitBreaker: "breakers",
        outcome.Answered: "responses",
        outcome.Failed: "failures",
        History: "histories",
    }
    for kind, name in named.items():
        register_type_strategy(kind, _lazily(name))
    register_type_strategy(backoff.Backoff, _lazily("backoffs"))
    for each in (
        backoff.Constant,
        backoff.Linear,
        backoff.Exponential,
        backoff.Decorrelated,
        backoff.Urllib3Backoff,
    ):
        register_type_strategy(each, _lazily("backoffs", kinds=(each,)))


def _lazily(name: str, **arguments: Any) -> Callable[[type], SearchStrategy[Any]]:
    def resolve(_: type) -> SearchStrategy[Any]:
        # By its name: the plug-in is loaded in the middle of the import of hypothesis.
        strategies = importlib.import_module("retrypolicy.testing.strategies")
        strategy: SearchStrategy[Any] = getattr(strategies, name)(**arguments)
        return strategy

    return resolve
