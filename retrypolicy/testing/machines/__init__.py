"""State machines for hypothesis, to subclass: a ledger, an engine, a budget and a breaker against what must hold.

Needs the extra `hypothesis`. Each has an `open` method to override, and a `TestCase` for pytest and unittest:

    class MyLedgerMachine(LedgerMachine):
        def open(self):
            clock = VirtualClock()
            return Subject(ledger=MyLedger(clock), advance=clock.jump)

    TestMyLedger = MyLedgerMachine.TestCase

As they are, they test the parts that this library ships.
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"retrypolicy.testing.machines needs hypothesis: pip install retrypolicy[hypothesis] ({error})"
    ) from error

from retrypolicy.testing.machines.breaker import BreakerMachine
from retrypolicy.testing.machines.budget import BudgetMachine
from retrypolicy.testing.machines.coverage import Coverage
from retrypolicy.testing.machines.engine import EngineMachine
from retrypolicy.testing.machines.ledger import LedgerMachine
from retrypolicy.testing.machines.subject import Subject

__all__ = ["BreakerMachine", "BudgetMachine", "Coverage", "EngineMachine", "LedgerMachine", "Subject"]
