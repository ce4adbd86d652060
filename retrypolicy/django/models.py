"""The two tables: the ledger's, and the outbox's.

The ledger's is here for `migrate`, permissions and the admin only. Its rows belong to `retrypolicy.guard`, whose stores
make every change one atomic, durable step, which models can't. The outbox's is the opposite: it belongs to whatever
transaction the message is put in.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from retrypolicy.django.ledger import TABLE


class DigestField(models.BinaryField):  # type: ignore[type-arg]  # django-stubs makes it generic, Django 5.2 does not
    """Up to 64 bytes that may be a key: some databases index only binary columns of limited length."""

    def db_type(self, connection: Any) -> str | None:
        limited = {"mysql": "varbinary(64)", "oracle": "raw(64)"}
        return limited.get(connection.vendor) or super().db_type(connection)


class Send(models.Model):
    """One key of the ledger. See `retrypolicy.guard.Record`."""

    key = DigestField(primary_key=True, editable=False)
    phase = models.SmallIntegerField()
    taint = models.BooleanField()
    fence = models.BigIntegerField()
    generation = models.IntegerField()
    owner = models.BinaryField(null=True)
    token = models.BinaryField(null=True)
    lease = models.FloatField()
    first_seen = models.FloatField()
    first_armed = models.FloatField(null=True)
    last_armed = models.FloatField(null=True)
    attempts = models.IntegerField()
    not_before = models.FloatField()
    fingerprint = models.BinaryField()
    result = models.TextField(null=True)
    label = models.TextField()
    provider = models.TextField()
    expires = models.FloatField()

    class Meta:
        """The table that the stores use, too."""

        db_table = TABLE
        default_permissions = ("view", "change")
        verbose_name = "send"
        verbose_name_plural = "sends"

    def __str__(self) -> str:
        return bytes(self.key).hex()[:12]


class OutboxMessage(models.Model):
    """A message that waits to be sent. Rows are written by `retrypolicy.django.outbox` only; settled, they are deleted.

    Times are wall-clock seconds since the epoch.
    """

    class State(models.IntegerChoices):
        """What is known of it. The first two are looked at when they are due; the others wait for somebody."""

        WAITING = 1, "waiting"
        HELD = 2, "held"
        FAILED = 3, "failed"
        UNREADABLE = 4, "unreadable"

    key = models.CharField(max_length=255, unique=True)
    digest = models.CharField(max_length=64, blank=True, db_index=True)  # the ledger's record, once it is held
    state = models.SmallIntegerField(choices=State.choices, default=State.WAITING)
    content = models.TextField()
    label = models.TextField(blank=True)
    policy = models.CharField(max_length=100, blank=True)
    mailer = models.CharField(max_length=100, blank=True)
    since = models.FloatField()  # its lifetime begins here
    due = models.FloatField()  # nobody looks at it before; whoever takes it puts it off
    turn = models.IntegerField(default=0)  # +1 each time that somebody takes it
    unfinished = models.IntegerField(default=0)  # turns that never came to an end
    trouble = models.TextField(blank=True)

    class Meta:
        """Found by what is due."""

        db_table = "retrypolicy_outbox"
        default_permissions = ("view", "change", "delete")
        indexes = (models.Index(fields=["state", "due"], name="retrypolicy_outbox_due"),)
        verbose_name = "message in the outbox"
        verbose_name_plural = "messages in the outbox"

    def __str__(self) -> str:
        return self.label or f"message {self.pk}"
