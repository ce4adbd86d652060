"""Policies are values: bad ones can't be made, and their errors say what is allowed."""

from __future__ import annotations

import pickle

import pytest

from retrypolicy import (
    WEB,
    WORKER,
    CircuitBreaker,
    Decorrelated,
    Effect,
    Exponential,
    Guard,
    Limits,
    Linear,
    RetryBudget,
    RetryPolicy,
    Rule,
    Stage,
)
from retrypolicy.errors import PolicyError

NAMES = {
    name: value
    for name, value in globals().items()
    if name in ("CircuitBreaker", "Constant", "Decorrelated", "Effect", "Exponential", "Guard", "Limits", "Linear")
    or name in ("RetryBudget", "RetryPolicy", "Rule", "Stage")
}

BAD = [
    ("max_attempts", 0, "a whole number >= 1"),
    ("max_attempts", 2.5, "a whole number >= 1"),
    ("max_attempts", True, "a whole number >= 1"),
    ("max_wait", -1, "a number >= 0"),
    ("max_wait", float("nan"), "a number >= 0"),
    ("max_wait", float("inf"), "a number >= 0"),
    ("max_wait", "2", "a number >= 0"),
    ("total_timeout", 0, "a number > 0"),
    ("attempt_timeout", -0.1, "a number > 0"),
    ("lifetime", 0, "a number > 0"),
    ("allowed_methods", "POST", "a collection of method names"),
    ("allowed_methods", {"GET "}, "a method name"),
    ("allowed_methods", [7], "a method name"),
    ("idempotent_methods", None, "a collection of method names"),
    ("status_forcelist", {99}, "a status from 100 to 599"),
    ("status_forcelist", {True}, "a status from 100 to 599"),
    ("status_forcelist", 503, "a collection of statuses"),
    ("refusal_statuses", ["429"], "a status from 100 to 599"),
    ("rules", Rule(status=500, effect=Effect.UNKNOWN), "a sequence of Rule"),
    ("rules", [{"status": 500}], "a Rule"),
    ("backoff", 3, "a Backoff"),
    ("pushback", "wait", "one of defer, cap, stop, ignore"),
    ("limits", 3, "a Limits, or None"),
    ("on_exhausted", "explode", "one of return, raise"),
    ("guard", None, "a Guard"),
    ("budget", 0.2, "a RetryBudget, or None"),
    ("breaker", "on", "a CircuitBreaker, or None"),
    ("name", 7, "a str, or None"),
    ("retries", 3, "one of the fields max_attempts, max_wait"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD, ids=[f"{f}={v!r}" for f, v, _ in BAD])
def test_a_bad_value_names_field_value_and_what_is_allowed(field: str, value: object, allowed: str) -> None:
    with pytest.raises(PolicyError) as caught:
        RetryPolicy(**{field: value})  # type: ignore[arg-type]
    error = caught.value
    assert error.field.startswith(f"RetryPolicy.{field}")
    assert allowed in error.allowed
    assert field in str(error)
    assert repr(error.value) in str(error)
    assert allowed in str(error)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Guard, "on_unknown", "guess"),
        (Guard, "unkeyed", "maybe"),
        (Guard, "on_ledger_down", "ajar"),
        (Guard, "lease", 0),
        (Guard, "color", "red"),
        (Limits, "connect", -1),
        (Rule, "status", 42),
        (Rule, "status", "6xx"),
        (Rule, "status", []),
        (Rule, "json", {"name": 1}),
        (Rule, "effect", "applied"),
        (Rule, "retry", "yes"),
        (Rule, "pushback", -1),
        (Rule, "pushback", "reset"),
        (Rule, "stage", "sent"),
        (Rule, "body", None),
        (Rule, "body", b"sent"),
    ],
)
def test_bad_parts_are_refused_too(kind: type, field: str, value: object) -> None:
    rest = {} if kind is not Rule else {"retry": True} | ({} if field in ("status", "stage") else {"status": 500})
    with pytest.raises(PolicyError) as caught:
        kind(**{**rest, field: value})
    assert field in caught.value.field


def test_a_rule_without_condition_or_verdict_is_refused() -> None:
    with pytest.raises(PolicyError, match="condition"):
        Rule(effect=Effect.UNKNOWN, body="")
    with pytest.raises(PolicyError, match="verdict"):
        Rule(status=500)
    with pytest.raises(PolicyError, match="alone"):
        Rule(stage=Stage.SENT, status=500, retry=False)
    with pytest.raises(PolicyError, match="alone"):
        Rule(stage=Stage.SENT, body="x", retry=False)
    assert Rule(body="x", retry=False)


def test_positional_values_are_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="given by name"):
        RetryPolicy(3)  # type: ignore[misc]


POLICIES = [
    RetryPolicy(),
    WEB,
    WORKER,
    RetryPolicy(
        allowed_methods=["post", "PUT"],
        status_forcelist=[503],
        refusal_statuses=(),
        rules=[Rule(status={500, "4xx"}, json={"/a": 1}, header={"X": "*"}, effect=Effect.UNKNOWN, pushback=2.0)],
        backoff=Linear(base=1, cap=3),
        limits=Limits(connect=1),
        guard=Guard(on_unknown="resend", lease=3.5),
        budget=RetryBudget(),
        breaker=CircuitBreaker(),
        name="all",
    ),
    RetryPolicy(backoff=Decorrelated(), rules=[Rule(stage=Stage.BODY_UNFINISHED, effect=Effect.NOT_APPLIED)]),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name or "unnamed")
def test_the_repr_is_code(policy: RetryPolicy) -> None:
    assert eval(repr(policy), dict(NAMES)) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy.with_()) == hash(policy)


def test_methods_and_statuses_are_taken_in_any_collection() -> None:
    policy = RetryPolicy(allowed_methods=iter(["post"]), status_forcelist=(s for s in [500, 503]))
    assert policy.allowed_methods == {"POST"}
    assert policy.status_forcelist == {500, 503}


def test_a_policy_is_changed_by_making_another() -> None:
    assert WEB.with_(max_attempts=9) == RetryPolicy(
        name="web", max_attempts=9, max_wait=2.0, total_timeout=10.0, backoff=Exponential(base=0.25, cap=2.0)
    )
    with pytest.raises(PolicyError, match="tries"):
        WEB.with_(tries=9)
    with pytest.raises(AttributeError):
        WEB.max_attempts = 9  # type: ignore[misc]
