"""From a URL to a ledger: Python, settings, the environment and the command all come through here."""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import Any

from retrypolicy import plugins
from retrypolicy.clock import Clock
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard.ledger import Ledger

LEDGER_VARIABLE = "RETRYPOLICY_LEDGER"
"""Where the URL of the ledger stands if nobody gives one."""

_STORES = {
    "memory": "retrypolicy.guard.memory:MemoryLedger",
    "sqlite": "retrypolicy.guard.sqlite:SQLiteLedger",
    "redis": "retrypolicy.guard.redis:RedisLedger",
    "rediss": "retrypolicy.guard.redis:RedisLedger",
    "valkey": "retrypolicy.guard.redis:RedisLedger",
    "valkeys": "retrypolicy.guard.redis:RedisLedger",
    "postgresql": "retrypolicy.guard.postgres:PostgresLedger",
    "postgres": "retrypolicy.guard.postgres:PostgresLedger",
}
"""Others register `scheme = module:Class` in the group `retrypolicy.ledgers`; the class has a classmethod
`from_url(url, *, clock, **options)`."""


def open_ledger(url: str | Ledger, *, clock: Clock | None = None, **options: Any) -> Ledger:
    """The ledger that `url` names; a ledger object is returned as it is.

    `memory:` (one per process and name: `memory:name`), `sqlite:///relative.db`, `sqlite:////absolute.db`,
    `redis://host:6379/0`, `postgresql://host/database`, or a scheme that an installed package registers.
    `clock` and `options` go to the store. Raises `ConfigurationError`, with what is allowed; and `LedgerUnavailable`
    where the store finds at once that it can't work. Never shows the URL's password.
    """
    if not isinstance(url, str):
        if not callable(getattr(url, "arm", None)):
            raise ConfigurationError(f"ledger: {type(url).__name__} is not allowed; must be a URL or a ledger")
        if clock is not None or options:
            raise ConfigurationError("ledger: an object has its clock and options already; give them with a URL only")
        return url
    scheme, colon, _ = url.partition(":")
    if not colon or not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*", scheme):
        raise ConfigurationError(f"ledger: a URL without a scheme is not allowed; must begin with one of {_allowed()}")
    store = _store(scheme.lower())
    ledger: Ledger = store.from_url(url, clock=clock, **options)
    return ledger


def ledger_from_environment() -> str | None:
    """The URL in `RETRYPOLICY_LEDGER`, if there is one."""
    return os.environ.get(LEDGER_VARIABLE, "").strip() or None


def open_existing(url: str) -> Ledger:
    """As `open_ledger`, but makes no new SQLite file: for tools, which look after what is there."""
    if url.partition(":")[0].lower() == "sqlite":
        from retrypolicy.guard.sqlite import path_of

        path = path_of(url)
        if not os.path.exists(path):
            raise ConfigurationError(f"ledger {path}: there is no such file")
    return open_ledger(url)


def _store(scheme: str) -> Any:
    if scheme not in _STORES:
        if scheme in plugins.names("ledgers"):
            return plugins.load("ledgers", scheme)
        raise ConfigurationError(f"ledger: {scheme}: is not a known kind; must be one of {_allowed()}")
    module, _, name = _STORES[scheme].partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"ledger {scheme}: needs the package {error.name!r}, which is not installed here"
        ) from error


def _allowed() -> str:
    others = set(plugins.names("ledgers"))
    return ", ".join(f"{scheme}:" for scheme in [*_STORES, *sorted(others - set(_STORES))])
