"""check_policy can see: each rule that is taken out of the library is found by its law."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from retrypolicy import WEB, RetryBudget, RetryPolicy, decision
from retrypolicy.budget import BudgetState
from retrypolicy.call import Call, loop
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import Phase
from retrypolicy.outcome import Answered, Effect, Reason, Retry
from retrypolicy.testing.check import check_policy
from retrypolicy.testing.check.checking import NAMES

pytestmark = pytest.mark.slow  # a whole model, again and again; test_check_command.py runs it on the oldest, too

Patch = Callable[[pytest.MonkeyPatch], None]


def expired_lease_runs_again(patch: pytest.MonkeyPatch) -> None:
    arm = transitions.arm

    def wrong(record: Any, take: Any, now: float, *more: Any) -> Any:
        if record is not None and record.phase is Phase.ARMED and record.lease < now:
            record = evolve(record, phase=Phase.CLAIMED)
        return arm(record, take, now, *more)

    patch.setattr(transitions, "arm", wrong)


def unknown_is_retried(patch: pytest.MonkeyPatch) -> None:
    safety = decision._safety

    def wrong(*given: Any) -> tuple[bool, Reason]:
        return True, safety(*given)[1]

    patch.setattr(decision, "_safety", wrong)


def taint_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    understand = loop.understand

    def wrong(*given: Any) -> Any:
        said, _ = understand(*given)
        return said, said.effect

    patch.setattr(loop, "understand", wrong)
    patch.setattr(transitions, "_held", lambda record, fence=None: evolve(record, phase=Phase.FAILED))


def window_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "_window", lambda self: math.inf)
    patch.setattr(Call, "_key_is_forgotten", lambda self: False)


def sent_before_the_arm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "arm", lambda self: iter(()))


def every_500_is_a_refusal(patch: pytest.MonkeyPatch) -> None:
    understand = loop.understand

    def wrong(policy: Any, known: Any, outcome: Any, *more: Any) -> Any:
        said, effect = understand(policy, known, outcome, *more)
        wrongly = isinstance(outcome, Answered) and outcome.status == 500
        return (evolve(said, effect=Effect.NOT_APPLIED), Effect.NOT_APPLIED) if wrongly else (said, effect)

    patch.setattr(loop, "understand", wrong)


def hints_are_not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decision, "_hint", lambda *_: None)


def no_to_a_repeat_is_not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decision, "do_not_retry", lambda _: None)


def judged_as(**changes: Any) -> Patch:
    def seed(patch: pytest.MonkeyPatch) -> None:
        judge = loop.judge
        patch.setattr(loop, "judge", lambda policy, *given, **more: judge(policy.with_(**changes), *given, **more))

    return seed


def everything_is_permitted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BudgetState, "permit", lambda self, kind: True)


def attempts_have_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "_deadline", lambda self, now: None)


def leases_have_no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "_lease", lambda self: 1e9)


def nothing_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    judge = loop.judge

    def wrong(*given: Any, **more: Any) -> Any:
        said = judge(*given, **more)
        return decision.Stop(reason=Reason.UNSAFE) if isinstance(said, Retry) else said

    patch.setattr(loop, "judge", wrong)


POLICY = RetryPolicy(max_wait=10)
SEEDS: list[tuple[str, Patch, RetryPolicy, str | None]] = [
    ("duplicate", expired_lease_runs_again, POLICY, None),
    ("duplicate", unknown_is_retried, POLICY, None),
    ("duplicate", taint_is_forgotten, POLICY, None),
    ("duplicate", window_is_ignored, POLICY, "resend"),
    ("duplicate", sent_before_the_arm, POLICY, None),
    ("duplicate", every_500_is_a_refusal, POLICY, None),
    ("false-report", every_500_is_a_refusal, POLICY, None),
    ("pushback", hints_are_not_read, POLICY, None),
    ("pushback", no_to_a_repeat_is_not_read, POLICY, None),
    ("long-wait", judged_as(max_wait=1e9), POLICY, None),
    ("endless", judged_as(max_attempts=9), WEB, None),
    ("deadline", judged_as(total_timeout=None), WEB, None),
    ("deadline", attempts_have_no_end, WEB, None),
    ("deadline", judged_as(lifetime=None), POLICY.with_(max_wait=60, lifetime=30), None),
    ("load", everything_is_permitted, POLICY.with_(budget=RetryBudget(capacity=10)), None),
    ("load", everything_is_permitted, POLICY.with_(budget=RetryBudget.grpc()), None),
    ("load", everything_is_permitted, POLICY.with_(budget=RetryBudget.finagle()), None),
    ("in-flight", leases_have_no_end, POLICY, None),
    ("never-retries", nothing_is_tried_again, POLICY.with_(max_wait=60), None),
]


@pytest.mark.parametrize(
    ("law", "seed", "policy", "provider"),
    SEEDS,
    ids=[
        f"{law}-{seed.__name__ if seed.__name__ != 'seed' else number}"
        for number, (law, seed, _, _) in enumerate(SEEDS)
    ],
)
def test_a_seeded_bug_is_found(
    law: str, seed: Patch, policy: RetryPolicy, provider: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(monkeypatch)
    report = check_policy(policy, provider, ignore=set(NAMES) - {law}, raises=False)
    [finding] = report.findings
    assert finding.law == law
    assert finding.cause is None  # the policy is not to blame
