"""Task backends on which `@task(retry_policy=...)` works."""

from __future__ import annotations

from typing import Any

from retrypolicy.queues.django_tasks.framework import StockDummyBackend, StockImmediateBackend
from retrypolicy.queues.django_tasks.tasks import PolicyTask


class PolicyBackend:
    """What makes a backend ours: `class Backend(PolicyBackend, SomebodysBackend)`.

    The backend must send Django's signal `task_started`, and run tasks later (`supports_defer`) for those that have to
    wait.
    """

    task_class: Any = PolicyTask


class ImmediateBackend(PolicyBackend, StockImmediateBackend):
    """Django's own for development: runs a task at once, and never again. What would come back fails instead."""


class DummyBackend(PolicyBackend, StockDummyBackend):
    """Django's own for tests: keeps what was enqueued, and runs nothing."""
