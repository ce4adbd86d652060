"""The backend for tasks in the database: that of django-tasks-db, for tasks under a policy."""

from __future__ import annotations

try:
    from django_tasks_db import backend as stock
except ImportError as error:
    raise ImportError(
        "retrypolicy.queues.django_tasks.DatabaseBackend needs django-tasks-db: pip install 'retrypolicy[django-tasks]'"
    ) from error

from retrypolicy.queues.django_tasks.backends import PolicyBackend


class DatabaseBackend(PolicyBackend, stock.DatabaseBackend):
    """Tasks in the database, run by `manage.py db_worker`. Rows of killed workers: `retrypolicy_reap_tasks`."""
