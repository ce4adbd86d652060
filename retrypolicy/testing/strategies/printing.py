"""How hypothesis shows our values in a failing example: as code that can be pasted, without what is as by default."""

from __future__ import annotations

from typing import Any

from attrs import Factory, fields
from hypothesis.vendor.pretty import RepresentationPrinter, for_type_by_name

from retrypolicy.backoff import Constant, Decorrelated, Exponential, Linear, Urllib3Backoff
from retrypolicy.budget import CircuitBreaker, RetryBudget
from retrypolicy.decision import History
from retrypolicy.outcome import Answered, Failed
from retrypolicy.policy import Guard, Limits, RetryPolicy
from retrypolicy.rules import Rule
from retrypolicy.testing.faults import steps
from retrypolicy.testing.turns import Turn

_VALUES: tuple[type, ...] = (
    *(RetryPolicy, Guard, Limits, Rule, RetryBudget, CircuitBreaker),
    *(Constant, Linear, Exponential, Decorrelated, Urllib3Backoff),
    *(Answered, Failed, History),
)
_BRIEF: tuple[type, ...] = (
    *(steps.Answer, steps.Raw, steps.Close, steps.Reset, steps.Stall, steps.Refuse, steps.Blackhole),
    *(steps.Handshake, steps.Tunnel, steps.Interim, Turn),
)


def register() -> None:
    """Tell hypothesis how to print them."""
    for kind in _VALUES:
        for_type_by_name(kind.__module__, kind.__name__, _print_changes)
    for kind in _BRIEF:
        for_type_by_name(kind.__module__, kind.__name__, _print_repr)


def _print_changes(value: Any, printer: RepresentationPrinter, cycle: bool) -> None:
    name = type(value).__name__
    with printer.group(len(name) + 1, f"{name}(", ")"):
        first = True
        for field in fields(type(value)):
            given = getattr(value, field.name)
            default = field.default.factory() if isinstance(field.default, Factory) else field.default  # type: ignore[arg-type]  # attrs types it as a function
            if field.init and given != default:
                if not first:
                    printer.text(",")
                    printer.breakable()
                first = False
                printer.text(f"{field.alias}=")
                printer.pretty(given)


def _print_repr(value: Any, printer: RepresentationPrinter, cycle: bool) -> None:
    printer.text(repr(value))
