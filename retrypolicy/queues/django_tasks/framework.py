"""The framework below: Django's own tasks (Django 6.0 and newer), or their backport for Django 5.2 (django-tasks)."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def _home() -> str:
    for name in ("django.tasks", "django_tasks"):
        try:
            import_module(name)
        except ImportError:
            continue
        return name
    raise ImportError(
        "retrypolicy.queues.django_tasks needs Django's tasks: Django 6.0 or newer, or for Django 5.2 their backport "
        "(pip install 'retrypolicy[django-tasks]')"
    )


HOME = _home()

# By name, since the two homes are two packages to a type checker.
Task: Any = import_module(f"{HOME}.base").Task
SUCCESSFUL: Any = import_module(f"{HOME}.base").TaskResultStatus.SUCCESSFUL
StockImmediateBackend: Any = import_module(f"{HOME}.backends.immediate").ImmediateBackend
StockDummyBackend: Any = import_module(f"{HOME}.backends.dummy").DummyBackend
task_started: Any = import_module(f"{HOME}.signals").task_started
