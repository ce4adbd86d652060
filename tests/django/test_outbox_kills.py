"""kill -9 of a process at each point of a sale, then the sweeper. Ground truth is what the server got.

Without the outbox: `on_commit` as Django's documentation has it, and a message that is sent inside the transaction.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from django.core.management import call_command
from django.db import connections

from retrypolicy.django.ledger import DatabaseLedger
from retrypolicy.django.models import OutboxMessage
from retrypolicy.guard import Phase, upkeep
from retrypolicy.guard.key import Secret, key_digest
from retrypolicy.testing import FaultServer, Stall
from tests.anymail.sending import ok

from .outbox_shop import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]

ROOT = Path(__file__).parents[2]
POINTS = ["open", "committed", "wire", "recorded"]
PATIENCE = 60.0


def wait_for(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"{what} took longer than {PATIENCE} s"
        time.sleep(0.05)


class Town:
    """A database, a mail provider that counts, and the shops that were opened."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.accepted: Counter[str] = Counter()
        self.server = FaultServer(self._step)
        settings = connections[alias].settings_dict
        database = {name: str(settings[name]) for name in ("ENGINE", "NAME", "USER", "HOST")}
        self.shop: dict[str, Any] = {"database": database}

    def _step(self, request: Any) -> Any:
        text = json.loads(request.body)["TextBody"]
        self.accepted[text] += 1
        # The answer to those that are to be killed on the wire does not come, the first time.
        return Stall() if text.endswith("wire") and self.accepted[text] == 1 else ok("postmark")

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.shop["server"] = self.server.url("/")
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self.shops = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.django.outbox_shop"],
            cwd=ROOT,
            env={**os.environ, "SHOP": json.dumps(self.shop), "PYTHONPATH": path},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.shops.communicate()
        self.server.__exit__(None, None, None)

    def ask(self, *line: object) -> int:
        assert self.shops.stdin is not None
        assert self.shops.stdout is not None
        print(*line, file=self.shops.stdin, flush=True)
        return int(self.shops.stdout.readline())

    def sell(self, kind: str, *points: str) -> None:
        """Sell once for each point, and kill the shop there."""
        for point in points:
            shop = self.ask("sell", kind, point)
            if point == "wire":
                wait_for(lambda point=point: self.accepted[f"{kind} {point}"], "the way to the server")
                os.kill(shop, signal.SIGKILL)
            assert self.ask("wait", shop) == -signal.SIGKILL

    def sweep(self) -> None:
        """As if the time that whoever had a message has for it were over."""
        self.rows.update(due=0)
        assert self.ask("wait", self.ask("sweep")) == 0

    @property
    def rows(self) -> Any:
        return OutboxMessage.objects.using(self.alias)

    def counted(self, kind: str) -> list[int]:
        return [self.accepted[f"{kind} {point}"] for point in POINTS]

    def orders(self) -> set[str]:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT name FROM orders")
            return {name for (name,) in cursor.fetchall()}


@pytest.fixture
def in_a_file(tmp_path: Path) -> Iterator[str]:
    alias = f"file_{tmp_path.name}"
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "shop.sqlite3")}
    connections.settings[alias] = connections.configure_settings({"default": settings})["default"]
    call_command("migrate", "retrypolicy", database=alias, verbosity=0)
    yield alias
    connections[alias].close()
    del connections[alias]
    del connections.settings[alias]


@pytest.fixture(params=["in_a_file", "on_postgres"])
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    alias: str = request.getfixturevalue(request.param)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE orders (name varchar(50))")
    with Town(alias) as town:
        yield town


def test_a_shop_dies_at_each_point(town: Town) -> None:
    town.sell("ours", *POINTS)
    assert town.counted("ours") == [0, 0, 1, 1]
    assert sorted(town.rows.values_list("key", flat=True)) == [
        "receipt/committed", "receipt/recorded", "receipt/wire",
    ]  # fmt: skip
    ledger = DatabaseLedger(town.alias)
    digest = key_digest(Secret.of(SECRET), "receipt/wire")
    wait_for(lambda: upkeep.standing(*_there(ledger, digest)) is Phase.HELD, "the end of the lease")
    town.sweep()
    assert town.counted("ours") == [0, 1, 1, 1]
    (row,) = town.rows
    assert (row.key, row.get_state_display(), row.digest) == ("receipt/wire", "held", digest.hex())
    assert town.orders() == {"ours committed", "ours wire", "ours recorded"}
    town.sweep()  # and once more: nothing changes
    assert town.counted("ours") == [0, 1, 1, 1]

    record, _ = ledger.read(digest)
    assert record is not None
    upkeep.resolve(ledger, record, "applied", by="the provider's log")
    town.sweep()
    assert (town.counted("ours"), town.rows.count()) == ([0, 1, 1, 1], 0)
    ledger.close()


def _there(ledger: DatabaseLedger, digest: bytes) -> Any:
    record, now = ledger.read(digest)
    assert record is not None
    return record, now


def test_what_happens_without_it(in_a_file: str) -> None:
    with connections[in_a_file].cursor() as cursor:
        cursor.execute("CREATE TABLE orders (name varchar(50))")
    with Town(in_a_file) as town:
        town.sell("plain", *POINTS)
        town.sell("early", "open", "committed")
        town.sweep()
    assert town.counted("plain") == [0, 0, 1, 1]  # the second is lost, and of the third nobody knows
    assert town.counted("early")[:2] == [1, 1]  # the first for an order that there is not
    assert "early open" not in town.orders()
    assert "plain committed" in town.orders()
