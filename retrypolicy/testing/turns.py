"""Whose turn it is, and what happens before it: a schedule of concurrent callers is a tuple of these."""

from __future__ import annotations

from attrs import field, frozen

from retrypolicy._validate import flag, integer, number
from retrypolicy.testing.faults.steps import Value


@frozen(kw_only=True, repr=False)
class Turn(Value):
    """One step of one of several concurrent callers.

    caller: which one takes the step, counted from 0.
    wait: seconds that pass on every clock before it.
    jump: seconds by which the wall clock alone is set forward or back before it.
    crash: the caller's process dies in place of the step, and starts anew at its next turn.

    Raises `PolicyError`.
    """

    caller: int = field(default=0, validator=integer(0))
    wait: float = field(default=0.0, validator=number(0))
    jump: float = field(default=0.0, validator=number(-float("inf")))
    crash: bool = field(default=False, validator=flag)
