"""The ledger in PostgreSQL: a table of its own, over connections of its own.

What is said to the server is in `postgres_steps`. Sources: PostgreSQL's documentation of INSERT, asynchronous commit,
heap-only tuples, and of its client library's connection parameters.
"""

from __future__ import annotations

import os
import re
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard.ledger import Filter, Phase, Record
from retrypolicy.guard.postgres_steps import NotReplicated, PostgresSteps, Statement
from retrypolicy.guard.stepped import SteppedLedger, Steps, take_options

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

SLOW = 60.0  # seconds for what may read the whole table; nobody waits for it with a request in hand
MOST_IDLE = 16  # connections kept for the next operation
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "table": str,
    "retention": float,
    "timeout": float,
    "prepare_threshold": lambda text: None if text == "none" else int(text),
}
_WAKE = 0.1  # seconds between two looks at the clock while a server does not answer
_system = SystemClock()


class PostgresLedger(SteppedLedger[PostgresSteps]):
    """A ledger in PostgreSQL 12 or newer, for any number of machines.

    `dsn_or_pool`: a connection string or URL as libpq understands it, or a `psycopg_pool.ConnectionPool`; never a
    connection of the caller's, whose transaction could roll a send back. Connections made here give up after `timeout`
    seconds and are made anew after trouble, in a forked child as well.

    `table` (or `schema.table`) is created if it does not exist. Behind a pooler that gives every transaction another
    connection (pgbouncer), pass `prepare_threshold=None`. Every arm is on the disk, and on a synchronous standby,
    before it is answered, whatever the session's `synchronous_commit` says; nothing else waits for it. With an
    asynchronous standby a failover can forget arms (`problems` says so). All times are the server's; `clock` is for
    tests. Expired records stay until `purge`.
    """

    def __init__(self, dsn_or_pool: Any, *, prepare_threshold: int | None = 0, **options: Any) -> None:
        self._steps = PostgresSteps(**options)
        self._pool = None if isinstance(dsn_or_pool, str) else a_pool(dsn_or_pool)
        if self._pool is None:
            self._connect = connector(dsn_or_pool, prepare_threshold, self._steps.timeout)
        self._idle: deque[psycopg.Connection[Any]] = deque()
        self._closer = weakref.finalize(self, _close_all, self._idle)
        _alive.add(self)

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> PostgresLedger:
        """A URL may carry this class's own options and libpq's: `postgresql://host/db?table=sends&sslmode=verify-full`."""
        url, found = split_options(url)
        return cls(url, clock=clock, **(found | options))

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008 - an immutable value
        last: bytes | None = b""
        while last is not None:
            found, last = self._run(self._steps.page(where, last), SLOW)
            yield from found

    def counts(self) -> Mapping[Phase, int]:
        return self._run(self._steps.counts(), SLOW)

    def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        return self._run(self._steps.over() if dry_run else self._steps.purge(limit), SLOW)

    def close(self) -> None:
        _close_all(self._idle)

    def _run(self, steps: Steps[T], patience: float | None = None, /) -> T:
        deadline = _system.monotonic() + (patience or self._steps.timeout)
        try:
            statement = next(steps)
            while True:
                try:
                    rows = self._exchange(statement, deadline)
                except NotReplicated as error:
                    statement = steps.throw(error)
                else:
                    statement = steps.send(rows)
        except StopIteration as end:
            answer: T = end.value
            return answer
        except NotReplicated as error:
            raise unavailable(error) from error

    def _exchange(self, statement: Statement, deadline: float) -> list[tuple[Any, ...]]:
        from psycopg.waiting import wait_selector

        tries = 0
        while True:
            tries += 1
            try:
                with self._connection(deadline) as connection, watched(connection, deadline, wait_selector):
                    cursor = connection.execute(statement.text.encode(), statement.values, prepare=statement.prepare)
                    rows = cursor.fetchall() if cursor.description else []
            except NotReplicated:
                raise
            except Exception as error:
                if not may_repeat(error, tries, deadline):
                    raise unavailable(error) from error
            else:
                return rows

    @contextmanager
    def _connection(self, deadline: float) -> Iterator[psycopg.Connection[Any]]:
        if self._pool is not None:
            with self._pool.connection(timeout=max(0.0, deadline - _system.monotonic())) as connection:
                # One statement is one transaction: without BEGIN and COMMIT it is one round trip.
                before = connection.autocommit
                connection.autocommit = True
                try:
                    yield connection
                except BaseException:
                    connection.close()  # nobody knows what it is in the middle of
                    raise
                connection.autocommit = before
            return
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            _close_all(self._idle)  # the others are as old
            raise
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def _after_fork(self) -> None:
        # Closing them, now or at the end, would end the parent's sessions.
        self._closer.detach()
        _abandoned.append(self._idle)
        self._idle = deque()
        self._closer = weakref.finalize(self, _close_all, self._idle)


def a_pool(given: Any) -> Any:
    """The pool, if it is one. Raises `ConfigurationError`: a connection may be in a transaction."""
    if not callable(getattr(given, "connection", None)):
        raise ConfigurationError(
            f"ledger in PostgreSQL: {type(given).__name__} is not allowed; "
            "must be a URL or a psycopg_pool.ConnectionPool"
        )
    return given


def connector(
    dsn: str, prepare_threshold: int | None, timeout: float, *, asynchronous: bool = False
) -> Callable[[], Any]:
    """Makes connections with short time-outs. Raises `ConfigurationError` for a bad string or a missing package."""
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo
    except ImportError:
        raise ConfigurationError(
            "a ledger in PostgreSQL needs the package psycopg: pip install 'retrypolicy[postgres]'"
        ) from None
    bad = ConfigurationError(
        "ledger: this URL is not allowed; must be postgresql://user@host:port/database, with libpq's parameters "
        "(what is special in a password is escaped: %40 for @, %2F for /)"
    )
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise bad from None  # its words may quote the string, password included
    # After a password with @ or / in it, what is left of that counts as the host or the port, which errors name.
    if "@" in str(given.get("host", ""))[1:] or not re.fullmatch(r"[\d,]*", str(given.get("port", ""))):
        raise bad
    settings: dict[str, str | int] = {
        "connect_timeout": max(2, round(timeout)),
        "tcp_user_timeout": round(timeout * 1000),
        "fallback_application_name": "retrypolicy",
    }
    conninfo = make_conninfo(dsn, **{name: value for name, value in settings.items() if name not in given})
    kind = psycopg.AsyncConnection if asynchronous else psycopg.Connection
    return lambda: kind.connect(conninfo, autocommit=True, prepare_threshold=prepare_threshold)


def split_options(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without our own options, and these."""
    return take_options(url, _OPTIONS)


@contextmanager
def watched(connection: Any, deadline: float, wait: Callable[..., Any]) -> Iterator[None]:
    """Limits how long a statement on this connection (sync or async) takes, and hears what the server warns of.

    psycopg knows no time limit of its own for a statement, and a server that hangs keeps none. `wait` is the function
    of psycopg that waits, in Python: the one in C (before 3.3) does not wake up in between. Raises `NotReplicated` if
    the commit was let go before the standby had it: for the server that is a success with a warning.
    """
    let_go: list[bool] = []

    def hear(notice: Any) -> None:
        let_go.append(notice.source_function == "SyncRepWaitForLSN")

    def limited(steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        try:
            state = next(steps)
            while True:
                ready = yield state
                if not ready and _system.monotonic() > deadline:
                    raise TimeoutError("the server does not answer")
                state = steps.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer

    connection.wait = lambda steps, *_, **__: wait(limited(steps), connection.pgconn.socket, _WAKE)
    connection.add_notice_handler(hear)
    try:
        yield
    finally:
        connection.remove_notice_handler(hear)
        del connection.wait
    if any(let_go):
        raise NotReplicated


def may_repeat(error: Exception, tries: int, deadline: float) -> bool:
    """A conflict that the server wants us to try again, or, once, a connection from before the server's restart."""
    import psycopg

    if _system.monotonic() > deadline:
        return False
    if isinstance(error, (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)):
        return True
    lost = isinstance(error, psycopg.OperationalError) and not isinstance(error, psycopg.errors.ConnectionTimeout)
    return lost and tries == 1


def unavailable(error: Exception) -> LedgerUnavailable:
    """What a ledger raises instead of psycopg's error."""
    return LedgerUnavailable(f"ledger in PostgreSQL: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _close_all(connections: deque[psycopg.Connection[Any]]) -> None:
    while connections:
        connections.pop().close()


_alive: weakref.WeakSet[PostgresLedger] = weakref.WeakSet()
_abandoned: list[Any] = []


def _start_anew() -> None:
    for ledger in list(_alive):
        ledger._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
