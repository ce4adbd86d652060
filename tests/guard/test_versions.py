"""Ledgers that another release made: an older one is brought up to date where it stands, a newer one is refused."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import postgres_steps, redis_steps, sqlite_file
from retrypolicy.guard.aio_redis import AsyncRedisLedger
from retrypolicy.guard.ledger import Phase, Taken
from retrypolicy.guard.postgres import PostgresLedger
from retrypolicy.guard.redis import RedisLedger
from retrypolicy.guard.sqlite import SQLiteLedger

from .older import SQLITE_1
from .servers import Postgres, Valkey, postgres, quick_valkey
from .takes import OTHER, OWNER, arm, key, phase, standing, take

__all__ = ["postgres", "quick_valkey"]

# -- SQLite

_INSERT = "INSERT INTO sends VALUES (?, ?, 0, 1, 1, NULL, NULL, 0, 1, 1, 1, 1, 0, ?, NULL, 'order', '', 1e12)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file as the first version made it, with a hundred records."""
    path = tmp_path / "sends.db"
    with sqlite3.connect(path) as raw:
        raw.executescript(SQLITE_1)
        raw.executemany(_INSERT, [(key(n), 5 if n % 2 else 3, b"f" * 32) for n in range(100)])
    raw.close()
    return path


def version_of(path: Path) -> int:
    with sqlite3.connect(path) as raw:
        found: int = raw.execute("PRAGMA user_version").fetchone()[0]
    raw.close()
    return found


_OPENER = """
import sys
from retrypolicy.guard.sqlite import SQLiteLedger
print("ready", flush=True)
sys.stdin.readline()
ledger = SQLiteLedger(sys.argv[1], timeout=20.0)
print(sorted((int(phase), count) for phase, count in ledger.counts().items()))
"""


def test_sqlite_processes_that_open_an_older_file_at_once(path: Path) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", _OPENER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    found = []
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    found = [opener.communicate(timeout=60)[0] for opener in openers]
    assert found == ["[(3, 50), (5, 50)]\n"] * 4
    assert version_of(path) == sqlite_file.SCHEMA_VERSION


def test_sqlite_a_process_of_the_older_release_goes_on(path: Path) -> None:
    old = sqlite3.connect(path, isolation_level=None)
    statement = _INSERT.replace(" VALUES", f" ({', '.join(_columns(old))}) VALUES")  # a release names its columns
    ledger = SQLiteLedger(path)
    old.execute(statement, (key("of the old"), 5, b"f" * 32))
    assert phase(ledger, "of the old") is Phase.HELD
    assert ledger.done(key("of the old"), {"status": 200})
    assert old.execute("SELECT phase FROM sends WHERE key = ?", (key("of the old"),)).fetchone() == (3,)
    old.close()


def _columns(connection: sqlite3.Connection) -> list[str]:
    return [row[1] for row in connection.execute("PRAGMA table_info(sends)")]


def test_sqlite_an_upgrade_that_fails_halfway_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        steps = (*sqlite_file._UPGRADES[1], "ALTER TABLE nowhere ADD COLUMN x")
        broken.setitem(sqlite_file._UPGRADES, 1, steps)
        with pytest.raises(LedgerUnavailable, match="nowhere"):
            SQLiteLedger(path)
    assert version_of(path) == 1
    ledger = SQLiteLedger(path)
    assert ledger.counts() == {Phase.DONE: 50, Phase.HELD: 50}
    assert isinstance(ledger.arm(take("new")), Taken)


def test_sqlite_a_version_that_nobody_made(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 0")
    raw.close()
    with pytest.raises(ConfigurationError, match="version 0"):
        SQLiteLedger(path)


# -- PostgreSQL: the first version is the only one yet, so an older one is made up


@pytest.fixture
def table(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A table of a version in which nobody had thought of labels."""
    table = f"ledger_{uuid.uuid4().hex[:12]}"
    ledger = PostgresLedger(postgres.dsn, table=table)
    first = arm(ledger)
    ledger.unknown(key(), OWNER, first.fence)
    ledger.close()
    ask(postgres, f"ALTER TABLE {table} DROP COLUMN label; COMMENT ON TABLE {table} IS 'retrypolicy ledger, schema 0'")
    steps = "ALTER TABLE {table} ADD COLUMN label text NOT NULL DEFAULT 'from before';"
    monkeypatch.setitem(postgres_steps._UPGRADES, 0, steps)
    yield table
    ask(postgres, f"DROP TABLE {table}")


def ask(server: Postgres, text: str) -> list[Any]:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_postgres_many_that_open_an_older_table_at_once(postgres: Postgres, table: str, isolation: str) -> None:
    options = f" options='-c default_transaction_isolation={isolation.replace(' ', chr(92) * 2 + ' ')}'"
    ledgers = [PostgresLedger(postgres.dsn + options, table=table, timeout=20) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda ledger: ledger.arm(take("new")), ledgers))
    assert sum(isinstance(answer, Taken) for answer in answers) == 1
    assert (phase(ledgers[0]), standing(ledgers[0]).label) == (Phase.HELD, "from before")
    assert ask(postgres, f"SELECT obj_description('{table}'::regclass)") == [("retrypolicy ledger, schema 1",)]
    for ledger in ledgers:
        ledger.close()


def test_postgres_who_reads_the_table_for_long_holds_up_the_upgrade_and_nobody_else(
    postgres: Postgres, table: str
) -> None:
    with psycopg.connect(postgres.dsn) as reader:
        reader.execute(f"SELECT count(*) FROM {table}".encode())
        ledger = PostgresLedger(postgres.dsn, table=table, timeout=10)
        with pytest.raises(LedgerUnavailable, match="LockNotAvailable"):
            ledger.arm(take("new"))
        assert ask(postgres, f"SELECT count(*) FROM {table}") == [(1,)]
    assert isinstance(ledger.arm(take("new")), Taken)
    ledger.close()


def test_postgres_an_upgrade_that_fails_halfway_leaves_the_table_as_it_was(
    postgres: Postgres, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        steps = postgres_steps._UPGRADES[0] + " ALTER TABLE nowhere ADD COLUMN x int;"
        broken.setitem(postgres_steps._UPGRADES, 0, steps)
        with pytest.raises(LedgerUnavailable, match="UndefinedTable"):
            PostgresLedger(postgres.dsn, table=table).arm(take("new"))
    ledger = PostgresLedger(postgres.dsn, table=table)
    assert isinstance(ledger.arm(take("new")), Taken)
    ledger.close()


def test_postgres_a_version_that_nobody_made(postgres: Postgres, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(postgres_steps._UPGRADES, 0)
    with pytest.raises(ConfigurationError, match=r"no release.*schema 0"):
        PostgresLedger(postgres.dsn, table=table).arm(take("new"))


# -- Redis: each record has its version, and is brought up to date when it changes


@pytest.fixture
def ledger(quick_valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisLedger]:
    """With a record of a version in which labels had another name."""
    old = "function(fields) fields.lb, fields.name = fields.name, nil end"
    script = redis_steps._SCRIPT.replace("local UPGRADES = {}", f"local UPGRADES = {{[0] = {old}}}")
    assert script != redis_steps._SCRIPT
    monkeypatch.setattr(redis_steps, "_SCRIPT", script)
    monkeypatch.setattr(redis_steps, "_SHA", hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest())
    ledger = RedisLedger(quick_valkey.url, prefix=f"{uuid.uuid4().hex}:", allow_forgetful=True)
    first = arm(ledger, label="from before")
    ledger.unknown(key(), OWNER, first.fence)
    client, name = ledger._client, hash_of(ledger)
    client.hset(name, mapping={"ve": "0", "name": client.hget(name, "lb")})
    client.hdel(name, "lb")
    yield ledger
    ledger.close()


def hash_of(ledger: RedisLedger, name: object = "one") -> str:
    return ledger._steps.prefix + key(name).hex()


def test_redis_an_older_record_is_read_as_it_is_and_written_anew(ledger: RedisLedger) -> None:
    client, name = ledger._client, hash_of(ledger)
    before = client.hgetall(name)
    assert (phase(ledger), standing(ledger).label) == (Phase.HELD, "from before")
    assert [record.label for record in ledger.records()] == ["from before"]
    assert client.hgetall(name) == before  # releases that know it only so may still need it
    assert isinstance(ledger.arm(take(owner=OTHER, window=1e6)), Taken)
    after = client.hgetall(name)
    assert (after[b"ve"], after[b"lb"], after.get(b"name")) == (b"1", b"from before", None)
    assert standing(ledger).attempts == 2


def test_redis_many_change_an_older_record_at_once(ledger: RedisLedger) -> None:
    with ThreadPoolExecutor(8) as threads:
        takes = [take(owner=bytes([number]) * 16, window=1e6) for number in range(8)]
        answers = list(threads.map(ledger.arm, takes))
    assert sum(isinstance(answer, Taken) for answer in answers) == 1
    assert standing(ledger).label == "from before"


def test_redis_a_newer_record_is_one_clear_error(ledger: RedisLedger) -> None:
    first = arm(ledger, "two")
    ledger._client.hset(hash_of(ledger, "two"), "ve", "2")
    before = ledger._client.hgetall(hash_of(ledger, "two"))
    for call in (lambda: ledger.arm(take("two")), lambda: ledger.read(key("two")), lambda: list(ledger.records())):
        with pytest.raises(ConfigurationError, match=r"schema 2.*upgrade"):
            call()
    # What was sent was sent: its caller gets the answer, and good news waits.
    with pytest.raises(LedgerUnavailable, match="schema 2"):
        ledger.done(key("two"), {"status": 200})
    with pytest.raises(LedgerUnavailable, match="schema 2"):
        ledger.unknown(key("two"), OWNER, first.fence)
    assert ledger._client.hgetall(hash_of(ledger, "two")) == before
    assert phase(ledger) is Phase.HELD  # other records are no worse for it


def test_redis_the_async_ledger_reads_older_records_too(ledger: RedisLedger, quick_valkey: Valkey) -> None:
    async def program() -> list[str]:
        mine = AsyncRedisLedger(quick_valkey.url, prefix=ledger._steps.prefix, allow_forgetful=True)
        found = [record.label async for record in mine.records()]
        await mine.close()
        return found

    assert asyncio.run(program()) == ["from before"]
