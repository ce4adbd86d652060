"""A scenario: all that is chosen for one play in the model world. A value, which can be played again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from attrs import field, frozen

from retrypolicy.testing.check.faults import Fault

Mode = Literal["plain", "keyed", "guarded"]
"""How the call is made: with nothing; with a key that the provider honours; with a key, and a ledger."""

Trouble = Literal["away", "reply lost", "slow"]
"""What may happen to an operation of the ledger."""


@frozen(kw_only=True)
class Caller:
    """Somebody who makes the call: a thread, or a worker that gets it from a queue (again).

    starts: seconds after the play begins. dies: the step of its run at which its process is killed; None: it lives.
    """

    starts: float = 0.0
    dies: int | None = None


@frozen(kw_only=True)
class Jump:
    """The client's wall clock is set by so many seconds."""

    at: float
    seconds: float


def _tuple(value: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(value)


@frozen(kw_only=True)
class Scenario:
    """What is chosen.

    faults: what becomes of the attempts, one after the other; then all is well, or with `lasting` the last one stays.
    dice: every random number. trouble: what happens to the ledger's operations, by their number.
    """

    method: str = "POST"
    mode: Mode = "plain"
    faults: tuple[Fault, ...] = field(converter=_tuple)
    lasting: bool = False
    callers: tuple[Caller, ...] = (Caller(),)
    jumps: tuple[Jump, ...] = ()
    trouble: tuple[tuple[int, Trouble], ...] = ()
    dice: float = 0.0
