from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from retrypolicy import Constant, RetryPolicy
from retrypolicy.guard import MemoryLedger
from tests.guard.servers import Postgres, postgres

__all__ = ["postgres"]

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))


@pytest.fixture(scope="session")
def database() -> None:
    """The tables of all apps, in the memory of this process."""
    call_command("migrate", verbosity=0)


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def project(ledger: MemoryLedger) -> Iterator[dict[str, Any]]:
    """The setting `RETRYPOLICY`. What a test puts into the dict counts."""
    setting: dict[str, Any] = {"LEDGER": ledger, "POLICY": AT_ONCE}
    with override_settings(RETRYPOLICY=setting):
        yield setting


@pytest.fixture
def on_postgres(postgres: Postgres) -> Iterator[str]:
    """The alias of a new Django database on a real PostgreSQL, migrated, with ATOMIC_REQUESTS."""
    import uuid

    import psycopg

    name = f"shop_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    alias = f"postgres_{name}"
    settings = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": "postgres",
        "HOST": postgres.folder,
        "ATOMIC_REQUESTS": True,
        "OPTIONS": {"assume_role": "postgres"},
    }
    connections.settings[alias] = connections.configure_settings({"default": settings})["default"]
    call_command("migrate", "retrypolicy", database=alias, verbosity=0)
    yield alias
    connections[alias].close()
    del connections[alias]
    del connections.settings[alias]
