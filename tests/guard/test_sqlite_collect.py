"""The SQLite ledger's purge: what it looks at, in which steps, and what an index for it costs a send."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.clock import VirtualClock
from retrypolicy.guard.ledger import Phase, Take, Taken
from retrypolicy.guard.sqlite import SQLiteLedger

from .older import SQLITE_1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sends.db"


def take(number: int, **more: Any) -> Take:
    values = {"key": key(number), "owner": b"o" * 16, "token": os.urandom(8), "fingerprint": b"f" * 32, "lease": 60.0}
    return Take(**{**values, **more})


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_what_does_not_expire_is_passed_over_in_steps_and_found_when_it_is_settled(path: Path) -> None:
    clock = VirtualClock()
    ledger = SQLiteLedger(path, clock=clock, retention=1000.0, durability="process")
    for number in range(6):  # these come first in the order of time
        ledger.arm(take(number))
    ledger.unknown(key(0), b"o" * 16, 1)
    clock.advance(1)
    for number in range(6, 9):
        ledger.arm(take(number))
        ledger.done(key(number), {"status": 200})
    clock.advance(1000)
    assert [ledger.purge(2), ledger.purge(2), ledger.purge(2)] == [2, 1, 0]
    assert ledger.counts() == {Phase.ARMED: 5, Phase.HELD: 1}
    for number in range(6):
        assert ledger.done(key(number), {"status": 200})
    clock.advance(999)
    assert ledger.purge() == 0
    clock.advance(1)
    assert ledger.purge() == 6


def test_a_record_that_was_settled_late_is_kept_from_then_on(path: Path) -> None:
    clock = VirtualClock()
    ledger = SQLiteLedger(path, clock=clock, retention=1000.0, durability="process")
    ledger.arm(take(1))
    clock.advance(900)
    ledger.done(key(1), {"status": 200})
    clock.advance(900)
    assert ledger.purge() == 0
    assert ledger.counts() == {Phase.DONE: 1}
    clock.advance(100)
    assert ledger.purge() == 1


def test_a_done_writes_one_page(path: Path) -> None:
    """It costs a send most, after the sync of the arm: each page is written to the log, and once more out of it."""
    ledger = SQLiteLedger(path)
    log = path.with_name("sends.db-wal")
    written = []
    for number in range(5):
        ledger.arm(take(number))
        before = log.stat().st_size
        ledger.done(key(number), {"status": 200})
        written.append((log.stat().st_size - before) // 4096)
    assert written == [1] * 5


def test_a_file_of_the_first_version_is_brought_up_to_this_one(path: Path) -> None:
    clock = VirtualClock()
    start = clock.now()
    with sqlite3.connect(path) as raw:
        raw.executescript(SQLITE_1)
        for number, (phase, expires) in enumerate([(3, start + 50.0), (3, start + 500.0), (5, start + 50.0)]):
            raw.execute(
                "INSERT INTO sends VALUES (?, ?, 0, 1, 1, NULL, NULL, 0, 1, 1, 1, 1, 0, ?, NULL, '', '', ?)",
                (key(number), phase, b"f" * 32, expires),
            )
    raw.close()
    ledger = SQLiteLedger(path, clock=clock)
    assert ledger.counts() == {Phase.DONE: 2, Phase.HELD: 1}
    assert ledger.purge() == 0
    assert isinstance(ledger.arm(take(7)), Taken)
    clock.advance(100)
    assert ledger.purge() == 1
    assert {record.key for record in ledger.records()} == {key(1), key(2), key(7)}
    ledger.close()
    again = SQLiteLedger(path, clock=clock)
    assert again.counts() == {Phase.DONE: 1, Phase.HELD: 1, Phase.ARMED: 1}
