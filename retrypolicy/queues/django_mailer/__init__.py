"""django-mailer under a policy: its queue keeps the messages, the ledger what became of them.

An app for `INSTALLED_APPS`; `DbBackend`, `EmailBackend` and `on_error` go into three settings. See
docs/django-mailer.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrypolicy.queues.django_mailer.backends import DbBackend as DbBackend
    from retrypolicy.queues.django_mailer.backends import EmailBackend as EmailBackend
    from retrypolicy.queues.django_mailer.handler import on_error as on_error

__all__ = ["DbBackend", "EmailBackend", "on_error"]


def __getattr__(name: str) -> Any:
    # Lazily: an app is imported before there are models.
    if name in ("DbBackend", "EmailBackend"):
        from retrypolicy.queues.django_mailer import backends

        return getattr(backends, name)
    if name == "on_error":
        from retrypolicy.queues.django_mailer.handler import on_error

        return on_error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
