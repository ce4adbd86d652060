"""The base for Celery tasks of a Django project: with `delay_on_commit`, as Celery's own base for Django has it."""

from __future__ import annotations

from celery.contrib.django.task import DjangoTask

from retrypolicy.queues.celery import PolicyTask


class DjangoPolicyTask(PolicyTask, DjangoTask):
    """`PolicyTask` with `delay_on_commit` and `apply_async_on_commit` (which takes `idempotency_key=`, too)."""

    abstract = True
