"""What the kit for hypothesis costs: an example of each strategy, and a step of each state machine.

CPU time of this thread; hypothesis' own cost of an example, with nothing drawn, is taken off.
"""

from __future__ import annotations

import argparse
import logging
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from hypothesis.stateful import run_state_machine_as_test

from retrypolicy.testing import machines
from retrypolicy.testing import strategies as st

OPTIONS = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


def example(strategy: hs.SearchStrategy[object], examples: int) -> float:
    """Milliseconds of a test that draws one value, and does nothing with it."""
    seen = 0

    @settings(max_examples=examples, **OPTIONS)
    @given(hs.integers(), strategy)  # the integer keeps hypothesis from ending early
    def nothing(_: int, __: object) -> None:
        nonlocal seen
        seen += 1

    began = time.thread_time()
    nothing()
    return (time.thread_time() - began) / seen * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    args = parser.parse_args()
    logging.disable()
    bare = min(example(hs.none(), args.examples) for _ in range(3))
    for name in st.__all__:
        bound = "  (at most 1)" if name == "policies" else ""
        took = min(example(getattr(st, name)(), args.examples) for _ in range(3)) - bare
        print(f"{name:20s} {took:6.2f} ms{bound}")
    for name in ("LedgerMachine", "EngineMachine", "BudgetMachine", "BreakerMachine"):
        machine = type(name, (getattr(machines, name),), {})
        began = time.thread_time()
        run_state_machine_as_test(machine, settings=settings(max_examples=args.examples // 20, **OPTIONS))
        print(f"{name:20s} {machine.covered.steps.total() / (time.thread_time() - began):6.0f} steps/s")


if __name__ == "__main__":
    main()
