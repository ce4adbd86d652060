"""The ledger in PostgreSQL: the same as the model, two statements a send, and what becomes of its table."""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from attrs import evolve

from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable, PolicyError
from retrypolicy.guard.key import Secret, fingerprint, key_digest
from retrypolicy.guard.ledger import Filter, Phase, Refused, Take, Taken
from retrypolicy.guard.opening import open_ledger
from retrypolicy.guard.postgres import PostgresLedger
from retrypolicy.testing.machines import LedgerMachine, Subject
from tests.scaling import stateful

from .servers import Postgres, postgres
from .takes import OTHER, OWNER, arm, key, phase, standing, take

__all__ = ["postgres"]

_running: list[Postgres] = []


@pytest.fixture(autouse=True, scope="module")
def _server(postgres: Postgres) -> None:
    _running[:] = [postgres]


def _table() -> str:
    return f"ledger_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def ledger(postgres: Postgres) -> Iterator[PostgresLedger]:
    ledger = PostgresLedger(postgres.dsn, table=_table())
    yield ledger
    ledger.close()


def ask(server: Postgres, text: str, *values: Any) -> list[Any]:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), values)
        return cursor.fetchall() if cursor.description else []


# -- the model


def _with_our_clock() -> Subject:
    clock = VirtualClock()
    ask(_running[0], "DROP TABLE IF EXISTS machine")
    ledger = PostgresLedger(_running[0].dsn, table="machine", clock=clock)
    return Subject(
        ledger=ledger,
        advance=clock.jump,
        reopen=lambda: PostgresLedger(_running[0].dsn, table="machine", clock=clock),
        close=ledger.close,
    )


def _with_the_servers_clock() -> Subject:
    ask(_running[0], "DROP TABLE IF EXISTS machine")
    ledger = PostgresLedger(_running[0].dsn, table="machine")
    return Subject(ledger=ledger, close=ledger.close, tolerance=2.0)


class AgainstTheModel(LedgerMachine):
    open = staticmethod(_with_our_clock)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = stateful(20, 25)


class AgainstTheModelByTheServersClock(LedgerMachine):
    open = staticmethod(_with_the_servers_clock)


TestAgainstTheModelByTheServersClock = AgainstTheModelByTheServersClock.TestCase
TestAgainstTheModelByTheServersClock.settings = stateful(10, 20)


# -- what it costs


def test_a_send_is_two_statements(ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    arm(ledger, "warm")
    said: list[bytes] = []
    execute = psycopg.Connection.execute

    def counted(connection: Any, text: bytes, *args: Any, **options: Any) -> Any:
        said.append(text)
        return execute(connection, text, *args, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    arm(ledger)
    assert len(said) == 1
    assert ledger.done(key(), {"status": 200})
    assert len(said) == 2
    assert not any(b";" in text for text in said)


def test_only_an_arm_waits_for_the_disk_whatever_the_session_says(postgres: Postgres) -> None:
    def behind() -> bool:
        """Is there anything that is written and not yet on the disk? The server's own writer comes every 10 s."""
        return bool(ask(postgres, "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()")[0][0])

    for session in ("off", "on"):
        ledger = PostgresLedger(f"{postgres.dsn} options='-c synchronous_commit={session}'", table=_table())
        arm(ledger, "warm")
        flushed, waiting = [], []
        for number in range(5):
            arm(ledger, number)
            flushed.append(not behind())
            ledger.done(key(number), {})
            waiting.append(behind())
        assert any(flushed), session
        assert any(waiting), session
        ledger.close()


def test_a_send_leaves_the_indexes_alone(postgres: Postgres, ledger: PostgresLedger) -> None:
    for number in range(300):
        arm(ledger, number)
        ledger.done(key(number), {"status": 200, "id": "0123456789"})
    ledger.close()  # a session reports its figures when it ends
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s"
    deadline = time.monotonic() + 10
    while (figures := ask(postgres, query, ledger._steps._table)[0])[0] < 300:
        assert time.monotonic() < deadline
    updated, hot = figures
    assert updated == 300
    assert hot >= 290


def test_purge_goes_in_steps_and_takes_what_is_over_only(postgres: Postgres) -> None:
    clock = VirtualClock()
    ledger = PostgresLedger(postgres.dsn, table=_table(), clock=clock, retention=100.0)
    for number in range(25):
        taken = arm(ledger, number)
        if number % 5 == 0:
            ledger.unknown(key(number), OWNER, taken.fence)
        elif number % 5 != 1:
            ledger.done(key(number), {})
    clock.advance(101)
    arm(ledger, "new")
    assert [ledger.purge(6) for _ in range(4)] == [6, 6, 3, 0]
    assert ledger.counts() == {Phase.HELD: 5, Phase.ARMED: 6}
    ledger.close()


def test_a_step_of_a_purge_is_short(ledger: PostgresLedger) -> None:
    arm(ledger)
    steps = ledger._steps.purge(500)
    statement = next(steps)
    assert statement.values is not None
    assert statement.values["limit"] == 25
    time.sleep(0.02)  # a slow server
    with pytest.raises(StopIteration) as end:
        steps.send([(True,)] * 25)
    assert end.value.value == 25


def test_purge_finds_what_is_over_by_the_index(postgres: Postgres, ledger: PostgresLedger) -> None:
    arm(ledger)
    statement = next(ledger._steps.purge(500))
    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(b"EXPLAIN " + statement.text.encode(), statement.values).fetchall()
    assert any("Index Cond: (collect_hour <=" in line for (line,) in plan)


def test_listing_goes_through_many_pages(ledger: PostgresLedger) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: ledger.claim(take(number, lease=0)), range(1100)))
    assert [record.key for record in ledger.records()] == sorted(key(number) for number in range(1100))
    assert list(ledger.records(Filter(phases=frozenset({Phase.HELD})))) == []
    assert ledger.counts() == {Phase.CLAIMED: 1100}


# -- what holds when others are there


def test_one_of_many_gets_the_key(ledger: PostgresLedger) -> None:
    start = threading.Barrier(8)

    def contend(number: int) -> Taken | Refused:
        start.wait()
        return ledger.arm(take(owner=bytes([number]) * 16))

    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            answers = list(threads.map(contend, range(8)))
            assert sum(isinstance(answer, Taken) for answer in answers) == 1
            record = standing(ledger)
            assert record.owner is not None
            ledger.park(key(), record.owner, record.fence)


def test_a_late_park_bounces_off_the_next_arm(ledger: PostgresLedger) -> None:
    first = arm(ledger)
    assert ledger.park(key(), OWNER, first.fence)
    second = arm(ledger)
    assert second.fence == first.fence + 1
    assert not ledger.park(key(), OWNER, first.fence)
    assert not ledger.unknown(key(), OWNER, first.fence)
    assert phase(ledger) is Phase.ARMED


def test_a_decision_that_grew_old_is_made_anew(postgres: Postgres) -> None:
    """A process is stopped between reading and writing: what it writes must not be of an earlier time."""
    clock = VirtualClock()
    ledger = PostgresLedger(postgres.dsn, table=_table(), clock=clock)
    first = arm(ledger)
    ledger.unknown(key(), OWNER, first.fence)
    steps = ledger._steps.arm(take(window=100.0))
    statement = steps.send(ledger._exchange(next(steps), 1e12))
    assert "UPDATE" in statement.text
    clock.advance(50.0)
    assert statement.values is not None
    late = evolve(statement, values={**statement.values, "clock": clock.now()})
    assert ledger._exchange(late, 1e12) == []
    assert phase(ledger) is Phase.HELD
    ledger.close()


def test_the_session_may_be_serializable(postgres: Postgres) -> None:
    ledger = PostgresLedger(
        f"{postgres.dsn} options='-c default_transaction_isolation=serializable'", table=_table(), timeout=20
    )
    with ThreadPoolExecutor(4) as threads:
        takes = [take(number % 5, owner=bytes([number]) * 16) for number in range(40)]
        answers = list(threads.map(ledger.arm, takes))
    assert sum(isinstance(answer, Taken) for answer in answers) == 5
    ledger.close()


def test_what_is_said_again_after_a_lost_reply_changes_nothing(
    ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(ledger, "warm")
    execute = psycopg.Connection.execute
    losses = 0

    def lossy(connection: Any, *args: Any, **options: Any) -> Any:
        nonlocal losses
        cursor = execute(connection, *args, **options)
        if losses:
            losses -= 1
            connection.close()
            raise psycopg.OperationalError("lost")
        return cursor

    monkeypatch.setattr(psycopg.Connection, "execute", lossy)
    losses = 1
    first = arm(ledger)
    assert (first.fence, first.attempts) == (1, 1)
    ledger.park(key(), OWNER, first.fence)
    ask = take()
    # What is lost here is the reply to the write: the first statement only reads.
    written = iter([0, 1])
    monkeypatch.setattr(
        psycopg.Connection, "execute", lambda *a, **o: lossy(*a, **o) if not _lose(written) else _lost(execute, *a, **o)
    )
    second = ledger.arm(ask)
    assert isinstance(second, Taken)
    assert (second.fence, second.attempts) == (2, 2)
    assert standing(ledger).token == ask.token


def _lose(written: Iterator[int]) -> bool:
    return next(written, 0) == 1


def _lost(execute: Callable[..., Any], connection: Any, *args: Any, **options: Any) -> Any:
    execute(connection, *args, **options)
    connection.close()
    raise psycopg.OperationalError("lost")


def test_a_forked_child_speaks_for_itself(ledger: PostgresLedger) -> None:
    arm(ledger, "parent")
    child = os.fork()
    if child == 0:
        try:
            arm(ledger, "child", OTHER)
            ledger.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    (connection,) = ledger._idle
    arm(ledger, "parent 2")
    assert list(ledger._idle) == [connection]  # the parent's session outlived the child
    assert standing(ledger, "child").owner == OTHER


def test_the_callers_words_are_not_in_the_server(postgres: Postgres, ledger: PostgresLedger) -> None:
    secret = Secret.of("pepper")
    ask_for = Take(
        key=key_digest(secret, "receipt/ada@example.com"),
        owner=os.urandom(16),
        token=os.urandom(16),
        fingerprint=fingerprint(secret, b'{"to": "ada@example.com"}'),
        lease=10,
    )
    assert isinstance(ledger.arm(ask_for), Taken)
    ledger.done(ask_for.key, {"status": 202})
    (row,) = ask(postgres, f"SELECT r::text FROM {ledger._steps._table} r")
    assert ask_for.key.hex() in row[0]
    for word in ("receipt", "ada@", "example.com", "pepper"):
        assert word not in row[0]


# -- poolers


def test_a_pool_of_the_callers_is_left_as_it_was(postgres: Postgres) -> None:
    pool_module = pytest.importorskip("psycopg_pool")
    with pool_module.ConnectionPool(postgres.dsn, min_size=1, max_size=1, open=True) as pool:
        ledger = PostgresLedger(pool, table=_table(), timeout=1.0)
        arm(ledger)
        assert ledger.done(key(), {"status": 200})
        with pool.connection() as mine:
            assert mine.autocommit is False
            # All connections are in use: nobody waits for ever.
            with pytest.raises(LedgerUnavailable, match="PoolTimeout"):
                ledger.arm(take("two"))
        arm(ledger, "two")
        ledger.close()
        assert not pool.closed


class _Pooler:
    """As pgbouncer by transactions: every statement may meet another server connection, which is then reset."""

    def __init__(self, dsn: str) -> None:
        self.connections = [psycopg.connect(dsn, autocommit=True, prepare_threshold=None) for _ in range(3)]
        self.turns = itertools.cycle(self.connections)

    @contextmanager
    def connection(self, timeout: float) -> Iterator[psycopg.Connection[Any]]:
        connection = next(self.turns)
        yield connection
        connection.execute("DISCARD ALL")


def test_every_statement_may_meet_another_session(postgres: Postgres) -> None:
    pooler = _Pooler(postgres.dsn)
    ledger = PostgresLedger(pooler, table=_table())
    for number in range(8):
        taken = arm(ledger, number)
        ledger.park(key(number), OWNER, taken.fence)
        arm(ledger, number)
        assert ledger.done(key(number), {})
    assert ledger.counts() == {Phase.DONE: 8}
    for connection in pooler.connections:
        connection.close()


def test_nothing_is_prepared_where_it_must_not_be(postgres: Postgres) -> None:
    for threshold, expected in ((None, False), (0, True)):
        ledger = PostgresLedger(postgres.dsn, table=_table(), prepare_threshold=threshold)
        for number in range(8):
            arm(ledger, number)
        (connection,) = ledger._idle
        prepared = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
        assert bool(prepared) is expected
        ledger.close()


# -- the table


def test_a_table_is_made_once_by_whoever_comes_first(postgres: Postgres) -> None:
    table = _table()
    ledgers = [PostgresLedger(postgres.dsn, table=table, timeout=20) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda ledger: ledger.arm(take()), ledgers))
    assert sum(isinstance(answer, Taken) for answer in answers) == 1
    for ledger in ledgers:
        ledger.close()


def test_a_table_in_a_schema_of_its_own(postgres: Postgres) -> None:
    ask(postgres, "CREATE SCHEMA IF NOT EXISTS guard")
    ledger = PostgresLedger(postgres.dsn, table="guard.sends")
    arm(ledger)
    assert ask(postgres, "SELECT count(*) FROM guard.sends") == [(1,)]
    ledger.close()


def test_other_tables_and_newer_ones_are_not_touched(postgres: Postgres) -> None:
    ask(postgres, "CREATE TABLE IF NOT EXISTS customers (id int)")
    with pytest.raises(ConfigurationError, match="something else"):
        PostgresLedger(postgres.dsn, table="customers").arm(take())
    table = _table()
    ledger = PostgresLedger(postgres.dsn, table=table)
    arm(ledger)
    ledger.close()
    ask(postgres, f"COMMENT ON TABLE {table} IS 'retrypolicy ledger, schema 2'")
    with pytest.raises(ConfigurationError, match="newer"):
        PostgresLedger(postgres.dsn, table=table).read(key())


def test_a_dropped_table_is_not_quietly_made_again(postgres: Postgres, ledger: PostgresLedger) -> None:
    arm(ledger)
    ask(postgres, f"DROP TABLE {ledger._steps._table}")
    with pytest.raises(LedgerUnavailable, match="UndefinedTable"):
        ledger.arm(take())


# -- what it is given


def test_a_url_carries_options(postgres: Postgres) -> None:
    table = _table()
    ledger = open_ledger(f"{postgres.url}&table={table}&timeout=1.5&prepare_threshold=none&application_name=mails")
    assert isinstance(ledger, PostgresLedger)
    arm(ledger)
    (connection,) = ledger._idle
    assert connection.prepare_threshold is None
    assert connection.execute("SHOW application_name").fetchone() == ("mails",)
    assert ask(postgres, f"SELECT count(*) FROM {table}") == [(1,)]
    ledger.close()
    folder = postgres.folder.replace("/", "%2F")
    elsewhere = open_ledger(f"postgresql:///postgres?table={table}&host={folder}&user=postgres")
    assert elsewhere.counts() == {Phase.ARMED: 1}
    elsewhere.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host:port/x?nonsense=1",
        "postgresql://me:secret@h/x?timeout=soon",
        "postgresql://me:se@secret@h/x",
        "postgresql://me:secret/x@h/x",
    ],
)
def test_a_bad_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises((ConfigurationError, PolicyError)) as caught:
        open_ledger(url)
    assert "secret" not in str(caught.value)
    assert "must be" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("timeout", 0), ("retention", -1), ("table", "x; drop table y"), ("table", "A"), ("table", "")]
)
def test_bad_options(name: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=name):
        PostgresLedger("postgresql://127.0.0.1:1/x", **{name: value})


def test_a_connection_of_the_callers_is_refused(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn) as mine, pytest.raises(ConfigurationError, match="ConnectionPool"):
        PostgresLedger(mine)


def test_nobody_there() -> None:
    ledger = PostgresLedger("postgresql://127.0.0.1:1/x")
    with pytest.raises(LedgerUnavailable, match="OperationalError"):
        ledger.arm(take())
    with pytest.raises(LedgerUnavailable):
        list(ledger.records())
    with pytest.raises(LedgerUnavailable):
        ledger.problems()
