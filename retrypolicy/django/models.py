"""The ledger's table as Django knows it: for `migrate`, permissions and the admin. Nothing here reads or writes it.

Rows belong to `retrypolicy.guard`: its stores make every change one atomic, durable step, which models can't.
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
