"""What a check found: values that print as stories."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from attrs import frozen

_WIDTH = 110


@frozen(kw_only=True)
class Finding:
    """A law that the policy breaks, and the simplest story found in which it does.

    law: its name.
    cause: the name of what in the policy makes it so, where that is known.
    verdict: what went wrong in the story.
    fix: the change that mends it; it was tried on this story.
    attempts: in the story.
    seed: `check_policy(..., seed=seed)` finds it again.
    """

    law: str
    title: str
    cause: str | None
    story: tuple[str, ...]
    verdict: str
    fix: str
    attempts: int
    seed: int

    def __str__(self) -> str:
        cause = f" ({self.cause})" if self.cause else ""
        ends = [line for text in (f"So {self.verdict}.", f"To do: {self.fix}.") for line in wrap(text, _WIDTH)]
        told = ["", *self.story, "", *ends]
        return "\n".join([f"{self.law}: {self.title}{cause}", *(f"  {line}".rstrip() for line in told)])

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "law": self.law,
            "title": self.title,
            "cause": self.cause,
            "story": list(self.story),
            "verdict": self.verdict,
            "fix": self.fix,
            "attempts": self.attempts,
            "seed": self.seed,
        }


@frozen(kw_only=True)
class PolicyReport:
    """What became of a check.

    plays: scenarios that were played.
    steps: of all of them together.
    attempts_per_call: what one call becomes at the most while a server is down, by the policy alone.
    """

    policy: str | None
    provider: str | None
    findings: tuple[Finding, ...]
    plays: int
    steps: int
    attempts_per_call: float
    seconds: float
    seed: int

    @property
    def clean(self) -> bool:
        """Was nothing found?"""
        return not self.findings

    def __str__(self) -> str:
        name = self.policy or "policy"
        where = f" with {self.provider}" if self.provider else ""
        found = "nothing found" if self.clean else f"{len(self.findings)} found"
        head = f"{name}{where}: {found} in {self.plays} plays ({self.steps} steps, seed {self.seed})"
        return "\n\n".join([head, *map(str, self.findings)])

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "policy": self.policy,
            "provider": self.provider,
            "findings": [finding.to_dict() for finding in self.findings],
            "plays": self.plays,
            "steps": self.steps,
            "attempts_per_call": self.attempts_per_call,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
        }


class PolicyFindings(AssertionError):
    """A policy breaks laws. `report` has what was found; the text of the error tells it."""

    def __init__(self, report: PolicyReport) -> None:
        super().__init__(str(report))
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.report,)
