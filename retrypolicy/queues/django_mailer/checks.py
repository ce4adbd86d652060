"""System checks: what a project's settings get wrong for django-mailer under a policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core import checks

from retrypolicy.django import settings
from retrypolicy.errors import ConfigurationError, RetryPolicyError

HERE = "retrypolicy.queues.django_mailer"
_DOCS = "See docs/django-mailer.md."


def check(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """All that can be known without a database."""
    return list(_findings()) if apps.is_installed(HERE) else []  # a test may have taken the app out


def _findings() -> Iterator[checks.CheckMessage]:
    from retrypolicy.queues.django_mailer.backends import check_mailers, sender

    try:
        check_mailers()
    except ConfigurationError as error:
        yield checks.Error(str(error), hint=_DOCS, id="retrypolicy.E021")
    for number, setting, name in (
        ("E022", "MAILER_EMAIL_BACKEND", "EmailBackend"),
        ("E023", "MAILER_ERROR_HANDLER", "on_error"),
    ):
        if getattr(django_settings, setting, None) != f"{HERE}.{name}":
            said = f"{setting} is not {HERE}.{name}"
            yield checks.Error(said, hint=f"Set it. {_DOCS}", id=f"retrypolicy.{number}")
    if getattr(django_settings, "EMAIL_BACKEND", None) == "mailer.backend.DbBackend":
        yield checks.Warning(
            "EMAIL_BACKEND is django-mailer's own: a message that is queued in an operation loses its key",
            hint=f"Use {HERE}.DbBackend.",
            id="retrypolicy.W021",
        )
    try:
        _, options = sender()
        ledger = settings.ledger(options.get("retry_ledger"))
    except RetryPolicyError as error:
        yield checks.Error(str(error), hint=f"Correct it. {_DOCS}", id="retrypolicy.E024")
        return
    if ledger is None:
        yield checks.Warning(
            "there is no ledger: what was on the wire when its process died is sent again",
            hint="Set RETRYPOLICY['LEDGER'], for instance to 'default'.",
            id="retrypolicy.W022",
        )
    if options["retry_policy"].lifetime is None:
        yield checks.Warning(
            "the queue's policy has no lifetime: a held message comes back for ever",
            hint="Give it a lifetime.",
            id="retrypolicy.W023",
        )
