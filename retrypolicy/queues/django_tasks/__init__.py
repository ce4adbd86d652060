"""Django's tasks under a policy: the task's own runs and the request's retries are one call, with one key.

A run that has to wait enqueues the task again, for later (`run_after`) and with the same key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrypolicy.queues.django_tasks.backends import DummyBackend, ImmediateBackend, PolicyBackend
from retrypolicy.queues.django_tasks.follow import follow
from retrypolicy.queues.django_tasks.tasks import PolicyTask, with_policy

if TYPE_CHECKING:
    from retrypolicy.queues.django_tasks.database import DatabaseBackend as DatabaseBackend
    from retrypolicy.queues.django_tasks.reaper import Reaped as Reaped
    from retrypolicy.queues.django_tasks.reaper import reap as reap

__all__ = [
    "DatabaseBackend",
    "DummyBackend",
    "ImmediateBackend",
    "PolicyBackend",
    "PolicyTask",
    "Reaped",
    "follow",
    "reap",
    "with_policy",
]


def __getattr__(name: str) -> Any:
    # Lazily: tasks in the database are not everybody's.
    if name == "DatabaseBackend":
        from retrypolicy.queues.django_tasks.database import DatabaseBackend

        return DatabaseBackend
    if name in ("Reaped", "reap"):
        from retrypolicy.queues.django_tasks import reaper

        return getattr(reaper, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
