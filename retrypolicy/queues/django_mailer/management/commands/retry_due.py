"""`manage.py retry_due`: in the place of django-mailer's `retry_deferred`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.db.models import Count, F, OuterRef, Subquery
from django.db.models.functions import Coalesce
from mailer.models import PRIORITY_DEFERRED, PRIORITY_MEDIUM, Message

from retrypolicy.queues.django_mailer import handler, lock
from retrypolicy.queues.django_mailer.models import Deferral


class Command(BaseCommand):
    """Puts back what is due; removes the lock of a process that is dead."""

    help = "Put deferred messages that are due back into the queue, and remove a lock whose owner is dead."

    def handle(self, *args: Any, **options: Any) -> None:
        """Say in one line what was done. A message that somebody else deferred is due at once."""
        if lock.break_stale():
            self.stdout.write(f"removed a stale lock: {lock.lock_file()}")
        waiting = Deferral.objects.filter(due__gt=handler.clock.now(), message__priority=PRIORITY_DEFERRED)
        mine = Deferral.objects.filter(pk=OuterRef("pk"))
        due = (
            Message.objects.deferred()
            .exclude(pk__in=waiting.values("pk"))
            .update(
                priority=Coalesce(Subquery(mine.values("priority")), PRIORITY_MEDIUM), retry_count=F("retry_count") + 1
            )
        )
        if not options["verbosity"]:
            return  # from cron
        counts = waiting.order_by("state").values_list("state").annotate(Count("pk"))
        rest = ", ".join(f"{count} {Deferral.State(state).label}" for state, count in counts)
        self.stdout.write(f"{due} message(s) due; waiting: {rest or 'none'}")
