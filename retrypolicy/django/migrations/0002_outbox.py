"""The outbox's table: messages that wait to be sent."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """One more table."""

    dependencies: ClassVar[Any] = [
        ("retrypolicy", "0001_ledger"),
    ]

    operations: ClassVar[Any] = [
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=255, unique=True)),
                ("digest", models.CharField(blank=True, db_index=True, max_length=64)),
                (
                    "state",
                    models.SmallIntegerField(
                        choices=[(1, "waiting"), (2, "held"), (3, "failed"), (4, "unreadable")], default=1
                    ),
                ),
                ("content", models.TextField()),
                ("label", models.TextField(blank=True)),
                ("policy", models.CharField(blank=True, max_length=100)),
                ("mailer", models.CharField(blank=True, max_length=100)),
                ("since", models.FloatField()),
                ("due", models.FloatField()),
                ("turn", models.IntegerField(default=0)),
                ("unfinished", models.IntegerField(default=0)),
                ("trouble", models.TextField(blank=True)),
            ],
            options={
                "verbose_name": "message in the outbox",
                "verbose_name_plural": "messages in the outbox",
                "db_table": "retrypolicy_outbox",
                "default_permissions": ("view", "change", "delete"),
                "indexes": [models.Index(fields=["state", "due"], name="retrypolicy_outbox_due")],
            },
        ),
    ]
