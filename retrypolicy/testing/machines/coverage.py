"""How far the runs of a state machine came: a run that reaches no interesting state proves little."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from attrs import field, frozen
from hypothesis import event
from hypothesis.stateful import RuleBasedStateMachine


@frozen
class Coverage:
    """What all runs of one machine class did, in this process.

    steps: how often each rule did something. moves: which steps led from which state to which.
    """

    steps: Counter[str] = field(factory=Counter)
    moves: Counter[tuple[str, str, str]] = field(factory=Counter)

    @property
    def states(self) -> frozenset[str]:
        """Every state that was seen."""
        return frozenset(state for _, *states in self.moves for state in states)


class Machine(RuleBasedStateMachine):
    """A state machine that counts in `covered`, one for each subclass, where its runs have been.

    `pytest --hypothesis-show-statistics` shows the same as events.
    """

    covered: ClassVar[Coverage] = Coverage()

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.covered = Coverage()

    def moved(self, step: str, before: object, after: object) -> None:
        """A step is done, and led from one state to the other."""
        self.covered.steps[step] += 1
        self.covered.moves[step, str(before), str(after)] += 1
        event(f"{step}: {before} -> {after}")
