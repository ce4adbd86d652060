"""reap(): tasks in the database whose worker was killed, or whose way back failed, become ready again."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from attrs import frozen
from django.utils import timezone

from retrypolicy.errors import ConfigurationError, NotPublished, RetryPolicyError, SendFailed
from retrypolicy.queues.django_tasks.framework import SUCCESSFUL
from retrypolicy.queues.django_tasks.job import NOTE
from retrypolicy.queues.django_tasks.tasks import policy_of
from retrypolicy.queues.names import policy_named
from retrypolicy.step import kills_its_workers

READY, ENDED, FAILED, LEFT = "ready", "ended", "failed", "left alone"


@frozen(kw_only=True)
class Reaped:
    """What became of one row: `fate` is "ready", "ended", "failed" or "left alone"."""

    id: str
    task: str
    fate: str
    why: str

    def __str__(self) -> str:
        return f"{self.id}  {self.task}  {self.fate}: {self.why}"


def reap(*, older_than: float = 900.0, dry_run: bool = False) -> list[Reaped]:
    """Make ready what has been RUNNING for `older_than` seconds: its worker is dead. Only tasks under a policy.

    A task that is alive all the same is run a second time; its calls wait for those of the first run. A task that was
    begun as often as its policy has attempts, and never ended, fails: it may kill its workers. A task that already
    goes on as another row ends. Safe to run at any time, and by many at once.

    Raises `ConfigurationError` for seconds that can't be; what the database raises.
    """
    from django_tasks_db.models import DBTaskResult

    if not (math.isfinite(older_than) and older_than >= 0.0):
        raise ConfigurationError(f"reap: older_than={older_than!r} is not allowed; must be seconds, at least 0")
    rows: Any = DBTaskResult.objects
    before = timezone.now() - timedelta(seconds=older_than)
    lost = f"{NotPublished.__module__}.{NotPublished.__qualname__}"
    dead = list(rows.running().filter(started_at__lte=before).order_by("started_at"))
    dead += rows.failed().filter(exception_class_path=lost).order_by("finished_at")
    return [found for row in dead if (found := _one(row, dry_run)) is not None]


def _one(row: Any, dry_run: bool) -> Reaped | None:
    """None: somebody else was faster."""
    fate, why, change = _verdict(row)
    if change and not dry_run:
        same = type(row).objects.filter(pk=row.pk, status=row.status, started_at=row.started_at)
        if not same.update(**change):
            return None
    return Reaped(id=str(row.pk), task=row.task_path, fate=fate, why=why)


def _verdict(row: Any) -> tuple[str, str, dict[str, Any]]:
    over = {"finished_at": timezone.now(), "exception_class_path": "", "traceback": ""}
    try:
        named = policy_of(row.task)
        policy = None if named is None else policy_named(named)
    except Exception as error:  # whatever a module of somebody's tasks raises when it is imported
        said = str(error) if isinstance(error, RetryPolicyError) else type(error).__name__
        return LEFT, f"its task can't be loaded ({said})", {}
    if policy is None:
        return LEFT, "it is under no policy, and a second run may send twice", {}
    later = type(row).objects.filter(
        task_path=row.task_path,
        enqueued_at__gte=row.enqueued_at,
        **{f"args_kwargs__kwargs__{NOTE}__after": str(row.pk)},
    )
    next_row = later.first()
    if next_row is not None:
        note = {NOTE: {"continues_as": str(next_row.pk), "run_after": next_row.run_after.isoformat(), "why": "reaped"}}
        return ENDED, f"it goes on as {next_row.pk}", {**over, "status": SUCCESSFUL, "return_value": note}
    died = len(row.worker_ids)
    if kills_its_workers(died, policy):
        said = f"it was begun {died} times and never came to an end: it may kill its workers"
        path = f"{SendFailed.__module__}.{SendFailed.__qualname__}"
        return (
            FAILED,
            said,
            {**over, "status": "FAILED", "exception_class_path": path, "traceback": f"{path}: {said}\n"},
        )
    change = {"status": "READY", "started_at": None, "finished_at": None, "exception_class_path": "", "traceback": ""}
    return READY, "its worker is dead" if row.status == "RUNNING" else "its queue was away", change
