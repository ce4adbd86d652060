"""Real `manage.py db_worker` processes, and the database that their tasks are in."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path
from typing import Any, Self

from django.core.management import call_command
from django.db import connections
from django.test import override_settings
from django_tasks_db.models import DBTaskResult

from ..guard.servers import Postgres  # noqa: TID252 - no other path is sure
from .workers import Site


class Router:
    """Leads all of Django to the database of the workers."""

    alias = "default"

    def db_for_read(self, *args: Any, **kwargs: Any) -> str:
        return Router.alias

    db_for_write = db_for_read


class TaskSite(Site):
    """Workers, and their database: in a file, or on PostgreSQL."""

    def __init__(self, place: Path, postgres: Postgres | None = None) -> None:
        super().__init__(place)
        self.alias = f"tasks_{uuid.uuid4().hex[:8]}"
        self.shop["database"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(place / "tasks.db")}
        self.shop["ledger"] = f"sqlite:///{place}/tasks.db.retrypolicy"  # where "default" is
        if postgres is not None:
            engine = {"ENGINE": "django.db.backends.postgresql", "USER": "postgres", "HOST": postgres.folder}
            self.shop["database"] = {**engine, "NAME": _new(postgres, self.alias)}
            self.shop["ledger"] = f"postgresql://postgres@/{self.alias}?host={postgres.folder}"
        self._settings = override_settings(DATABASE_ROUTERS=[f"{__name__}.Router"])

    def __enter__(self) -> Self:
        connections.settings[self.alias] = connections.configure_settings({"default": self.shop["database"]})["default"]
        Router.alias = self.alias
        self._settings.enable()
        for app in ("django_tasks_database", "retrypolicy"):
            call_command("migrate", app, database=self.alias, verbosity=0)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._settings.disable()
        connections[self.alias].close()
        del connections[self.alias]
        del connections.settings[self.alias]

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "DJANGO_SETTINGS_MODULE": "tests.queues.tasks_site"}

    def start(self) -> subprocess.Popen[bytes]:
        """A worker runs one task at a time."""
        return self.spawn("django", "db_worker", "--interval=0.05", "--no-startup-delay", "--no-reload", "-v0")

    def reap(self, older_than: float) -> str:
        """As cron does."""
        command = ["django", "retrypolicy_reap_tasks", f"--older-than={older_than}"]
        self.spawn(*command).wait()
        return self.log

    def status(self, result: Any) -> str:
        return str(DBTaskResult.objects.values_list("status", flat=True).get(pk=result.id))


def _new(postgres: Postgres, name: str) -> str:
    import psycopg

    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return name
