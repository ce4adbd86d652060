"""The Django app: system checks, the command, and what is done when rows of django-mailer come and go."""

from __future__ import annotations

from traceback import walk_stack
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db.models.signals import pre_delete, pre_save


class DjangoMailerConfig(AppConfig):
    """Put behind "mailer" in `INSTALLED_APPS`."""

    name = "retrypolicy.queues.django_mailer"
    label = "retrypolicy_django_mailer"
    verbose_name = "Queued mail under a policy"

    def ready(self) -> None:
        from mailer.models import Message

        from retrypolicy.queues.django_mailer.checks import check

        checks.register(check, "retrypolicy")
        pre_save.connect(stamp_new, sender=Message, dispatch_uid="retrypolicy.stamp_new")
        pre_delete.connect(keep_unreadable, sender=Message, dispatch_uid="retrypolicy.keep_unreadable")


def stamp_new(sender: Any, instance: Any, **kwargs: Any) -> None:
    """Stamps what comes into the queue past `DbBackend`: `mailer.send_mail()`, `make_message().save()`."""
    from retrypolicy.queues.django_mailer.stamp import is_stamped, readable, stamp

    email = readable(instance) if instance._state.adding else None
    if email is not None and not is_stamped(email):
        instance.email = stamp(email)


def keep_unreadable(sender: Any, instance: Any, **kwargs: Any) -> None:
    """django-mailer deletes what it can't unpickle. Raises `Unreadable` for its error handler; others may delete."""
    from mailer.engine import send_all

    from retrypolicy.queues.django_mailer.stamp import Unreadable, readable

    # Nothing but the stack tells who deletes: a row looks the same to an administrator.
    if any(frame.f_code is send_all.__code__ for frame, _ in walk_stack(None)) and readable(instance) is None:
        raise Unreadable("the message can't be unpickled; nothing was sent, and it stays in the queue")
