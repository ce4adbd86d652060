"""The SQLite ledger when disks, files and machines misbehave: kill -9, power loss, full, read-only, replaced."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import sqlite_file
from retrypolicy.guard.ledger import Phase, Refused, Take, Taken
from retrypolicy.guard.sqlite import SQLiteLedger

KEY = b"k" * 32
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sends.db"


def take(**more: Any) -> Take:
    values = {"key": KEY, "owner": os.urandom(16), "token": os.urandom(16), "fingerprint": b"f" * 32, "lease": 60.0}
    return Take(**{**values, **more})


def run(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        text=True, capture_output=True, timeout=60, check=False, **options,
    )  # fmt: skip


# -- kill -9


@posix_only
def test_after_kill_9_every_acknowledged_arm_is_there_and_what_was_not_settled_is_never_free(path: Path) -> None:
    code = """
        import os, sys
        from retrypolicy.guard.ledger import Take
        from retrypolicy.guard.sqlite import SQLiteLedger
        ledger = SQLiteLedger(sys.argv[1])
        for number in range(10**9):
            key = number.to_bytes(32, "big")
            ledger.arm(Take(key=key, owner=b"o" * 16, token=key[-16:], fingerprint=b"f" * 32, lease=0.0))
            print("armed", number, flush=True)
            if number % 3:
                ledger.done(key, {"status": 200})
                print("done", number, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    lines += [line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    armed = {int(number) for word, number in lines if word == "armed"}
    done = {int(number) for word, number in lines if word == "done"}
    assert len(armed) >= 150

    ledger = SQLiteLedger(path)
    for number in armed:
        key = number.to_bytes(32, "big")
        answer = ledger.arm(take(key=key))
        assert isinstance(answer, Refused)
        if number in done:
            assert answer.record.phase is Phase.DONE
        elif number != max(armed):  # its done may have been written, and the word of it lost
            assert answer.record.phase is Phase.HELD


# -- power loss


def test_after_power_loss_every_acknowledged_arm_is_there(path: Path, tmp_path: Path) -> None:
    """What a power loss leaves, at the worst, is what was synced last: a copy of the files at each sync. Later lazy
    writes are lost with it, and must only make outcomes unknown."""
    ledger = SQLiteLedger(path)
    known: dict[bytes, Phase] = {}
    for number in range(8):
        key = bytes([number]) * 32
        assert isinstance(ledger.arm(take(key=key, owner=b"o" * 16, lease=0.0)), Taken)
        at_sync = tmp_path / f"copy{number}"
        at_sync.mkdir()
        for name in ("sends.db", "sends.db-wal"):  # the -shm is rebuilt from these
            shutil.copy(path.with_name(name), at_sync / name)
        known[key] = Phase.ARMED
        after = SQLiteLedger(at_sync / "sends.db")
        assert {record.key: record.phase for record in after.records()} == known
        assert isinstance(after.arm(take(key=key)), Refused)
        after.close()
        if number % 2:
            ledger.done(key, {"status": 200})
            known[key] = Phase.DONE
        else:
            ledger.unknown(key, b"o" * 16, 1)
            known[key] = Phase.HELD


def test_a_torn_write_at_the_end_of_the_log_loses_only_what_was_not_acknowledged(path: Path, tmp_path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger.arm(take(key=b"a" * 32))
    log = path.with_name("sends.db-wal")
    size = log.stat().st_size
    ledger.arm(take(key=b"b" * 32))
    torn = tmp_path / "torn"
    torn.mkdir()
    shutil.copy(path, torn / "sends.db")
    (torn / "sends.db-wal").write_bytes(log.read_bytes()[: size + 2000])
    assert [record.key for record in SQLiteLedger(torn / "sends.db").records()] == [b"a" * 32]


# -- the disk is full, or can't be written


def test_a_full_disk_stops_arms_and_dones_and_reads_go_on(path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger.arm(take())
    connection = ledger._file._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    keys = (number.to_bytes(32, "big") for number in range(1000))
    tried: list[bytes] = []
    with pytest.raises(LedgerUnavailable, match="full"):  # noqa: PT012 - at some point of the loop
        for key in keys:
            tried.append(key)
            ledger.arm(take(key=key, label="x" * 500))
    assert ledger.read(tried[-1])[0] is None
    record = ledger.read(KEY)[0]
    assert record is not None
    assert record.phase is Phase.ARMED
    connection.execute(f"PRAGMA max_page_count = {pages + 100}")
    assert isinstance(ledger.arm(take(key=tried[-1], label="x" * 500)), Taken)
    assert ledger.done(KEY, {"status": 200})


@posix_only
def test_a_file_that_may_not_grow_is_one_clear_error_and_is_not_damaged(path: Path) -> None:
    code = """
        import os, resource, signal, sys
        from retrypolicy.errors import LedgerUnavailable
        from retrypolicy.guard.ledger import Take
        from retrypolicy.guard.sqlite import SQLiteLedger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = SQLiteLedger(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        armed = []
        try:
            for number in range(10_000):
                key = number.to_bytes(32, "big")
                ledger.arm(Take(key=key, owner=key[:16], token=key[16:], fingerprint=key, lease=60.0))
                armed.append(number)
        except LedgerUnavailable:
            print(len(armed))
            os._exit(0)
    """
    result = run(code, path)
    assert result.returncode == 0, result.stderr
    assert SQLiteLedger(path).counts() == {Phase.ARMED: int(result.stdout)}
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


@posix_only
def test_a_disk_that_is_full_when_the_ledger_is_made(path: Path) -> None:
    code = """
        import resource, signal, sys
        from retrypolicy.errors import LedgerUnavailable
        from retrypolicy.guard.sqlite import SQLiteLedger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            SQLiteLedger(sys.argv[1])
        except LedgerUnavailable as error:
            print("clear")
    """
    result = run(code, path)
    assert result.stdout == "clear\n", result.stderr
    assert SQLiteLedger(path).counts() == {}  # and it heals


@posix_only
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_may_not_be_written_is_said_at_open(exists: bool) -> None:
    code = """
        import os, sys
        from retrypolicy.errors import ConfigurationError
        from retrypolicy.guard.sqlite import SQLiteLedger
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)  # root may write anywhere
        try:
            SQLiteLedger(sys.argv[1])
        except ConfigurationError as error:
            print(error)
    """
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders can't be entered by others
        path = Path(folder) / "sends.db"
        if exists:
            SQLiteLedger(path).close()
        for file in Path(folder).iterdir():
            file.chmod(0o444)
        os.chmod(folder, 0o555)
        try:
            result = run(code, path)
        finally:
            os.chmod(folder, 0o700)
    assert "must be on a writable disk" in result.stdout, result.stderr
    assert str(path) in result.stdout


def test_a_disk_mounted_read_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can mount one everywhere; what the system says of it can be had by a connection that only reads."""
    SQLiteLedger(path).close()
    connect = sqlite3.connect

    def read_only(file: str, **options: Any) -> sqlite3.Connection:
        return connect(f"{Path(file).as_uri()}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(ConfigurationError, match="writable disk"):
        SQLiteLedger(path)


# -- the file


def test_a_new_and_empty_file_is_said_loudly_and_only_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SQLiteLedger(path).close()
    (record,) = [r for r in caplog.records if r.name == "retrypolicy.ledger"]
    assert record.levelno == logging.WARNING
    assert "new and empty" in record.getMessage()
    assert str(path) in record.getMessage()
    caplog.clear()
    SQLiteLedger(path).close()
    assert not caplog.records


@posix_only
@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced"])
def test_a_file_taken_away_under_an_open_ledger_stops_it(path: Path, how: str) -> None:
    ledger = SQLiteLedger(path)
    ledger.arm(take())
    match how:
        case "deleted":
            path.unlink()
        case "renamed":
            path.rename(path.with_name("old.db"))
        case _:
            SQLiteLedger(path.with_name("other.db")).close()
            path.with_name("other.db").rename(path)
    for call in (
        lambda: ledger.arm(take(key=b"x" * 32)),
        lambda: ledger.read(KEY),
        lambda: ledger.done(KEY, {}),
        lambda: list(ledger.records()),
        ledger.counts,
        ledger.purge,
    ):
        with pytest.raises(LedgerUnavailable, match="deleted, renamed or replaced"):
            call()
    ledger.close()  # forgets nothing of that
    with pytest.raises(LedgerUnavailable):
        ledger.arm(take(key=b"x" * 32))
    if how == "renamed":
        path.with_name("old.db").rename(path)
        assert isinstance(ledger.arm(take(key=b"x" * 32)), Taken)


def test_a_path_that_cannot_be_a_ledger(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        SQLiteLedger(path / "sends.db")
    with pytest.raises(ConfigurationError, match="not a file"):
        SQLiteLedger(path.parent)
    path.write_text("Dear Sir, this is a letter and not a database. " * 50)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="not a ledger"):
        SQLiteLedger(path)
    assert path.read_bytes() == before


def test_a_database_of_somebody_else(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE orders (id INTEGER)")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="not a ledger"):
        SQLiteLedger(path)
    assert path.read_bytes() == before


def test_a_ledger_of_a_newer_release(path: Path) -> None:
    SQLiteLedger(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    raw.close()
    with pytest.raises(ConfigurationError, match=f"version {sqlite_file.SCHEMA_VERSION + 1}.*upgrade"):
        SQLiteLedger(path)


def test_a_maker_that_died_halfway_leaves_a_file_that_can_be_finished(path: Path) -> None:
    path.touch()
    assert isinstance(SQLiteLedger(path).arm(take()), Taken)


def test_a_table_that_is_gone_is_an_unavailable_ledger(path: Path) -> None:
    ledger = SQLiteLedger(path)
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TABLE sends")
    raw.close()
    for call in (lambda: ledger.arm(take()), lambda: ledger.read(KEY), ledger.counts, lambda: list(ledger.records())):
        with pytest.raises(LedgerUnavailable):
            call()


def test_a_person_who_holds_the_file_makes_it_unavailable_and_not_slow(path: Path) -> None:
    ledger = SQLiteLedger(path, timeout=0.2)
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked"):
        ledger.arm(take())
    raw.execute("ROLLBACK")
    raw.close()
    assert isinstance(ledger.arm(take()), Taken)


def test_a_stopped_process_that_holds_the_lock_makes_it_unavailable(path: Path) -> None:
    ledger = SQLiteLedger(path, timeout=0.2)
    other = sqlite_file.SideLock(f"{path}.lock")
    other.acquire(1.0)
    with pytest.raises(LedgerUnavailable, match="another process"):
        ledger.arm(take())
    other.release()
    assert isinstance(ledger.arm(take()), Taken)
    other.close()


# -- where the file lies


def _mounts(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite_file.file_system
    monkeypatch.setattr(sqlite_file, "file_system", lambda folder: kind if folder == str(tmp_path) else real(folder))


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _mounts(path.parent, kind, monkeypatch)
    with pytest.raises(ConfigurationError, match=rf"network file system \({kind}\)"):
        SQLiteLedger(path)
    assert not path.exists()


def test_a_file_system_in_memory_is_a_problem_unless_power_does_not_matter(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mounts(path.parent, "tmpfs", monkeypatch)
    assert "power failure" in SQLiteLedger(path).problems()[0]
    assert SQLiteLedger(path, durability="process").problems() == []


def test_an_ordinary_disk_is_no_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _mounts(path.parent, "ext4", monkeypatch)
    assert SQLiteLedger(path).problems() == []


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux only")
def test_the_type_of_a_file_system_is_known_on_linux() -> None:
    assert sqlite_file.file_system("/proc/self") == "proc"
    assert sqlite_file.file_system("/") != ""


# -- what is in it


def test_no_word_of_the_caller_is_in_the_file(path: Path) -> None:
    """Keys and fingerprints come as digests; an error's text or a body can't come in at all."""
    ledger = SQLiteLedger(path)
    ledger.arm(take(label="order 42", provider="resend"))
    ledger.done(KEY, {"status": 200, "id": "msg-1"})
    ledger.close()
    with sqlite3.connect(path) as raw:
        (row,) = raw.execute("SELECT * FROM sends").fetchall()
        columns = [column[1] for column in raw.execute("PRAGMA table_info(sends)")]
    raw.close()
    texts = {name: value for name, value in zip(columns, row, strict=True) if isinstance(value, str)}
    assert texts == {
        "label": "order 42",
        "provider": "resend",
        "result": json.dumps({"status": 200, "id": "msg-1"}, separators=(",", ":")),
    }
