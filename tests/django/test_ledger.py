"""The ledger in a Django database."""

from __future__ import annotations

import io
import unittest
from pathlib import Path
from typing import Any

import django.test
import psycopg
import pytest
from django.core import mail
from django.core.management import call_command
from django.db import connections, transaction
from django.test import RequestFactory, override_settings
from django.test.utils import setup_test_environment, teardown_test_environment

from retrypolicy.django import settings
from retrypolicy.django.ledger import DatabaseLedger, open_any
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import MemoryLedger, Phase, SQLiteLedger
from retrypolicy.guard.ledger import Take
from retrypolicy.testing import Close, FaultServer
from tests.anymail.sending import mail as new_mail
from tests.anymail.sending import ok, send
from tests.guard.servers import Postgres


def take(key: bytes = b"k" * 32) -> Take:
    return Take(key=key, owner=b"o", token=b"t", fingerprint=b"f", lease=30.0)


def columns(alias: str, table: str = "retrypolicy_ledger") -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT column_name, data_type, is_nullable, is_generated FROM information_schema.columns "
            "WHERE table_name = %s ORDER BY ordinal_position",
            [table],
        )
        return list(cursor.fetchall())


# -- which store ------------------------------------------------------------------------


def test_a_name_without_a_colon_is_an_alias() -> None:
    assert isinstance(open_any("default"), DatabaseLedger)
    assert isinstance(open_any("memory:"), MemoryLedger)
    with pytest.raises(ConfigurationError, match="alias of a database: default"):
        open_any("nowhere")


def test_sqlite_has_a_file_of_its_own(tmp_path: Path) -> None:
    connections.settings["shop"] = {**connections.settings["default"], "NAME": str(tmp_path / "shop.sqlite3")}
    try:
        ledger = DatabaseLedger("shop")
        with transaction.atomic(using="shop"):
            with connections["shop"].cursor() as cursor:
                cursor.execute("CREATE TABLE orders (id integer)")
            ledger.arm(take())  # the request's transaction is in its way nowhere
            transaction.set_rollback(True, using="shop")
        assert isinstance(ledger.store, SQLiteLedger)
        ledger.close()
        assert (tmp_path / "shop.sqlite3.retrypolicy").exists()
        assert DatabaseLedger("shop").counts() == {Phase.ARMED: 1}
    finally:
        connections["shop"].close()
        del connections["shop"]
        del connections.settings["shop"]


def test_a_kind_of_database_that_can_not_hold_a_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(connections["default"]), "vendor", "oracle")
    with pytest.raises(ConfigurationError, match="only be in PostgreSQL or SQLite"):
        DatabaseLedger("default")


# -- PostgreSQL -------------------------------------------------------------------------


def test_migrate_makes_the_table_that_the_store_makes(on_postgres: str, postgres: Postgres) -> None:
    from retrypolicy.guard import PostgresLedger

    made = columns(on_postgres)
    assert len(made) == 19
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE beside_" + on_postgres)
    ledger = PostgresLedger(f"{postgres.dsn.replace('dbname=postgres', '')} dbname=beside_{on_postgres}")
    ledger.counts()
    ledger.close()
    with psycopg.connect(f"host={postgres.folder} user=postgres dbname=beside_{on_postgres}") as other:
        theirs = other.execute(
            "SELECT column_name, data_type, is_nullable, is_generated FROM information_schema.columns "
            "WHERE table_name = 'retrypolicy_ledger' ORDER BY ordinal_position"
        ).fetchall()
        comment = other.execute("SELECT obj_description('retrypolicy_ledger'::regclass)").fetchone()
        indexes = other.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'retrypolicy_ledger'").fetchall()
    assert made == theirs
    with connections[on_postgres].cursor() as cursor:
        cursor.execute("SELECT obj_description('retrypolicy_ledger'::regclass)")
        assert cursor.fetchone() == comment
        cursor.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'retrypolicy_ledger'")
        assert sorted(cursor.fetchall()) == sorted(indexes)


def test_migrate_after_the_store_was_here(on_postgres: str) -> None:
    call_command("migrate", "retrypolicy", "zero", database=on_postgres, verbosity=0)
    ledger = DatabaseLedger(on_postgres)
    ledger.arm(take())
    call_command("migrate", "retrypolicy", database=on_postgres, verbosity=0)
    assert ledger.counts() == {Phase.ARMED: 1}
    ledger.close()


def test_the_models_read_what_the_store_wrote(on_postgres: str) -> None:
    from retrypolicy.django.models import Send

    ledger = DatabaseLedger(on_postgres)
    ledger.arm(take())
    ledger.done(b"k" * 32, {"status": 200})
    found = Send.objects.using(on_postgres).get()
    assert (bytes(found.key), found.phase, found.result) == (b"k" * 32, Phase.DONE, '{"status":200}')
    assert str(found) == (b"k" * 6).hex()
    ledger.close()


@pytest.mark.parametrize("outcome", ["done", "held"])
def test_a_record_survives_the_rollback_of_the_request(outcome: str, on_postgres: str) -> None:
    """ATOMIC_REQUESTS: the view sends, then fails. Its order is gone, the record of the mail is not."""
    with connections[on_postgres].cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id integer)")

    answer = ok("postmark") if outcome == "done" else Close("request")
    with FaultServer([answer]) as server:

        def view(request: Any) -> None:
            with connections[on_postgres].cursor() as cursor:
                cursor.execute("INSERT INTO orders VALUES (42)")
            send("postmark", server, new_mail(idempotency_key="receipt/42"))
            raise ValueError("something after the mail")

        handler = django.test.Client().handler
        wrapped = handler.make_view_atomic(view) if hasattr(handler, "make_view_atomic") else None
        if wrapped is None:
            handler.load_middleware()
            wrapped = handler.make_view_atomic(view)
        with override_settings(RETRYPOLICY={"LEDGER": on_postgres}):
            for _ in range(2):
                with pytest.raises(Exception) as caught:
                    wrapped(RequestFactory().get("/"))
                assert type(caught.value).__module__.partition(".")[0] != "django"
            ledger = settings.required_ledger()
            assert ledger.counts() == {Phase.DONE if outcome == "done" else Phase.HELD: 1}
            ledger.close()
        assert server.complete == 1
    with connections[on_postgres].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders")
        assert cursor.fetchone() == (0,)


def test_a_database_that_is_away_is_our_own_error(on_postgres: str, postgres: Postgres) -> None:
    ledger = DatabaseLedger(on_postgres)
    ledger.counts()
    with FaultServer([ok("postmark")]) as server, override_settings(RETRYPOLICY={"LEDGER": ledger}):
        postgres.kill()
        connections[on_postgres].close()
        try:
            with pytest.raises(LedgerUnavailable):
                send("postmark", server, new_mail(idempotency_key="receipt/42"))
        finally:
            postgres.start()
        assert server.complete == 0
        assert send("postmark", server, new_mail(idempotency_key="receipt/42")) == 1
    ledger.close()


def test_the_check_finds_the_missing_table(on_postgres: str) -> None:
    def ids() -> list[str | None]:
        from retrypolicy.django.checks import check_database

        return [message.id for message in check_database(databases=[on_postgres])]

    with override_settings(RETRYPOLICY={"LEDGER": on_postgres}):
        assert set(ids()) <= {"retrypolicy.W007"}  # this server may be set up to forget
        call_command("migrate", "retrypolicy", "zero", database=on_postgres, verbosity=0)
        assert ids() == ["retrypolicy.W013"]
        settings.required_ledger().close()


# -- people's own tests -----------------------------------------------------------------


@pytest.fixture
def test_environment() -> Any:
    """What Django's test runner sets up."""
    setup_test_environment()
    yield
    teardown_test_environment()


def run(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.errors == result.failures == []
    return result


@pytest.mark.usefixtures("database", "test_environment")
def test_a_testcase_needs_no_ceremony() -> None:
    """Two tests use the same key; neither sees the other's record."""
    with FaultServer([ok("postmark"), ok("postmark")]) as server:

        class SendTest(django.test.TestCase):
            def one(self) -> None:
                assert send("postmark", server, new_mail(idempotency_key="receipt/42")) == 1
                with transaction.atomic():
                    assert send("postmark", server, new_mail(idempotency_key="receipt/42")) == 1

            test_a = one
            test_b = one

        with override_settings(RETRYPOLICY={"LEDGER": "default"}):
            assert run(SendTest).testsRun == 2
        assert server.complete == 2


@pytest.mark.usefixtures("test_environment")
def test_a_simple_testcase_opens_no_database() -> None:
    with FaultServer([ok("postmark")]) as server:

        class SendTest(django.test.SimpleTestCase):
            def test_send(self) -> None:
                for _ in range(2):
                    assert send("postmark", server, new_mail(idempotency_key="receipt/42")) == 1

        with override_settings(RETRYPOLICY={"LEDGER": "default"}):
            run(SendTest)
        assert server.complete == 1


@pytest.mark.usefixtures("database", "test_environment")
def test_a_transaction_testcase_starts_empty() -> None:
    with FaultServer([ok("postmark"), ok("postmark")]) as server:

        class SendTest(django.test.TransactionTestCase):
            def one(self) -> None:
                for _ in range(2):
                    assert send("postmark", server, new_mail(idempotency_key="receipt/42")) == 1

            test_a = one
            test_b = one

        with override_settings(RETRYPOLICY={"LEDGER": "default"}):
            assert run(SendTest).testsRun == 2
        assert server.complete == 2
    assert mail.outbox == []


@pytest.mark.usefixtures("test_environment")
def test_a_test_database_can_be_dropped(on_postgres: str) -> None:
    """No connection of the ledger's is left open while tests run."""
    ledger = DatabaseLedger(on_postgres)
    assert list(ledger.records()) == []
    ledger.arm(take())
    connections[on_postgres].close()
    name = connections[on_postgres].settings_dict["NAME"]
    parameters = {**connections[on_postgres].settings_dict, "NAME": "postgres"}
    with psycopg.connect(host=parameters["HOST"], user="postgres", dbname="postgres", autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name}")
        admin.execute(f"CREATE DATABASE {name}")


# -- the migration ----------------------------------------------------------------------


@pytest.mark.usefixtures("database")
def test_models_and_migrations_agree() -> None:
    out = io.StringIO()
    call_command("makemigrations", "retrypolicy", check=True, dry_run=True, stdout=out)
    assert "No changes" in out.getvalue()


def test_on_other_databases_a_key_is_a_limited_column() -> None:
    from retrypolicy.django.models import Send

    class Elsewhere:
        vendor = "mysql"

    assert Send._meta.get_field("key").db_type(Elsewhere()) == "varbinary(64)"
