"""check_policy: the laws of retrying, tried on one policy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from retrypolicy.events import logger
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import Provider, load
from retrypolicy.testing.check import probes
from retrypolicy.testing.check.engine import Space
from retrypolicy.testing.check.findings import Finding, PolicyFindings, PolicyReport
from retrypolicy.testing.check.fixes import mending
from retrypolicy.testing.check.laws import LAWS, Law
from retrypolicy.testing.check.scenario import Scenario
from retrypolicy.testing.check.search import InvalidArgument, find_scenario, scenarios
from retrypolicy.testing.check.story import tell
from retrypolicy.testing.check.world import World

EXAMPLES = 500
"""Scenarios that are tried by default."""
NAMES = (*LAWS, probes.NEVER)
"""The laws, by their names."""


def check_policy(
    policy: RetryPolicy,
    provider: Provider | str | None = None,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    ignore: Collection[str] = (),
    raises: bool = True,
) -> PolicyReport:
    """Try the laws of retrying on a policy, in a model of client, network, server and ledger, in virtual time.

    hypothesis chooses what goes wrong: faults, crashes, clocks that jump, callers at the same time. One line in a test:
    `check_policy(policy)`. It raises `PolicyFindings` (an `AssertionError`) with the shortest story of each law that
    the policy breaks, and the change that mends it; with `raises=False` it returns them in the report.

    provider: the profile that the policy is used with, or its name.
    examples: scenarios to try.
    seed: another one looks elsewhere; the same one finds the same.
    ignore: names of laws that may be broken.

    Raises `InvalidArgument` (hypothesis) for arguments out of range, `ConfigurationError` for an unknown provider.
    """
    _checked(policy, examples, seed, ignore)
    began = time.monotonic()
    check = _Check(policy, None if provider is None else load(provider), examples, seed)
    with _quiet():
        findings = tuple(check.findings({name: law for name, law in LAWS.items() if name not in ignore}))
        if probes.NEVER not in ignore:
            findings += tuple(check.never_retries())
        pressure = check.pressure()
    report = PolicyReport(
        policy=policy.name,
        provider=None if check.provider is None else check.provider.name,
        findings=findings,
        plays=check.plays,
        steps=check.steps,
        attempts_per_call=pressure,
        seconds=time.monotonic() - began,
        seed=seed,
    )
    if raises and findings:
        raise PolicyFindings(report)
    return report


def _checked(policy: object, examples: object, seed: object, ignore: Collection[str]) -> None:
    if not isinstance(policy, RetryPolicy):
        raise InvalidArgument(f"policy={policy!r} is not allowed; must be a RetryPolicy")
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
        raise InvalidArgument(f"examples={examples!r} is not allowed; must be a whole number >= 1")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidArgument(f"seed={seed!r} is not allowed; must be a whole number")
    unknown = [ignore] if isinstance(ignore, str) else [name for name in ignore if name not in NAMES]
    if unknown:
        raise InvalidArgument(f"ignore: {unknown[0]!r} is not allowed; must be some of {', '.join(NAMES)}")


class _Check:
    """One check: plays, counts, and makes findings of what breaks a law."""

    def __init__(self, policy: RetryPolicy, provider: Provider | None, examples: int, seed: int) -> None:
        self.policy = policy
        self.provider = provider
        self.space = Space(policy, provider)
        self.examples = examples
        self.seed = seed
        self.plays = self.steps = 0

    def play(self, scenario: Scenario, space: Space | None = None) -> World:
        world = World(space or self.space, scenario).play()
        self.plays += 1
        self.steps += world.steps
        return world

    def findings(self, laws: dict[str, Law]) -> Iterator[Finding]:
        """For each law that is broken a finding: first by what is always tried, then by a search."""
        left = dict(laws)
        for scenario in probes.always(self.space):
            yield from self._told(scenario, left)

        def breaks(scenario: Scenario) -> bool:
            world = self.play(scenario)
            return any(law.check(world) for law in left.values())

        while left:
            found = find_scenario(scenarios(self.space), breaks, examples=self.examples, seed=self.seed)
            if found is None:
                return
            yield from self._told(found, left)

    def _told(self, scenario: Scenario, left: dict[str, Law]) -> Iterator[Finding]:
        """The laws that this scenario breaks; nobody looks for them any more."""
        world = self.play(scenario)
        for name, law in list(left.items()):
            verdict = law.check(world)
            if verdict is not None:
                del left[name]
                yield self._finding(name, law.title, verdict, world, law.keeps)
                world = self.play(scenario)  # there is one clock for all plays

    def _finding(self, name: str, title: str, verdict: str, world: World, well: Callable[[World], bool]) -> Finding:
        def mended(policy: RetryPolicy) -> bool:
            return well(self.play(world.scenario, Space(policy, self.provider)))

        story, attempts = tell(world), world.attempts  # before the world is played anew
        fix = mending(self.policy, name, mended)
        return Finding(
            law=name,
            title=title,
            cause=fix.cause,
            story=story,
            verdict=verdict,
            fix=fix.words,
            attempts=attempts,
            seed=self.seed,
        )

    def never_retries(self) -> Iterator[Finding]:
        """Found if none of the usual failures is retried, however the call is made."""
        usual = list(probes.usual())
        if any(probes.retried(self.play(scenario)) for scenario in usual):
            return
        world = self.play(usual[0])
        verdict = "none of the usual failures is tried again, here or in a later run"
        yield self._finding(probes.NEVER, "the policy never retries", verdict, world, probes.retried)

    def pressure(self) -> float:
        """Attempts for each call while a server is down, by the policy alone."""
        worlds = [self.play(scenario) for scenario in probes.outages()]
        return max(world.attempts / len(world.scenario.callers) for world in worlds)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the model's calls would write to the log is not about real calls."""
    ours = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != ours

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
