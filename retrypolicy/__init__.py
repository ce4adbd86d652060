"""A pluggable retry-policy engine: retried whenever that is safe, never sent twice, never lost silently.

The public names are loaded when they are first used; importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrypolicy.backoff import Constant, Decorrelated, Exponential, Linear
    from retrypolicy.budget import CircuitBreaker, RetryBudget
    from retrypolicy.config.loading import load_policies
    from retrypolicy.decision import History, decide
    from retrypolicy.engine import Engine
    from retrypolicy.events import Listener
    from retrypolicy.guard.operation import operation
    from retrypolicy.outcome import Answered, Effect, Failed, Reason, Report, Stage
    from retrypolicy.policy import WEB, WORKER, Guard, Limits, RetryPolicy
    from retrypolicy.reports import report
    from retrypolicy.rules import Rule

__version__ = "0.1.0"

_HOMES = {
    "retrypolicy.backoff": ("Constant", "Decorrelated", "Exponential", "Linear"),
    "retrypolicy.budget": ("CircuitBreaker", "RetryBudget"),
    "retrypolicy.config.loading": ("load_policies",),
    "retrypolicy.decision": ("History", "decide"),
    "retrypolicy.engine": ("Engine",),
    "retrypolicy.events": ("Listener",),
    "retrypolicy.guard.operation": ("operation",),
    "retrypolicy.outcome": ("Answered", "Effect", "Failed", "Reason", "Report", "Stage"),
    "retrypolicy.policy": ("WEB", "WORKER", "Guard", "Limits", "RetryPolicy"),
    "retrypolicy.reports": ("report",),
    "retrypolicy.rules": ("Rule",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "WEB",
    "WORKER",
    "Answered",
    "CircuitBreaker",
    "Constant",
    "Decorrelated",
    "Effect",
    "Engine",
    "Exponential",
    "Failed",
    "Guard",
    "History",
    "Limits",
    "Linear",
    "Listener",
    "Reason",
    "Report",
    "RetryBudget",
    "RetryPolicy",
    "Rule",
    "Stage",
    "decide",
    "load_policies",
    "operation",
    "report",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
