"""Under fire: an outbox that is handed over to Celery. The broker loses messages, everybody is killed; none is lost.

QUEUE_SENDS says how many messages (`nox -s fire`: 1,000).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.guard import Phase, upkeep
from retrypolicy.guard.key import Secret, key_digest
from tests.anymail.sending import ok

from ..guard.servers import Valkey, new_valkey  # noqa: TID252 - no other path is sure
from .shop import SECRET
from .workers import SENDS, Site, bad_hour, key_of

__all__ = ["new_valkey"]

MODULE = "tests.queues.celery_outbox_shop"
HELD = 2  # as OutboxMessage.State has it
PATIENCE = 120.0 + 2 * SENDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif("QUEUE_SENDS" not in os.environ, reason="nox -s fire runs it")]


class Town(Site):
    """A mail provider that counts, a project with its database and outbox, and the workers of its broker."""

    def __init__(self, place: Path, valkey: Valkey) -> None:
        super().__init__(place)
        options = {"visibility_timeout": 5.0, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
        self.shop |= {"broker": valkey.url, "options": options, "database": str(place / "shop.sqlite3")}

    def _step(self, request: Any) -> Any:
        number = int(json.loads(request.body)["TextBody"].removeprefix("order "))
        with self._lock:
            answer, applies = self.answer({})
            if applies:
                self.applied["ours", "no", number] += 1
        return ok("postmark") if getattr(answer, "status", None) == 200 else answer

    def phase(self, key: str) -> Phase | None:
        """Also of what nobody has looked at since its lease was over."""
        record, now = self.ledger.read(key_digest(Secret.of(SECRET), key))
        return None if record is None else upkeep.standing(record, now)

    def run(self, *arguments: object) -> subprocess.Popen[bytes]:
        return self.spawn(MODULE, *map(str, arguments))

    def start(self) -> subprocess.Popen[bytes]:
        command = ["celery", "-A", MODULE, "worker", "-P", "prefork", "-c", "4", "-l", "WARNING"]
        return self.spawn(*command, "--without-gossip", "--without-mingle")

    def children(self, worker: subprocess.Popen[bytes]) -> list[int]:
        try:
            return [int(p) for p in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]
        except OSError:
            return []

    def rows(self) -> dict[int, int]:
        """How many messages are in the outbox, by their state."""
        with sqlite3.connect(self.shop["database"], timeout=20) as database:
            found = dict(database.execute("SELECT state, count(*) FROM retrypolicy_outbox GROUP BY state").fetchall())
        database.close()
        return found


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the children of a worker in /proc")
def test_nothing_is_lost_whatever_the_broker_loses(new_valkey: Callable[..., Valkey], tmp_path: Path) -> None:
    chance = random.Random(11)
    valkey = new_valkey()
    with Town(tmp_path, valkey) as town:
        town.answer = bad_hour(chance)
        assert town.run("migrate").wait() == 0
        began = time.monotonic()
        kills = whole = shops_killed = forgotten = sweeps = 0
        shop, sweeper, worker = town.run("sell", 0, SENDS), None, town.start()
        client = valkey.client()
        while True:
            time.sleep(chance.expovariate(1 / 0.4))
            assert time.monotonic() < began + PATIENCE, f"no end: {town.rows()}"
            if shop.poll():
                shop = town.run("sell", 0, SENDS)  # whoever was killed begins again
            elif shops_killed < 3 and chance.random() < 0.1:
                town.kill(shop)
                shops_killed += 1
            if chance.random() < 0.2 and (waiting := client.llen("celery")):
                forgotten += waiting
                client.delete("celery")
            if worker.poll() is not None:  # it gives up if its children are killed while it starts
                worker = town.start()
            elif chance.random() < 0.05:
                town.kill(worker)
                worker, whole = town.start(), whole + 1
            elif children := town.children(worker):
                os.kill(chance.choice(children), signal.SIGKILL)
                kills += 1
            if sweeper is None or sweeper.poll() is not None:
                if shop.poll() == 0 and not set(town.rows()) - {HELD}:
                    break
                sweeper, sweeps = town.run("sweep"), sweeps + 1
            elif chance.random() < 0.1:
                town.kill(sweeper)
        seconds = time.monotonic() - began
        town.kill(worker)
        said = f"{kills} children and {whole} whole workers killed, {forgotten} messages lost by the broker"
        held = town.count_up(f"Outbox and Celery: {SENDS} receipts in {seconds:.0f} s, {said}, {sweeps} sweeps")
        assert len(held) == town.rows().get(HELD, 0)
        assert all(town.phase(key_of(number)) in (Phase.DONE, Phase.HELD) for number in range(SENDS))
    assert kills > 0
