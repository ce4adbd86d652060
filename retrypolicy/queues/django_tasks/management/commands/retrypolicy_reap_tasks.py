"""`manage.py retrypolicy_reap_tasks`: tasks of killed workers become ready again. Made for cron."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from retrypolicy.errors import RetryPolicyError
from retrypolicy.queues.django_tasks.reaper import LEFT, reap


class Command(BaseCommand):
    """See `reap`."""

    help = "Make tasks ready again whose worker was killed. Exit code 1: some were left alone, somebody must look."

    def add_arguments(self, parser: CommandParser) -> None:
        """Few."""
        parser.add_argument(
            "--older-than",
            type=float,
            default=900.0,
            metavar="SECONDS",
            help="a task that has been running for so long has no worker any more (default: %(default)g)",
        )
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")

    def handle(self, *args: Any, **options: Any) -> None:
        """One line for each task; what is wrong is told in one line."""
        try:
            found = reap(older_than=options["older_than"], dry_run=options["dry_run"])
        except RetryPolicyError as error:
            raise CommandError(str(error)) from None
        for reaped in found:
            self.stdout.write(str(reaped))
        if not found:
            self.stdout.write("nothing to do")
        left = Counter(reaped.fate for reaped in found)[LEFT]
        if left:
            raise CommandError(f"{left} of {len(found)} left alone")
