"""check_app(): what a Celery app gets wrong for its tasks under a policy. Each finding has an id and a hint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from retrypolicy.errors import ConfigurationError
from retrypolicy.policy import RetryPolicy
from retrypolicy.queues.celery import longest_countdown, refuse_autoretry, visibility_timeout
from retrypolicy.queues.names import ledger_named, policy_named

_FORGETFUL = frozenset({"memory", "filesystem"})
_DEFAULT_TIMEOUTS = {"redis": 3600.0, "sqs": 1800.0, "amqp": 1800.0}
"""Seconds after which a broker delivers again what is not acknowledged, if nobody says otherwise.
https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout
https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout"""


@frozen(kw_only=True)
class Problem:
    """One finding: an error (E) must be mended, a warning (W) should be."""

    id: str
    task: str  # "": the whole app
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.id} {self.task or 'app'}: {self.text}. {self.hint}."


def check_app(app: Any) -> list[Problem]:
    """Everything that is wrong with the tasks of this app that are under a policy. Opens no connection.

    For a test, or for `celery.signals.worker_init`. Tasks of other kinds are not looked at.
    """
    app.finalize()
    ours = [(task, _policy_of(task)) for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")]
    found = [
        Problem(id=f"celery.{number}", task=task.name, text=text, hint=hint)
        for task, policy in ours
        if policy is not None
        for number, text, hint in _task(task, policy)
    ]
    if any(policy is not None for _, policy in ours):
        found += (Problem(id=f"celery.{number}", task="", text=text, hint=hint) for number, text, hint in _whole(app))
    return found


_Found = Iterator[tuple[str, str, str]]


def _policy_of(task: Any) -> RetryPolicy | str | None:
    """Of a `PolicyTask`, or of a function below `with_policy`; None: the task is under none."""
    return getattr(task, "retry_policy", None) or getattr(task.run, "retry_policy", None)


def _task(task: Any, named: RetryPolicy | str) -> _Found:
    try:
        refuse_autoretry(task)
    except ConfigurationError as error:
        yield "E001", str(error), "Remove autoretry_for"
    try:
        policy = policy_named(named)
    except ConfigurationError as error:
        yield "E002", str(error), "Correct retry_policy"
        return
    if not task.acks_late:
        yield (
            "W001",
            "its message is acknowledged before it runs, and is gone if the worker dies or the broker is away",
            "Set acks_late=True: the guard stops the repeats",
        )
    elif not (task.reject_on_worker_lost or getattr(task, "retry_on_worker_lost", None)):
        yield (
            "W002",
            "its message is acknowledged when its process is killed, and is gone",
            "Set reject_on_worker_lost=True: deliveries that kill their worker are counted, and end",
        )
    timeout = visibility_timeout(task.app) or _DEFAULT_TIMEOUTS.get(_broker(task.app))
    if timeout is not None and longest_countdown(task) >= timeout:
        yield (
            "W003",
            f"max_countdown is {longest_countdown(task):g} s, and the broker delivers again after {timeout:g} s",
            "Make it less than half of that, or leave it away",
        )
    longest = _longest_run(task, policy)
    if timeout is not None and longest is not None and longest_countdown(task) + longest >= timeout:
        times = f"{longest:g} s after a wait of {longest_countdown(task):g} s"
        yield (
            "W004",
            f"a run may take {times}, and the broker delivers again after {timeout:g} s",
            "Raise the broker's timeout, or lower the policy's total_timeout",
        )
    limits = [_limit(task, "soft_time_limit"), _limit(task, "time_limit")]
    limit = min((t for t in limits if t is not None), default=None)
    if limit is not None and policy.total_timeout is not None and limit < policy.total_timeout:
        yield (
            "W005",
            f"its time limit is {limit:g} s, and a run under its policy may take {policy.total_timeout:g} s",
            "Make the policy's total_timeout shorter than the time limit: what that cuts off on the wire is held",
        )
    attempt = min((t for t in (policy.attempt_timeout, policy.total_timeout) if t is not None), default=None)
    if policy.guard.lease is not None and attempt is not None and policy.guard.lease < attempt:
        yield (
            "W006",
            f"an attempt may take {attempt:g} s, and its key is given up after {policy.guard.lease:g} s",
            "Leave Guard.lease to None, or make it longer than an attempt",
        )
    if policy.lifetime is None:
        yield "W007", "its policy has no lifetime: a held call comes back for ever", "Set lifetime"
    if ledger_named(getattr(task, "retry_ledger", None)) is None:
        yield (
            "W008",
            "there is no ledger: what a worker had on the wire when it died is sent again",
            "Set RETRYPOLICY_LEDGER, or RETRYPOLICY['LEDGER'] in a Django project",
        )


def _whole(app: Any) -> _Found:
    if _broker(app) in _FORGETFUL:
        yield (
            "W009",
            f"a {_broker(app)} broker forgets what a worker had when it was killed",
            "Use it for tests only; RabbitMQ, Redis and SQS remember",
        )


def _broker(app: Any) -> str:
    driver: str = app.connection_for_read().transport.driver_type
    return driver


def _longest_run(task: Any, policy: RetryPolicy) -> float | None:
    limits = [policy.total_timeout, _limit(task, "time_limit")]
    return min((t for t in limits if t is not None), default=None)


def _limit(task: Any, name: str) -> float | None:
    given = getattr(task, name, None) or getattr(task.app.conf, f"task_{name}", None)
    return None if given is None else float(given)
