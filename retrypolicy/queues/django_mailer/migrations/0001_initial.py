"""The table of what was put off."""

from __future__ import annotations

from typing import Any, ClassVar

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """One table."""

    initial = True
    dependencies: ClassVar[Any] = [("mailer", "0006_message_retry_count")]
    operations: ClassVar[Any] = [
        migrations.CreateModel(
            name="Deferral",
            fields=[
                (
                    "message",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="deferral",
                        serialize=False,
                        to="mailer.message",
                    ),
                ),
                ("since", models.FloatField()),
                ("due", models.FloatField(db_index=True)),
                ("priority", models.PositiveSmallIntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("retry", "to be sent"),
                            ("wait", "in another sender's hands"),
                            ("held", "held until its key is resolved"),
                            ("unreadable", "can't be unpickled"),
                        ],
                        max_length=10,
                    ),
                ),
            ],
            options={"verbose_name": "deferral", "verbose_name_plural": "deferrals"},
        ),
    ]
