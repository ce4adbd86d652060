"""Under fire: 4 processes of 4 threads, kill -9 at random moments, answers dropped, the store killed as well.

Applied twice 0, lost 0, everything else held: for each store. FIRE_SENDS says how many sends (`nox -s fire`: 10,000).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.guard import MemoryLedger, open_ledger

from ..guard.servers import Postgres, Valkey, new_valkey, postgres  # noqa: TID252 - no other path is sure
from .burning import Figures, burn

__all__ = ["new_valkey", "postgres"]

SENDS = int(os.environ.get("FIRE_SENDS", "200"))
LONG = SENDS > 1000
OPTIONS: dict[str, Any] = {
    "chunk": 150 if LONG else 30,
    "kill_every": 0.4 if LONG else 0.25,
    "chaos_every": 4.0 if LONG else 1.5,
    "patience": 3600.0 if LONG else 100.0,
}

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def check(figures: Figures, name: str) -> None:
    print(f"\n{name}: {figures}")
    assert (figures.twice, figures.lost, figures.false) == (0, 0, 0)
    assert figures.once + figures.held - figures.held_but_applied == figures.sends
    assert figures.kills > 0
    assert figures.once > figures.sends / 2
    assert figures.held < figures.sends * 0.8


def test_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sends.db"
    with closing(open_ledger(url)) as ledger:
        check(burn(ledger, url, SENDS, seed=1, **OPTIONS), "SQLite")


@pytest.mark.slow
def test_a_server_that_honours_keys_gets_everything_and_applies_it_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sends.db"
    with closing(open_ledger(url)) as ledger:
        figures = burn(ledger, url, SENDS, keys=True, seed=2, **OPTIONS)
        check(figures, "SQLite, a server that honours keys")
    # Held is only what ran out of attempts, or was never delivered again.
    assert figures.held <= SENDS * 0.02 + 2


@pytest.mark.slow
def test_valkey_killed_as_well(new_valkey: Callable[..., Valkey]) -> None:
    server = new_valkey()

    def chaos() -> None:
        server.kill()
        server.start()

    with closing(open_ledger(server.url)) as ledger:
        check(burn(ledger, server.url, SENDS, chaos=chaos, seed=3, **OPTIONS), "Valkey, killed as well")


@pytest.mark.slow
def test_postgresql_killed_as_well(postgres: Postgres) -> None:
    url = f"{postgres.url}&table=t{os.urandom(6).hex()}"

    def chaos() -> None:
        postgres.kill()
        postgres.start()

    with closing(open_ledger(url)) as ledger:
        check(burn(ledger, url, SENDS, chaos=chaos, seed=4, **OPTIONS), "PostgreSQL, killed as well")


def test_a_ledger_that_forgets_is_found_out() -> None:
    """Each process has a memory of its own here, which dies with it: the fire is hot enough to show that."""
    figures = burn(MemoryLedger(), "memory:", min(SENDS, 200), seed=5, **OPTIONS)
    assert figures.twice > 0
