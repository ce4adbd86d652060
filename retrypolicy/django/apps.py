"""The Django app: settings, ledger, checks, admin and commands."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class RetryPolicyConfig(AppConfig):
    """Registers checks. Reads no setting and opens no database while Django starts."""

    name = "retrypolicy.django"
    label = "retrypolicy"
    verbose_name = "Sends"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from retrypolicy.django import checks

        checks.register_all()
        post_migrate.connect(_after_flush, sender=self, dispatch_uid="retrypolicy.after_flush")


def _after_flush(**kwargs: Any) -> None:
    """After a migration, and after each TransactionTestCase: it has emptied the tables, and memory must follow."""
    from retrypolicy.django import settings
    from retrypolicy.django.ledger import DatabaseLedger, testing

    if testing():
        ledger = settings.setting("LEDGER")
        opened = settings.ledger(ledger) if isinstance(ledger, str) else None
        if isinstance(opened, DatabaseLedger):
            opened.forget()
