"""The ledger in PostgreSQL when the server hangs, dies, loses its standby, or is set up to forget."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from retrypolicy.errors import LedgerUnavailable
from retrypolicy.guard.ledger import Phase
from retrypolicy.guard.postgres import PostgresLedger

from .servers import Postgres, postgres
from .takes import OWNER, arm, key, phase, take

__all__ = ["postgres"]


@pytest.fixture
def ledger(postgres: Postgres) -> Iterator[PostgresLedger]:
    ledger = PostgresLedger(postgres.dsn, table=f"ledger_{uuid.uuid4().hex[:12]}", timeout=1.0)
    yield ledger
    ledger.close()


def ask(server: Postgres, text: str, *values: Any) -> list[Any]:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), values)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def setting(server: Postgres, name: str, value: str) -> Iterator[None]:
    """A setting of the whole server for a while."""

    def put(text: str) -> None:
        ask(server, text)
        ask(server, "SELECT pg_reload_conf()")
        time.sleep(0.05)

    put(f"ALTER SYSTEM SET {name} = '{value}'")
    try:
        deadline = time.monotonic() + 10
        while ask(server, f"SHOW {name}") != [(value,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        put(f"ALTER SYSTEM RESET {name}")


def test_kill_9_loses_no_acknowledged_arm(postgres: Postgres) -> None:
    ledger = PostgresLedger(
        f"{postgres.dsn} options='-c synchronous_commit=off'", table=f"ledger_{uuid.uuid4().hex[:12]}"
    )
    arm(ledger, "warm")
    acknowledged: list[int] = []

    def send(thread: int) -> None:
        for number in range(thread * 1_000_000, (thread + 1) * 1_000_000):
            try:
                arm(ledger, number)
            except LedgerUnavailable:
                return
            acknowledged.append(number)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 200:
        time.sleep(0.01)
    postgres.kill()
    for thread in threads:
        thread.join()
    postgres.start()
    after = {record.key for record in ledger.records()}
    assert len(acknowledged) >= 200
    assert [number for number in acknowledged if key(number) not in after] == []
    ledger.close()


def test_a_restart_is_not_noticed(postgres: Postgres, ledger: PostgresLedger) -> None:
    with ThreadPoolExecutor(4) as threads:  # several connections, all of which end
        list(threads.map(lambda number: arm(ledger, number), range(12)))
    assert len(ledger._idle) > 1
    postgres.kill()
    postgres.start()
    arm(ledger, 20)
    assert phase(ledger, 1) is Phase.ARMED


def test_a_session_that_was_ended_is_made_anew(postgres: Postgres, ledger: PostgresLedger) -> None:
    arm(ledger, 1)
    (connection,) = ledger._idle
    ask(postgres, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
    arm(ledger, 2)
    assert ledger.done(key(1), {})


def test_a_server_that_is_gone_or_hangs_is_unavailable_in_time_and_then_back(
    postgres: Postgres, ledger: PostgresLedger
) -> None:
    arm(ledger, 1)
    for stop, back in [
        (postgres.kill, postgres.start),
        (lambda: postgres.signal(signal.SIGSTOP), lambda: postgres.signal(signal.SIGCONT)),
    ]:
        stop()
        try:
            for act in (lambda: ledger.arm(take(2)), lambda: ledger.done(key(1), {})):
                begin = time.monotonic()
                with pytest.raises(LedgerUnavailable):
                    act()
                assert time.monotonic() - begin < 5
        finally:
            back()
        assert phase(ledger, 1) in (Phase.ARMED, Phase.DONE)
    # The arm may have been read after all, by the server that hung: then its owner is taken for dead, nobody sends.
    assert phase(ledger, 2) in (None, Phase.ARMED)


def test_a_row_that_somebody_locks_does_not_hold_us_up(postgres: Postgres, ledger: PostgresLedger) -> None:
    taken = arm(ledger)
    with psycopg.connect(postgres.dsn) as stranger:
        stranger.execute(f"SELECT 1 FROM {ledger._steps._table} FOR UPDATE".encode())
        begin = time.monotonic()
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            ledger.unknown(key(), OWNER, taken.fence)
        assert time.monotonic() - begin < 5
    assert ledger.done(key(), {})


def test_an_arm_that_no_standby_acknowledges_is_no_arm(postgres: Postgres, ledger: PostgresLedger) -> None:
    arm(ledger, "warm")
    with setting(postgres, "synchronous_standby_names", "nobody"):
        begin = time.monotonic()
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            ledger.arm(take("waits"))
        assert time.monotonic() - begin < 5
        ask(postgres, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

        # An administrator lets the commit go: for the server that is a success with a warning.
        patient = PostgresLedger(postgres.dsn, table=ledger._steps._table, timeout=20)
        failed: list[str] = []

        def send() -> None:
            try:
                patient.arm(take("let go"))
            except LedgerUnavailable as error:
                failed.append(str(error))

        thread = threading.Thread(target=send)
        thread.start()
        while thread.is_alive():
            ask(postgres, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            time.sleep(0.02)
        assert "standby" in failed[0]
        # Nothing was sent, and nothing is left to be held.
        assert phase(patient, "let go") is Phase.CLAIMED
        # What was lazy before still is.
        assert ledger.done(key("warm"), {})
        patient.close()
    assert arm(ledger, "let go").fence == 2


def test_problems_are_told(postgres: Postgres, ledger: PostgresLedger) -> None:
    assert "fsync" in ledger.problems()[0]  # off in tests: they kill processes, not machines
    with setting(postgres, "fsync", "on"):
        assert ledger.problems() == []
    ask(postgres, f"ALTER TABLE {ledger._steps._table} SET UNLOGGED")
    assert "unlogged" in ledger.problems()[1]
