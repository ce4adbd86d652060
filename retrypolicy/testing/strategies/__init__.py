"""Strategies for hypothesis: policies and their parts, what becomes of attempts, and scripts for the `FaultServer`.

Needs the extra `hypothesis`. Everything drawn is valid, bounded, and prints as code; examples shrink towards the
defaults of the value, so that what is left in a failing one is what matters. Arguments are given by name; one that is
out of range raises `InvalidArgument` with its name, when the strategy is made.
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"retrypolicy.testing.strategies needs hypothesis: pip install retrypolicy[hypothesis] ({error})"
    ) from error

from retrypolicy.testing.strategies import printing
from retrypolicy.testing.strategies.attempts import failures, histories, outcomes, responses
from retrypolicy.testing.strategies.parts import backoffs, breakers, budgets, guards, limits, rules
from retrypolicy.testing.strategies.policy import policies
from retrypolicy.testing.strategies.sending import faults, keys, requests, schedules

printing.register()

__all__ = [
    "backoffs",
    "breakers",
    "budgets",
    "failures",
    "faults",
    "guards",
    "histories",
    "keys",
    "limits",
    "outcomes",
    "policies",
    "requests",
    "responses",
    "rules",
    "schedules",
]
