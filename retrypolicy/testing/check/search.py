"""The search for a play that breaks a law: hypothesis chooses the scenarios, and shrinks those that do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

try:
    from hypothesis import Phase, Verbosity, find, settings
    from hypothesis import strategies as st
    from hypothesis.errors import InvalidArgument, NoSuchExample
except ImportError as error:
    raise ImportError(f"check_policy needs hypothesis: pip install 'retrypolicy[hypothesis]' ({error})") from error

from hypothesis.strategies import SearchStrategy

from retrypolicy.testing.check.engine import Space
from retrypolicy.testing.check.faults import catalogue
from retrypolicy.testing.check.scenario import Caller, Jump, Mode, Scenario
from retrypolicy.testing.check.world import DAY

__all__ = ["InvalidArgument", "find_scenario", "scenarios"]

_STARTS = (0.0, 0.05, 0.5, 10.0, 45.0, 400.0, 1000.0, 4000.0, 1.1 * DAY, 2 * DAY)
"""When callers come: at once, while another one is under way, after its lease, after the provider forgot its key."""
_LONGEST_JUMP = DAY


def find_scenario(
    scenarios: SearchStrategy[Scenario], breaks: Callable[[Scenario], bool], *, examples: int, seed: int
) -> Scenario | None:
    """The simplest scenario found that breaks what it must not; None if none did in so many examples."""
    options = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
    )
    try:
        return find(scenarios, breaks, settings=options, random=random.Random(seed))
    except NoSuchExample:
        return None


def scenarios(space: Space) -> SearchStrategy[Scenario]:
    """Scenarios for this policy."""
    faults = st.lists(st.sampled_from(catalogue(space.policy, space.provider)), min_size=1, max_size=5)
    where: SearchStrategy[tuple[str, Mode]] = st.sampled_from(space.ways)
    dice = st.sampled_from((0.0, 0.5, 0.999))
    jumps = _jumps(space)
    dies = st.none() | st.integers(0, 20)
    first = st.builds(Caller, dies=dies)
    others = st.lists(st.builds(Caller, starts=st.sampled_from(_STARTS), dies=dies), max_size=3)
    trouble = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(("away", "reply lost", "slow"))), max_size=2)

    @st.composite
    def draw_one(draw: Any) -> Scenario:
        method, mode = draw(where)
        more: dict[str, Any] = {}
        if mode == "guarded":
            more = {"callers": (draw(first), *draw(others)), "trouble": tuple(draw(trouble))}
        return Scenario(
            method=method,
            mode=mode,
            faults=draw(faults),
            lasting=draw(st.booleans()),
            jumps=tuple(draw(jumps)),
            dice=draw(dice),
            **more,
        )

    return draw_one()


def _jumps(space: Space) -> SearchStrategy[list[Jump]]:
    """What the clock may do. Who relies on it may demand that it be right:

    a provider that forgets keys, back by no more than the profile's margin covers; a reconciler, not at all.
    """
    policy, key = space.policy, None if space.provider is None else space.provider.key
    if policy.guard.on_unknown == "reconcile":
        return st.just([])
    back = _LONGEST_JUMP if key is None else key.margin / 4
    seconds = st.sampled_from((_LONGEST_JUMP, 3600.0, 60.0, -back, -back / 2))
    return st.lists(st.builds(Jump, at=st.sampled_from((0.05, 0.3, 20.0, 500.0)), seconds=seconds), max_size=2)
