"""The ledger's table. On PostgreSQL exactly as `PostgresLedger` makes it, which may have been here before us."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models

import retrypolicy.django.models

POSTGRESQL = """
CREATE TABLE IF NOT EXISTS retrypolicy_ledger (
    key bytea PRIMARY KEY, phase smallint NOT NULL, taint boolean NOT NULL, fence bigint NOT NULL,
    generation integer NOT NULL, owner bytea, token bytea, lease float8 NOT NULL, first_seen float8 NOT NULL,
    first_armed float8, last_armed float8, attempts integer NOT NULL, not_before float8 NOT NULL,
    fingerprint bytea NOT NULL, result text, label text NOT NULL, provider text NOT NULL, expires float8 NOT NULL,
    collect_hour integer NOT NULL GENERATED ALWAYS AS (least(floor(expires / 3600), 2147483647)::integer) STORED
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS retrypolicy_ledger_collect ON retrypolicy_ledger (collect_hour);
COMMENT ON TABLE retrypolicy_ledger IS 'retrypolicy ledger, schema 1';
"""


class CreateLedger(migrations.CreateModel):
    """`CreateModel`, with the store's own statements where the store lives in this kind of database."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.name)
        if schema_editor.connection.vendor != "postgresql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        elif self.allow_migrate_model(schema_editor.connection.alias, model):
            schema_editor.execute(POSTGRESQL, params=None)


class Migration(migrations.Migration):
    """One table."""

    initial = True
    dependencies: ClassVar[Any] = []
    operations: ClassVar[Any] = [
        CreateLedger(
            name="Send",
            fields=[
                ("key", retrypolicy.django.models.DigestField(editable=False, primary_key=True, serialize=False)),
                ("phase", models.SmallIntegerField()),
                ("taint", models.BooleanField()),
                ("fence", models.BigIntegerField()),
                ("generation", models.IntegerField()),
                ("owner", models.BinaryField(null=True)),
                ("token", models.BinaryField(null=True)),
                ("lease", models.FloatField()),
                ("first_seen", models.FloatField()),
                ("first_armed", models.FloatField(null=True)),
                ("last_armed", models.FloatField(null=True)),
                ("attempts", models.IntegerField()),
                ("not_before", models.FloatField()),
                ("fingerprint", models.BinaryField()),
                ("result", models.TextField(null=True)),
                ("label", models.TextField()),
                ("provider", models.TextField()),
                ("expires", models.FloatField()),
            ],
            options={
                "verbose_name": "send",
                "verbose_name_plural": "sends",
                "db_table": "retrypolicy_ledger",
                "default_permissions": ("view", "change"),
            },
        ),
    ]
