"""The embedded ledger: one SQLite file, enough for all processes of one machine.

Two things are added to the pure transitions. Durability: an arm is on the disk before it is answered; everything else
rides along with the next arm, since losing it only makes an outcome unknown. And fairness: writers that meet are
served in one transaction by whoever came first, and processes take turns by a lock on a side file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import fields

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable, PolicyError
from retrypolicy.guard import sqlite_file as files
from retrypolicy.guard import transitions
from retrypolicy.guard.grouping import Group
from retrypolicy.guard.ledger import ARM_TIMEOUT, COLLECTABLE, RETENTION, Filter, Phase, Record, Refused, Take, Taken

T = TypeVar("T")

# TimeoutError is an OSError; the last two are values that SQLite can't store (a huge number, half a character).
_TROUBLE = (sqlite3.Error, OSError, ConfigurationError, OverflowError, UnicodeError)
_system = SystemClock()
_NAMES = tuple(field.name for field in fields(Record))
_COLUMNS = ", ".join(_NAMES)
_VALUES = f"INTO sends ({_COLUMNS}, collect) VALUES ({', '.join('?' * len(_NAMES))}, ?)"
_INSERT, _REPLACE = f"INSERT OR IGNORE {_VALUES}", f"REPLACE {_VALUES}"
_SELECT = f"SELECT {_COLUMNS} FROM sends"  # noqa: S608 - the names are attributes of Record
_READ = f"{_SELECT} WHERE key = ?"
_COUNT = "SELECT phase, count(*) FROM sends WHERE phase IN (2, 5) OR expires > ? GROUP BY phase"
_OVER = "SELECT count(*) FROM sends WHERE collect <= ? AND phase IN (1, 3, 4) AND expires <= ?"
_DUE = "SELECT key, phase, expires FROM sends WHERE collect <= ? ORDER BY collect LIMIT ?"
# transitions.done for the usual case: the record is armed or held.
_DONE = """
    UPDATE sends SET phase = 3, taint = 0, owner = NULL, token = NULL, lease = 0.0, not_before = 0.0, result = ?,
    expires = max(expires, ?) WHERE key = ? AND phase IN (2, 5)
"""
_AT_ONCE, _STEP = 25, 0.01  # of a purge: records in one transaction, and seconds after which no other one is begun
_AGAIN = 86400.0  # seconds until a purge looks again at a record that does not expire
_values = attrgetter(*_NAMES)
_PHASE, _TAINT, _RESULT = (_NAMES.index(name) for name in ("phase", "taint", "result"))


class _Work(NamedTuple):
    """One operation: what to do inside a transaction, and the same in a single statement, for the usual case."""

    full: Callable[[sqlite3.Connection], Any]
    quick: Callable[[sqlite3.Connection], Any] | None = None
    synced: bool = False

    def within(self, connection: sqlite3.Connection) -> Any:
        """Do it as a part of a transaction."""
        if self.quick is not None and (quickly := self.quick(connection)) is not None:
            return quickly
        return self.full(connection)


class SQLiteLedger:
    """A ledger in the file at `path`, made (readable by its owner only) if it does not exist.

    `durability` says what an arm must survive: "power" (the default: a power failure; one synced write each) or
    "process" (kill -9 only). `retention` is how many seconds a settled record is kept, `timeout` how many an operation
    may wait for others.

    Raises `ConfigurationError` at once for a place where no ledger can be: no such folder, a read-only disk, a network
    file system, a file that is something else or of a newer release; `LedgerUnavailable` if the disk is full.
    """

    durable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        durability: Literal["power", "process"] = "power",
        retention: float = RETENTION,
        timeout: float = ARM_TIMEOUT,
    ) -> None:
        if durability not in ("power", "process"):
            raise PolicyError.of("durability", durability, "'power' or 'process'")
        for name, seconds in (("retention", retention), ("timeout", timeout)):
            if not seconds > 0:
                raise PolicyError.of(name, seconds, "more than 0 seconds")
        self._path = os.path.realpath(path)
        self._clock = clock or SystemClock()
        self._durability = durability
        self._retention = retention
        # Three quarters of the time for other threads and processes of ours, a quarter for strangers in the file.
        self._patience = timeout * 0.75
        self._file = files.LedgerFile(self._path, timeout * 0.25)
        self._group: Group[_Work] = Group(self._serve, self._patience)
        self._reading = threading.Lock()  # one listing at a time
        self._file.open(self._patience)
        weakref.finalize(self, _close_quietly, self._file)
        _alive.add(self)

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> SQLiteLedger:
        """`sqlite:///relative.db` or `sqlite:////absolute.db`; options may follow: `?durability=process&timeout=1`."""
        path = path_of(url)
        for name, text in parse_qsl(urlsplit(url).query, keep_blank_values=True):
            if name not in ("durability", "retention", "timeout"):
                raise ConfigurationError(
                    f"ledger {url!r}: unknown option {name!r}; must be durability, retention or timeout"
                )
            try:
                options.setdefault(name, text if name == "durability" else float(text))
            except ValueError:
                raise PolicyError.of(name, text, "a number of seconds") from None
        return cls(path, clock=clock, **options)

    def arm(self, take: Take) -> Taken | Refused:
        def quick(connection: sqlite3.Connection) -> Taken | Refused | None:
            after, answer = transitions.arm(None, take, self._clock.now(), self._retention)
            assert after is not None
            return answer if connection.execute(_INSERT, _row(after)).rowcount else None

        full = self._step(take.key, lambda record, now: transitions.arm(record, take, now, self._retention))
        answer: Taken | Refused = self._run(_Work(full, quick, self._durability == "power"))
        return answer

    def claim(self, take: Take) -> Taken | Refused:
        full = self._step(take.key, lambda record, now: transitions.claim(record, take, now, self._retention))
        answer: Taken | Refused = self._run(_Work(full))
        return answer

    def read(self, key: bytes) -> tuple[Record | None, float]:
        with self._reported(), self._group.alone():
            connection = self._file.connection(self._patience)
            now = self._clock.now()
            return transitions.live(_read(connection, key), now), now

    def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        return self._change(
            key,
            lambda record, now: transitions.park(
                record, owner, fence, now, self._retention, lease=lease, not_before=not_before
            ),
        )

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        def quick(connection: sqlite3.Connection) -> bool | None:
            values = (_json(result), self._clock.now() + self._retention, key)
            return bool(connection.execute(_DONE, values).rowcount) or None

        return self._change(
            key,
            lambda record, now: transitions.done(record, key, result, now, self._retention, provider=provider),
            quick,
        )

    def reject(self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0) -> bool:
        return self._change(
            key,
            lambda record, now: transitions.reject(
                record, owner, fence, now, self._retention, sure=sure, not_before=not_before
            ),
        )

    def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        return self._change(key, lambda record, now: transitions.unknown(record, owner, fence, not_before=not_before))

    def expire(self, key: bytes, fence: int) -> bool:
        return self._change(key, lambda record, now: transitions.expire(record, fence, now))

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return self._change(
            key,
            lambda record, now: transitions.resolve(
                record, fence, verdict, now, self._retention, quiet=quiet, result=result
            ),
        )

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008 - an immutable value
        # In pages, by a connection of its own: a reader that stays would let the log grow, one that shares would hold
        # up the senders.
        held = "phase = 5 AND" if where.phases == {Phase.HELD} else ""
        last = b""
        while True:
            with self._reader() as connection:
                rows = connection.execute(f"{_SELECT} WHERE {held} key > ? ORDER BY key LIMIT 500", (last,)).fetchall()
            now = self._clock.now()
            found = [_record(row) for row in rows]
            yield from (record for record in found if transitions.matches(record, where, now))
            if not found:
                return
            last = found[-1].key

    def counts(self) -> Mapping[Phase, int]:
        with self._reader() as connection:
            rows = connection.execute(_COUNT, (self._clock.now(),)).fetchall()
        return {Phase(phase): count for phase, count in rows}

    def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        if dry_run:
            with self._reader() as connection:
                return int(connection.execute(_OVER, (self._clock.now(),) * 2).fetchone()[0])
        # Among many keys each record lies on a page of its own. So in small transactions, between which senders get
        # their turn, and for a short while only: whoever wants more asks again.
        deleted, end = 0, _system.monotonic() + _STEP
        while deleted < limit:
            looked_at, over = self._run(_Work(partial(self._collect, limit=min(limit - deleted, _AT_ONCE))))
            deleted += over
            if not looked_at or (deleted and _system.monotonic() > end):
                break
        return deleted

    def _collect(self, connection: sqlite3.Connection, limit: int) -> tuple[int, int]:
        """One step of a purge: how many records were looked at, and how many of them deleted."""
        now = self._clock.now()
        due = connection.execute(_DUE, (now, limit)).fetchall()
        over = [(key,) for key, phase, expires in due if phase in COLLECTABLE and expires <= now]
        # Armed and held ones don't expire, but may be settled by then; not later than what is settled now expires.
        again = now + min(_AGAIN, self._retention)
        left = [
            (expires if phase in COLLECTABLE else again, key)
            for key, phase, expires in due
            if phase not in COLLECTABLE or expires > now
        ]
        connection.executemany("DELETE FROM sends WHERE key = ?", over)
        connection.executemany("UPDATE sends SET collect = ? WHERE key = ?", left)
        return len(due), len(over)

    def problems(self) -> list[str]:
        if self._durability == "power" and files.is_volatile(self._path):
            return [f"{self._path} is on a file system in memory: a power failure forgets every send"]
        return []

    def close(self) -> None:
        with self._reported(), self._group.alone():
            self._file.close(self._patience)

    def _change(
        self,
        key: bytes,
        step: Callable[[Record | None, float], Record | None],
        quick: Callable[[sqlite3.Connection], bool | None] | None = None,
    ) -> bool:
        def answered(record: Record | None, now: float) -> tuple[Record | None, bool]:
            after = step(record, now)
            return after, after is not record

        answer: bool = self._run(_Work(self._step(key, answered), quick))
        return answer

    def _step(
        self, key: bytes, step: Callable[[Record | None, float], tuple[Record | None, T]]
    ) -> Callable[[sqlite3.Connection], T]:
        """The work that takes a record through this step."""

        def full(connection: sqlite3.Connection) -> T:
            before = _read(connection, key)
            after, answer = step(before, self._clock.now())
            if after is not None and after is not before:
                connection.execute(_REPLACE, _row(after))
            return answer

        return full

    def _run(self, work: _Work) -> Any:
        try:
            return self._group.run(work)
        except _TROUBLE as error:
            raise self._unavailable(error) from error

    def _serve(self, works: Sequence[_Work], deadline: float) -> Sequence[Any]:
        patience = deadline - _system.monotonic()
        if len(works) == 1:
            work = works[0]
            return [self._file.transact(work.full, patience, synced=work.synced, quick=work.quick)]
        return self._file.transact(
            lambda connection: [work.within(connection) for work in works],
            patience,
            synced=any(work.synced for work in works),
        )

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._reported():
            with self._group.alone():
                self._file.connection(self._patience)  # open, and still the same file?
            with self._reading, self._file.reader() as connection:
                yield connection

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except _TROUBLE as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> LedgerUnavailable:
        return LedgerUnavailable(f"ledger {self._path}: {error}")

    @contextmanager
    def _still(self) -> Iterator[None]:
        """No thread is inside SQLite. Raises `TimeoutError`."""
        if not self._reading.acquire(timeout=self._patience):
            raise TimeoutError
        try:
            with self._group.alone():
                yield
        finally:
            self._reading.release()

    def _after_fork(self) -> None:
        self._file.forget()
        self._group = Group(self._serve, self._patience)
        self._reading = threading.Lock()


def path_of(url: str) -> str:
    """The file that a `sqlite:` URL names. Raises `ConfigurationError` for one that names none."""
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.fragment or not path or path == ":memory:" or "\0" in path:
        raise ConfigurationError(
            f"ledger {url!r} is not allowed; must be sqlite:///relative.db or sqlite:////absolute.db "
            "(memory: keeps records in the process)"
        )
    return path


def _close_quietly(file: files.LedgerFile) -> None:
    with suppress(sqlite3.Error, OSError):
        file.close(patience=0.1)


def _read(connection: sqlite3.Connection, key: bytes) -> Record | None:
    row = connection.execute(_READ, (key,)).fetchone()
    return None if row is None else _record(row)


def _record(row: tuple[Any, ...]) -> Record:
    values = dict(zip(_NAMES, row, strict=True))
    values["phase"] = Phase(values["phase"])
    values["taint"] = bool(values["taint"])
    if values["result"] is not None:
        values["result"] = json.loads(values["result"])
    return Record(**values)


def _row(record: Record) -> list[Any]:
    values = list(_values(record))
    values[_PHASE] = int(record.phase)
    values[_TAINT] = int(record.taint)
    if record.result is not None:
        values[_RESULT] = _json(record.result)
    values.append(record.expires)
    return values


_encoder = json.JSONEncoder(separators=(",", ":"))


def _json(result: Mapping[str, Any]) -> str:
    return _encoder.encode(dict(result))


_alive: weakref.WeakSet[SQLiteLedger] = weakref.WeakSet()


_forking = threading.local()


def _hold_still() -> None:
    # A child that is born while a thread is inside SQLite inherits its locks, with nobody there to release them.
    _forking.held = ExitStack()
    for ledger in sorted(_alive, key=id):
        with suppress(TimeoutError):
            _forking.held.enter_context(ledger._still())


def _go_on() -> None:
    _forking.held.close()


def _start_anew() -> None:
    _go_on()
    for ledger in list(_alive):
        ledger._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_still, after_in_parent=_go_on, after_in_child=_start_anew)
