"""The SQLite ledger's file: created, checked, opened, and locked between processes.

Sources: SQLite's documentation of WAL, of file locking, of corruption ("how to corrupt") and of its pragmas.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from retrypolicy.clock import SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

T = TypeVar("T")
logger = logging.getLogger("retrypolicy.ledger")

APPLICATION_ID = 0x52504C47
SCHEMA_VERSION = 2
_SCHEMA = (
    """
    CREATE TABLE sends (
        key BLOB PRIMARY KEY, phase INTEGER NOT NULL, taint INTEGER NOT NULL, fence INTEGER NOT NULL,
        generation INTEGER NOT NULL, owner BLOB, token BLOB, lease REAL NOT NULL, first_seen REAL NOT NULL,
        first_armed REAL, last_armed REAL, attempts INTEGER NOT NULL, not_before REAL NOT NULL,
        fingerprint BLOB NOT NULL, result TEXT, label TEXT NOT NULL, provider TEXT NOT NULL, expires REAL NOT NULL,
        collect REAL NOT NULL DEFAULT 0
    ) WITHOUT ROWID
    """,
    "CREATE INDEX sends_held ON sends (phase) WHERE phase = 5",  # partial, so that an arm does not touch it
    # When to look whether a record has expired: never later than that. Not `expires` itself, which a done moves: it
    # would write a second page.
    "CREATE INDEX sends_collect ON sends (collect)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
# From each older version to the next one. They may only add what has a default: processes of an older release that have
# the file open go on.
_UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE sends ADD COLUMN collect REAL NOT NULL DEFAULT 0",
        "DROP INDEX sends_expiring",
        "CREATE INDEX sends_collect ON sends (collect)",
    ),
}

# Their locks, or their shared memory, do not hold between machines.
_NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
    }
    | {"pvfs2", "smb2", "smb3", "smbfs"}
    | {f"fuse.{name}" for name in ("ceph", "gcsfuse", "glusterfs", "rclone", "s3fs", "sshfs")}
)
_VOLATILE = frozenset({"ramfs", "tmpfs"})


class SideLock:
    """An exclusive lock between processes, on a file beside the database.

    SQLite's own waiting (sleeps that grow) lets one writer starve; and SQLite before 3.51.3 can corrupt a file when two
    connections write and checkpoint at the same moment. Under this lock neither happens. Threads of one process need a
    lock of their own around it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._clock = SystemClock()

    def acquire(self, timeout: float) -> None:
        """Raises `TimeoutError` after `timeout` seconds, `OSError` where the file can't be made."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        if self._attempt(self._descriptor):
            return
        give_up = self._clock.monotonic() + timeout
        while True:
            # Short, and never longer with time: a holder keeps it for one commit. Asked for again and again rather than
            # waited for in the kernel, so that a stopped holder can't stop us, and other greenlets run.
            self._clock.sleep(random.uniform(0.00005, 0.0005))
            if self._attempt(self._descriptor):
                return
            if self._clock.monotonic() > give_up:
                raise TimeoutError(f"another process holds {self._path} for more than {timeout} s")

    def release(self) -> None:
        if self._descriptor is not None:
            if sys.platform == "win32":
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                msvcrt.locking(self._descriptor, msvcrt.LK_UNLCK, 1)
            else:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Forget the file. In a forked child this leaves the parent's lock as it is."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @staticmethod
    def _attempt(descriptor: int) -> bool:
        try:
            if sys.platform == "win32":
                os.lseek(descriptor, 0, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True


def check_place(path: str) -> None:
    """Raises `ConfigurationError` where no ledger can live: no folder, not a file, a network file system."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigurationError(f"ledger {path}: the folder {folder} does not exist; create it first")
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise ConfigurationError(f"ledger {path} is not a file; must be a file, or not exist yet")
    if (kind := file_system(folder)) in _NETWORK:
        raise ConfigurationError(
            f"ledger {path} is on a network file system ({kind}), where locks can't be trusted; "
            "use a local disk, or a ledger made for several machines (redis://, postgresql://)"
        )


def is_volatile(path: str) -> bool:
    """Whether the file is lost when the machine stops, as far as that can be known."""
    return file_system(os.path.dirname(path)) in _VOLATILE


def file_system(folder: str) -> str:
    """The type of the file system that holds `folder`; empty where it can't be known (not Linux)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            table = [line.split(" - ", 1) for line in lines]
    except OSError:
        return ""
    folder = os.path.realpath(folder)
    best, kind = "", ""
    for left, right in table:
        point = _unescaped(left.split()[4])
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # the last of equals lies on top
            best, kind = point, right.split()[0]
    return kind


def _unescaped(text: str) -> str:
    for code, letter in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, letter)
    return text


class LedgerFile:
    """The file of one ledger and the connection to it. Its caller lets one thread in at a time.

    `timeout` is how many seconds SQLite waits for a writer that does not respect the side lock (a person's shell).
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = SideLock(path + ".lock")
        self._connection: sqlite3.Connection | None = None
        self._synced: bool | None = None  # None: not known
        self._identity: tuple[int, int] | None = None  # of the file that was opened first

    def open(self, patience: float) -> None:
        """Open it now. Raises `ConfigurationError` or `LedgerUnavailable`."""
        if self._identity is None:
            check_place(self._path)
        try:
            self._lock.acquire(patience)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise _opening_failed(self._path, error) from error
        finally:
            self._lock.release()

    def transact(
        self,
        work: Callable[[sqlite3.Connection], T],
        patience: float,
        *,
        synced: bool,
        quick: Callable[[sqlite3.Connection], T | None] | None = None,
    ) -> T:
        """Do the work in one transaction. `synced`: it is on the disk before this returns.

        `quick` is the same work in a single statement, for the usual case; it gives None, and has done nothing, if the
        case is another.
        """
        try:
            self._lock.acquire(patience)
            connection = self._current()
            if connection.in_transaction:  # a signal handler raised in the middle of the last one's end
                connection.execute("ROLLBACK")
            if synced is not self._synced:
                # Not a setting of the transaction: of the connection, so it has to stand before BEGIN.
                self._synced = None
                connection.execute("PRAGMA synchronous = FULL" if synced else "PRAGMA synchronous = NORMAL")
                self._synced = synced
            if quick is not None and (quickly := quick(connection)) is not None:
                return quickly
            try:
                connection.execute("BEGIN IMMEDIATE")
                answer = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                self._roll_back(connection)
                raise
            return answer
        finally:
            try:
                self._lock.release()
            except BaseException:  # a signal handler raised in the middle of it
                self._lock.release()
                raise

    def connection(self, patience: float) -> sqlite3.Connection:
        """The connection, for reading."""
        if self._connection is None:
            self.open(patience)
        return self._current()

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Another connection, which only reads: for long listings."""
        # A connection that can't write can't checkpoint when it closes either.
        connection = sqlite3.connect(Path(self._path).as_uri() + "?mode=ro", uri=True, timeout=self._timeout)
        try:
            yield connection
        finally:
            connection.close()

    def close(self, patience: float) -> None:
        """Close the connection and the lock file. The last one to close tidies up the log, so under the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                self._lock.acquire(patience)
            try:
                connection.close()
            finally:
                self._lock.release()
        self._lock.close()

    def forget(self) -> None:
        """In a forked child: let go of what is the parent's, without touching it."""
        if self._connection is not None:
            # SQLite forbids even to close it here: it would act on locks that only the parent has.
            _inherited.append(self._connection)
            self._connection = None
        self._lock.close()

    def _current(self) -> sqlite3.Connection:
        if self._connection is None:
            self._open()
            assert self._connection is not None
            return self._connection
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise LedgerUnavailable(
                f"ledger {self._path} was deleted, renamed or replaced while in use; its records are elsewhere. "
                "Put the file back, or start the process again to begin with the one that is there now"
            )
        return self._connection

    def _open(self) -> None:
        """Under the side lock."""
        made = self._identity is None and _make(self._path)
        found = os.stat(self._path)
        identity = (found.st_dev, found.st_ino)
        if self._identity not in (None, identity):
            raise LedgerUnavailable(f"ledger {self._path} is another file than the one that this process opened first")
        connection = _connect(self._path, self._timeout)
        try:
            empty = _prepare(connection, self._path)
        except BaseException:
            connection.close()
            raise
        self._identity = identity
        self._synced = None
        self._connection = connection
        if made or empty:
            logger.warning("ledger %s is new and empty: it knows of no send made before now", self._path)

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._connection = None
            connection.close()


_inherited: list[sqlite3.Connection] = []


def _make(path: str) -> bool:
    """Create the file, readable by its owner only (SQLite gives its side files the same mode). False: it exists."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    """A connection in autocommit mode, for any thread that holds the ledger's lock."""
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        # Pages in the log from which on they are copied into the file, by whoever writes then. Each of a send's is on a
        # place of its own in the file: SQLite's own limit of 1000 would keep that one sender waiting for long.
        connection.execute("PRAGMA wal_autocheckpoint = 300")
        connection.execute("PRAGMA fullfsync = 1")  # macOS: only this makes its disks write; elsewhere without effect
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str) -> bool:
    """Make an empty file a ledger, or check that it is one. Under the side lock. True: it was empty.

    Raises `ConfigurationError` for a file that is no ledger, or one of a newer version of this library.
    """
    kind = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    empty = not tables and kind in (0, APPLICATION_ID)
    if not empty and kind != APPLICATION_ID:
        raise ConfigurationError(f"{path} is a database, but not a ledger; name another file")
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"{path} is a ledger of version {version}; this release reads up to {SCHEMA_VERSION}: upgrade retrypolicy"
        )
    if not empty and version not in (*_UPGRADES, SCHEMA_VERSION):
        raise ConfigurationError(f"{path} is a ledger of version {version}, which no release of retrypolicy made")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigurationError(
            f"{path}: no write-ahead log is possible there (journal mode {mode}); use a local disk"
        )
    connection.execute("BEGIN IMMEDIATE")
    try:
        if empty:
            for statement in _SCHEMA:
                connection.execute(statement)
        else:
            for older in range(version, SCHEMA_VERSION):
                for statement in _UPGRADES[older]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # a real write: a read-only disk says so now
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return empty


def _opening_failed(path: str, error: OSError | sqlite3.Error) -> ConfigurationError | LedgerUnavailable:
    """What to tell when the file can't be opened: the place is wrong, or it is only out of order now."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return ConfigurationError(f"{path} is not a ledger, or a damaged one ({error}); name another file")
    if isinstance(error, PermissionError) or name.startswith(("SQLITE_READONLY", "SQLITE_PERM")) or _read_only(path):
        return ConfigurationError(f"ledger {path} can't be written ({error}); it must be on a writable disk")
    return LedgerUnavailable(f"ledger {path} can't be opened: {error}")


def _read_only(path: str) -> bool:
    folder = os.path.dirname(path)
    try:
        mounted = hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & getattr(os, "ST_RDONLY", 0))
    except OSError:
        return False
    return mounted or not os.access(folder, os.W_OK | os.X_OK)
