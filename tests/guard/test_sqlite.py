"""The SQLite ledger among threads and processes, and against the model."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from retrypolicy.clock import VirtualClock
from retrypolicy.errors import LedgerUnavailable, PolicyError
from retrypolicy.guard.ledger import Filter, Phase, Refused, Take, Taken
from retrypolicy.guard.sqlite import SQLiteLedger
from retrypolicy.testing.machines import LedgerMachine, Subject
from tests.scaling import stateful

KEY = b"k" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sends.db"


def take(**more: Any) -> Take:
    values = {"key": KEY, "owner": os.urandom(16), "token": os.urandom(16), "fingerprint": b"f" * 32, "lease": 60.0}
    return Take(**{**values, **more})


class TestAgainstTheModel:
    @pytest.fixture(autouse=True)
    def _one_file(self) -> Iterator[None]:
        # One file for all examples, emptied between them: making one takes longer than an example.
        with tempfile.TemporaryDirectory() as folder:
            self.clock = VirtualClock()
            self.path = Path(folder) / "sends.db"
            self.ledger = self.opened()
            self.raw = sqlite3.connect(self.path, isolation_level=None)
            yield
            self.raw.close()
            self.ledger.close()

    def opened(self) -> SQLiteLedger:
        return SQLiteLedger(self.path, clock=self.clock, durability="process")

    def subject(self) -> Subject:
        self.raw.execute("DELETE FROM sends")
        return Subject(ledger=self.ledger, advance=self.clock.jump, reopen=self.opened)

    def test_same_answers_same_records(self) -> None:
        machine = type("Machine", (LedgerMachine,), {"open": staticmethod(self.subject)})
        run_state_machine_as_test(machine, settings=stateful(50, 30))


def test_threads_race_for_one_key_and_exactly_one_gets_it(path: Path) -> None:
    ledger = SQLiteLedger(path)
    start = threading.Barrier(16)
    answers: list[Taken | Refused] = []

    def race() -> None:
        start.wait()
        answers.extend(ledger.arm(take(key=bytes([number]) * 32)) for number in range(5))

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16 * 5
    assert [type(answer) for answer in answers].count(Taken) == 5


def test_many_threads_share_one_commit_and_nobody_starves(path: Path) -> None:
    ledger = SQLiteLedger(path)
    commits = 0
    transact = ledger._file.transact

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal commits
        commits += 1
        return transact(*args, **kwargs)

    ledger._file.transact = counting  # type: ignore[method-assign] - counts, and changes nothing

    def send(number: int) -> None:
        for n in range(50):
            key = bytes([number, n]) * 16
            assert isinstance(ledger.arm(take(key=key)), Taken)
            assert ledger.done(key, {"status": 200, "thread": number})

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.counts() == {Phase.DONE: 400}
    assert all(record.result == {"status": 200, "thread": record.key[0]} for record in ledger.records())
    assert commits < 8 * 50 * 2 * 0.9


def test_one_bad_work_does_not_spoil_those_that_share_its_commit(path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger.arm(take(key=b"a" * 32))
    good: list[bool] = []
    with ledger._group.alone():
        bad = threading.Thread(target=lambda: _swallow(lambda: ledger.claim(take(key=b"b" * 32, attempts=2**70))))
        fine = threading.Thread(target=lambda: good.append(ledger.done(b"a" * 32, {"status": 200})))
        bad.start()
        fine.start()
        while len(ledger._group._queue) < 2:
            pass
    bad.join()
    fine.join()
    assert good == [True]
    assert ledger.read(b"b" * 32)[0] is None


def _swallow(call: Any) -> None:
    with pytest.raises(LedgerUnavailable):
        call()


_RACER = """
import os, sys
from retrypolicy.guard.ledger import Take, Taken
from retrypolicy.guard.sqlite import SQLiteLedger
print("ready", flush=True)
sys.stdin.readline()
ledger = SQLiteLedger(sys.argv[1])
for number in range(50):
    take = Take(key=bytes([number]) * 32, owner=os.urandom(16), token=b"t", fingerprint=b"f", lease=60.0)
    print(int(isinstance(ledger.arm(take), Taken)), end="")
"""


def test_processes_that_create_the_file_at_once_and_race_for_its_keys(path: Path) -> None:
    command = [sys.executable, "-c", _RACER, str(path)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found, told = zip(*(racer.communicate(timeout=60) for racer in racers), strict=True)
    assert [racer.returncode for racer in racers] == [0] * 4, "".join(told)
    assert [sum(map(int, column)) for column in zip(*found, strict=True)] == [1] * 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_opens_the_file_anew_and_the_parent_goes_on(path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger.arm(take())
    inherited = ledger._file._connection
    with ledger._group.alone():  # as if a thread of the parent were inside
        child = os.fork()
        if child == 0:
            try:
                refused = isinstance(ledger.arm(take()), Refused)
                mine = isinstance(ledger.arm(take(key=b"c" * 32)), Taken)
                os._exit(0 if refused and mine and ledger._file._connection is not inherited else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert ledger.done(KEY, {"status": 200})
    assert ledger.counts() == {Phase.DONE: 1, Phase.ARMED: 1}
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_closed_ledger_opens_again_when_used(path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger.arm(take())
    ledger.close()
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == ["sends.db"]  # its log was tidied up
    assert ledger.done(KEY, {"status": 200})
    ledger.close()
    ledger.close()


def test_an_arm_is_synced_and_the_rest_is_not(path: Path) -> None:
    ledger = SQLiteLedger(path)
    seen: list[tuple[str, int]] = []

    def level() -> int:
        connection = ledger._file._connection
        assert connection is not None
        answer: int = connection.execute("PRAGMA synchronous").fetchone()[0]
        return answer

    for _ in range(3):
        key = os.urandom(32)
        fence = ledger.arm(take(key=key, owner=b"o" * 16))
        seen.append(("arm", level()))
        assert isinstance(fence, Taken)
        ledger.park(key, b"o" * 16, 1, lease=10.0)
        seen.append(("park", level()))
        ledger.arm(take(key=key, owner=b"o" * 16))  # not the usual case: the record exists
        seen.append(("arm", level()))
        ledger.done(key, {"status": 200})
        seen.append(("done", level()))
    full, normal = 2, 1
    assert seen == [(name, full if name == "arm" else normal) for name, _ in seen]

    lazy = SQLiteLedger(path.with_name("other.db"), durability="process")
    lazy.arm(take())
    assert lazy._file._connection is not None
    assert lazy._file._connection.execute("PRAGMA synchronous").fetchone() == (normal,)


@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
def test_only_the_owner_reads_the_files(path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = SQLiteLedger(path)
        ledger.arm(take())
        files = sorted(path.parent.iterdir())
        assert [p.name for p in files] == ["sends.db", "sends.db-shm", "sends.db-wal", "sends.db.lock"]
        assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}
    finally:
        os.umask(before)


def test_a_listing_of_many_goes_in_pages_and_sends_go_on_meanwhile(path: Path) -> None:
    ledger = SQLiteLedger(path, durability="process")
    keys = {os.urandom(32) for _ in range(1200)}
    for key in keys:
        ledger.arm(take(key=key, owner=b"o" * 16))
    held = sorted(keys)[:3]
    for key in held:
        ledger.unknown(key, b"o" * 16, 1)
    seen = set()
    for record in ledger.records():
        seen.add(record.key)
        ledger.done(record.key, {"status": 200})
    assert seen == keys
    assert {record.key for record in ledger.records(Filter(phases=frozenset({Phase.HELD})))} == set()
    assert ledger.counts() == {Phase.DONE: 1200}


def test_purge_goes_in_steps(path: Path) -> None:
    clock = VirtualClock()
    ledger = SQLiteLedger(path, clock=clock, retention=100.0, durability="process")
    for number in range(5):
        key = bytes([number]) * 32
        ledger.arm(take(key=key))
        ledger.done(key, {"status": 200})
    ledger.arm(take())
    clock.advance(101)
    assert [ledger.purge(2), ledger.purge(2), ledger.purge(2), ledger.purge(2)] == [2, 2, 1, 0]
    assert [record.phase for record in ledger.records()] == [Phase.ARMED]


@pytest.mark.parametrize(
    ("name", "value"), [("durability", "none"), ("retention", 0.0), ("timeout", -1.0), ("timeout", float("nan"))]
)
def test_bad_options_are_named(path: Path, name: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=name):
        SQLiteLedger(path, **{name: value})
    assert not path.exists()
