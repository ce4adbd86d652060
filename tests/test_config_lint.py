"""Lint: each check finds what it is about, and nothing in policies that are well."""

from __future__ import annotations

from typing import Any

import pytest

from retrypolicy import WEB, WORKER, Constant, Exponential, Guard, Linear, RetryPolicy, Rule
from retrypolicy.backoff import Urllib3Backoff
from retrypolicy.config import Finding, lint
from retrypolicy.config.lint import CHECKS
from retrypolicy.errors import ConfigurationError
from retrypolicy.providers import load

CASES: list[tuple[str, RetryPolicy, dict[str, Any], str]] = [
    ("RP01", RetryPolicy(attempt_timeout=20, total_timeout=10, max_wait=5), {}, "attempt_timeout"),
    (
        "RP02",
        RetryPolicy(max_attempts=3, backoff=Constant(seconds=90_000), max_wait=90_000),
        {"provider": "resend"},
        "lifetime",
    ),
    ("RP03", RetryPolicy(idempotent_methods={"GET", "POST"}), {}, "idempotent_methods"),
    ("RP03", RetryPolicy(guard=Guard(on_unknown="resend")), {"provider": "resend"}, "guard.on_unknown"),
    ("RP04", WEB.with_(name="web-slow", max_wait=9), {}, "max_wait"),
    ("RP04", WEB.with_(total_timeout=None), {}, "total_timeout"),
    ("RP05", RetryPolicy(guard=Guard(lease=10), attempt_timeout=30), {}, "guard.lease"),
    ("RP05", RetryPolicy(guard=Guard(lease=10)), {}, "guard.lease"),
    ("RP05", RetryPolicy(guard=Guard(lease=299)), {}, "guard.lease"),
    ("RP06", RetryPolicy(max_attempts=4), {"around": 4}, "max_attempts"),
    ("RP07", RetryPolicy(status_forcelist={200, 503}), {}, "status_forcelist"),
    ("RP07", RetryPolicy(rules=[Rule(status="5xx", retry=False)]), {}, "status_forcelist"),
    ("RP08", RetryPolicy(backoff=Constant(seconds=61)), {}, "backoff"),
    ("RP09", RetryPolicy(total_timeout=30), {}, "max_wait"),
    ("RP09", RetryPolicy(lifetime=30), {}, "max_wait"),
    (
        "RP10",
        RetryPolicy(backoff=Linear(base=4, cap=9, jitter="none"), total_timeout=9, max_wait=5),
        {},
        "max_attempts",
    ),
    ("RP11", RetryPolicy(max_attempts=1_000_000), {}, "max_attempts"),
    ("RP12", RetryPolicy(guard=Guard(on_ledger_down="open")), {"provider": "postmark"}, "guard.on_ledger_down"),
]


@pytest.mark.parametrize(("number", "policy", "place", "field"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_each_check_finds_its_case_and_no_other_does(
    number: str, policy: RetryPolicy, place: dict[str, Any], field: str
) -> None:
    [finding] = lint(policy, **place)
    assert (finding.id, finding.name, finding.field) == (number, CHECKS[number][0], field)
    assert finding.message
    assert finding.hint
    assert str(finding).startswith(f"{number} {finding.name} ({field}): ")


def test_every_check_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(CHECKS)


WELL = [
    (RetryPolicy(), {}),
    (WEB, {}),
    (WORKER, {}),
    (WORKER, {"provider": "resend", "around": 5}),
    (WORKER.with_(lifetime=3300), {"provider": load("idempotency-key")}),
    (RetryPolicy(max_attempts=1), {"provider": "resend", "around": 5}),
    (RetryPolicy(guard=Guard(on_ledger_down="open")), {"provider": "resend"}),
    (RetryPolicy(guard=Guard(lease=31), attempt_timeout=30), {}),
    (RetryPolicy(guard=Guard(lease=300)), {}),
    (RetryPolicy(guard=Guard(lease=30 * 86400)), {}),
    (RetryPolicy(total_timeout=30, pushback="ignore"), {}),
    (RetryPolicy(status_forcelist={202}, rules=[Rule(status=202, retry=True)]), {}),
    (RetryPolicy(rules=[Rule(status=503, header={"x": "*"}, retry=False)]), {}),
]


@pytest.mark.parametrize(("policy", "place"), WELL)
def test_policies_that_are_well(policy: RetryPolicy, place: dict[str, Any]) -> None:
    assert lint(policy, **place) == []


def test_a_key_covers_a_method_that_is_declared_idempotent() -> None:
    policy = RetryPolicy(idempotent_methods={"POST"})
    assert lint(policy, "resend") == []
    assert [finding.id for finding in lint(policy, "postmark")] == ["RP03"]


def test_backoffs_that_do_not_tell_their_bounds_count_as_long() -> None:
    class Mine:
        def delay(self, retry: int, previous: float | None, random: float) -> float:
            return 1.0

    assert [f.id for f in lint(RetryPolicy(backoff=Mine()), "resend")] == ["RP02"]
    assert lint(RetryPolicy(backoff=Mine(), lifetime=3600), "resend") == []


def test_findings_are_values() -> None:
    [finding] = lint(RetryPolicy(max_attempts=1_000_000, backoff=Urllib3Backoff(), max_wait=120), around=1)
    assert finding == Finding("RP11", "endless", "max_attempts", finding.message, finding.hint)
    assert hash(finding)


def test_an_unknown_provider_is_said() -> None:
    with pytest.raises(ConfigurationError, match="nobody"):
        lint(RetryPolicy(backoff=Exponential()), "nobody")


def test_a_worker_outlives_hours_and_no_key_of_a_day() -> None:
    """On average eleven hours of outage; at most what a provider that keeps keys for 24 hours honours."""
    waits = [WORKER.backoff.delay(retry, None, 0.5) for retry in range(1, WORKER.max_attempts)]
    assert sum(waits) > 11 * 3600
    assert lint(WORKER, "resend") == lint(WORKER) == []
