"""Under fire: `db_worker` processes killed at random, with the reaper as cron. The server's count is the truth.

QUEUE_SENDS says how many tasks (`nox -s fire`: 1,000).
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from retrypolicy.guard import Phase
from retrypolicy.queues.django_tasks import follow, reap

from . import tasks_shop
from .task_workers import TaskSite
from .workers import SENDS, bad_hour, key_of

WORKERS = 2
DEAD = 3.0  # seconds after which a task that is running has no worker
PATIENCE = 120.0 + 2 * SENDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]


def test_a_bad_hour(tmp_path: Path) -> None:
    chance = random.Random(11)
    fates: Counter[str] = Counter()
    kills = 0
    with TaskSite(tmp_path) as site:
        site.shop["attempts"] = 20  # none is to fail for being killed or refused often
        site.answer = bad_hour(chance)
        results = [tasks_shop.ours.enqueue("no", n, idempotency_key=key_of(n)) for n in range(SENDS)]
        alive = [site.start() for _ in range(WORKERS)]
        began = time.monotonic()
        open_ = set(range(SENDS))
        while open_:
            time.sleep(chance.expovariate(1 / 0.8))
            open_ = {n for n in open_ if not site.stands_at(key_of(n), Phase.DONE)}
            open_ -= {n for n in open_ if site.stands_at(key_of(n), Phase.HELD)}
            assert time.monotonic() < began + PATIENCE, f"{len(open_)} tasks came to no end: {sorted(open_)[:9]}"
            fates.update(reaped.fate for reaped in reap(older_than=DEAD))
            at_work = [worker for worker in alive if worker.pid in site.pids]
            if at_work and kills < SENDS / 6:
                victim = chance.choice(at_work)
                site.kill(victim)
                alive[alive.index(victim)] = site.start()
                kills += 1
        seconds = time.monotonic() - began
        for worker in alive:
            site.kill(worker)
        killed = f"{kills} workers killed, {fates['ready']} rows made ready again, {fates['ended']} ended"
        held = site.count_up(f"Django tasks: {SENDS} in {seconds:.0f} s, {killed}")
        listed = {record.label for record in site.ledger.records() if record.phase is Phase.HELD}
        over = {n: follow(result).status for n, result in enumerate(results) if n not in held}
    assert listed == {f"tests.queues.tasks_shop.ours[{results[n].id}]" for n in held}
    assert kills > 0
    assert fates["failed"] == fates["left alone"] == 0
    assert set(over.values()) <= {"SUCCESSFUL", "RUNNING", "READY"}
