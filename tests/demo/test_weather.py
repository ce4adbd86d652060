"""The fault plan: the same for every way of sending, process and version of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from retrypolicy.demo import APIS
from retrypolicy.demo.command import SEED
from retrypolicy.demo.weather import FIRST, Fault, fault, killed

GOLDEN = [
    "LIMIT", "UNREAD", "LATE", "NONE", "NONE", "NONE", "BUSY_HINT", "NONE", "NONE", "NONE", "NONE", "FIN",
]  # fmt: skip


def plan(seed: int) -> list[str]:
    return [fault(seed, api, message, arrival).name for api in APIS for message in range(1, 41) for arrival in (1, 2)]


def test_the_plan_does_not_depend_on_the_process() -> None:
    """Hashes of strings differ between processes; the plan must not."""
    code = (
        "from retrypolicy.demo.weather import fault\n"
        f"print([fault(7, api, n, k).name for api in {APIS} for n in range(1, 41) for k in (1, 2)])"
    )
    plans = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert plans == {f"{plan(7)}\n"}


def test_the_plan_does_not_depend_on_the_version() -> None:
    """Written down once, on another Python than the one that runs the test as a rule."""
    assert [fault(1, "mandrill", message, 1).name for message in range(1, 13)] == GOLDEN


def test_another_seed_is_another_day() -> None:
    assert plan(1) != plan(2)


def test_on_the_default_day_everything_happens() -> None:
    seen = {fault(SEED, api, message, 1) for api in APIS for message in range(1, 41)}
    assert seen == {*FIRST, Fault.NONE}


@given(st.integers(), st.sampled_from(APIS), st.integers(1, 10**6), st.integers(1, 20))
def test_a_kill_is_never_drawn(seed: int, api: str, message: int, arrival: int) -> None:
    """The kill is the stage's, at one message for each API; it is not weather."""
    assert fault(seed, api, message, arrival) is not Fault.KILL


@given(st.integers(1, 1000))
def test_the_kill_is_at_a_message_that_exists(messages: int) -> None:
    for message in killed(messages).values():
        assert 1 <= message <= messages
        assert messages / 2 <= message <= messages / 2 + 2
