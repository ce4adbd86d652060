"""The Django app: the command that looks after killed workers' tasks, and the checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class DjangoTasksConfig(AppConfig):
    """Registers checks. Reads no setting and opens no database while Django starts."""

    name = "retrypolicy.queues.django_tasks"
    label = "retrypolicy_tasks"
    verbose_name = "Tasks under a policy"

    def ready(self) -> None:
        from retrypolicy.queues.django_tasks.checks import check_tasks

        checks.register(check_tasks, "retrypolicy")
