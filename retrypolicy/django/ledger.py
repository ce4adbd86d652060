"""The ledger in a Django database: over connections of its own, so that nobody's rollback reaches it.

PostgreSQL: the table that `migrate` makes. SQLite: a file of its own beside the database, since a second connection to
the same file would wait for the request's transaction. Inside Django's TestCase: memory that ends with the test.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import Ledger, MemoryLedger, Phase, Record, open_ledger
from retrypolicy.guard.ledger import Filter, Refused, Take, Taken

TABLE = "retrypolicy_ledger"
SUFFIX = ".retrypolicy"
"""Put after the name of a SQLite database, it names the ledger's file."""

_NOT_LIBPQ = frozenset({
    "assume_role", "client_encoding", "context", "cursor_factory", "isolation_level", "pool", "prepare_threshold",
    "row_factory", "server_side_binding",
})  # fmt: skip
"""Options of Django and of psycopg, which are not part of a connection string."""


def open_any(name: str) -> Ledger:
    """The ledger that this alias of a database, or this URL, names. Raises `ConfigurationError`."""
    return open_ledger(name) if ":" in name else DatabaseLedger(name)


class DatabaseLedger:
    """The ledger in the Django database `alias`. Connections are made from its settings when it is first used.

    It follows the database: to the test database while tests run, and there into memory where the test's own
    transaction would hide or block it. Raises `ConfigurationError` for an unknown alias, or for a kind of database that
    can't hold a ledger.
    """

    durable = True

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._place: tuple[str, str] | None = None
        self._store: Ledger | None = None
        self._memories: weakref.WeakKeyDictionary[object, Ledger] = weakref.WeakKeyDictionary()
        where_is(alias)

    # -- which store

    @property
    def store(self) -> Ledger:
        """The ledger behind this name, here and now."""
        if testing():
            test = _running_test(self.alias)
            if test is not None:
                return self._memories.setdefault(test, MemoryLedger())
        place = where_is(self.alias)
        if self._store is None or self._place != place:
            self.close()
            self._store, self._place = _open(self.alias, *place), place
        return self._store

    def _do(self, operation: str, *args: Any, **options: Any) -> Any:
        store = self.store
        try:
            return getattr(store, operation)(*args, **options)
        finally:
            if testing():
                store.close()  # an open connection would keep the test database from being dropped

    def forget(self) -> None:
        """Between tests: what was kept in memory is over."""
        self._memories.clear()
        if isinstance(self._store, MemoryLedger):
            self._store = None

    # -- a ledger

    def arm(self, take: Take) -> Taken | Refused:
        answer: Taken | Refused = self._do("arm", take)
        return answer

    def claim(self, take: Take) -> Taken | Refused:
        answer: Taken | Refused = self._do("claim", take)
        return answer

    def read(self, key: bytes) -> tuple[Record | None, float]:
        answer: tuple[Record | None, float] = self._do("read", key)
        return answer

    def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        return bool(self._do("park", key, owner, fence, lease=lease, not_before=not_before))

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        return bool(self._do("done", key, result, provider=provider))

    def reject(self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0) -> bool:
        return bool(self._do("reject", key, owner, fence, sure=sure, not_before=not_before))

    def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        return bool(self._do("unknown", key, owner, fence, not_before=not_before))

    def expire(self, key: bytes, fence: int) -> bool:
        return bool(self._do("expire", key, fence))

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return bool(self._do("resolve", key, fence, verdict, quiet=quiet, result=result))

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008 - an immutable value
        store = self.store
        try:
            yield from store.records(where)
        finally:
            if testing():
                store.close()

    def counts(self) -> Mapping[Phase, int]:
        answer: Mapping[Phase, int] = self._do("counts")
        return answer

    def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        return int(self._do("purge", limit, dry_run=dry_run))

    def problems(self) -> list[str]:
        return list(self._do("problems"))

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def where_is(alias: str) -> tuple[str, str]:
    """Where the ledger of this database is: ("postgresql", connection string), ("sqlite", file) or ("memory", name).

    Raises `ConfigurationError` for an unknown alias or an unsuitable database.
    """
    try:
        connection = connections[alias]
    except (ConnectionDoesNotExist, ImproperlyConfigured):
        raise ConfigurationError(
            f"ledger: {alias!r} is not allowed; must be a URL, or the alias of a database: {', '.join(connections)}"
        ) from None
    settings = connection.settings_dict
    if connection.vendor == "postgresql":
        return "postgresql", _conninfo(settings)
    if connection.vendor == "sqlite":
        name = str(settings["NAME"])
        in_memory = name == ":memory:" or "mode=memory" in name
        return ("memory", f"memory:django-{alias}") if in_memory else ("sqlite", name + SUFFIX)
    raise ConfigurationError(
        f"ledger: the database {alias!r} is {connection.display_name}, and a ledger can only be in PostgreSQL or "
        "SQLite; name a URL in its place, such as sqlite:////var/lib/shop/sends.db or redis://host:6379/0"
    )


def _open(alias: str, kind: str, place: str) -> Ledger:
    if kind == "memory":
        return MemoryLedger()
    if kind == "sqlite":
        from retrypolicy.guard import SQLiteLedger

        return SQLiteLedger(place)
    from retrypolicy.guard import PostgresLedger

    threshold = connections[alias].settings_dict.get("OPTIONS", {}).get("prepare_threshold")
    return PostgresLedger(place, prepare_threshold=threshold, table=TABLE)


def _conninfo(settings: Mapping[str, Any]) -> str:
    """Django's settings of a PostgreSQL database as a connection string of libpq."""
    given = settings.get("OPTIONS", {})
    found = {name: value for name, value in given.items() if name not in _NOT_LIBPQ}
    named = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    found |= {name: settings[key] for key, name in named.items() if settings.get(key)}
    if given.get("assume_role"):
        found["options"] = f"{found.get('options', '')} -c role={given['assume_role']}".strip()
    return " ".join(f"{name}='{_escaped(value)}'" for name, value in sorted(found.items()))


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("'", "\\'")


# -- tests ------------------------------------------------------------------------------------------------------------


def testing() -> bool:
    """Has Django set up its test environment?"""
    return hasattr(mail, "outbox")


def _running_test(alias: str) -> object | None:
    """What lives as long as the running test, if the test has this database inside a transaction, or not at all."""
    connection = connections[alias]
    for block in reversed(connection.atomic_blocks):
        if getattr(block, "_from_testcase", False):
            return block
    forbidden = connection.connect
    return forbidden if hasattr(forbidden, "wrapped") else None
