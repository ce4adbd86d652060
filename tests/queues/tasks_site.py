"""The Django settings of the worker processes; what they must know is in the environment variable SHOP."""

from __future__ import annotations

from .shop import SECRET, SHOP

INSTALLED_APPS = ["django_tasks_db", "retrypolicy.django", "retrypolicy.queues.django_tasks"]
DATABASES = {"default": SHOP["database"]}
TASKS = {
    "default": {"BACKEND": "retrypolicy.queues.django_tasks.DatabaseBackend"},
    "stock": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    "immediate": {"BACKEND": "retrypolicy.queues.django_tasks.ImmediateBackend"},
    "dummy": {"BACKEND": "retrypolicy.queues.django_tasks.DummyBackend"},
}
RETRYPOLICY = {"LEDGER": "default", "SECRET": SECRET}
SECRET_KEY = "not the ledger's"
USE_TZ = True
