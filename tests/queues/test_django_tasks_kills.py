"""kill -9 of a `db_worker` at each point of a send: stock tasks, and tasks under a policy with the reaper.

Ground truth is what the server counted. The tasks are in a SQLite file, and in PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django_tasks_db.models import DBTaskResult

from retrypolicy.guard import Phase
from retrypolicy.queues.django_tasks import follow

from ..guard.servers import Postgres, postgres  # noqa: TID252 - no other path is sure
from . import tasks_shop
from .task_workers import TaskSite
from .workers import wait_for

__all__ = ["postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]

POINTS = ["before", "wire", "after"]
ENDS = {"before": Phase.DONE, "wire": Phase.HELD, "after": Phase.DONE}


def counted(site: TaskSite, kind: str) -> list[int]:
    return [site.applied[kind, point, 1] for point in POINTS]


def kill_all_at_their_points(site: TaskSite, kinds: list[Any]) -> dict[str, Any]:
    results = {}
    for task in kinds:
        for point in POINTS:
            key = {"idempotency_key": f"order/{point}"} if task is tasks_shop.ours else {}
            results[f"{task.name} {point}"] = task.enqueue(point, 1, **key)
    for _ in results:
        site.start()
    wait_for(lambda: len(site.waiting()) == len(results), "the way to the points")
    for worker in site.waiting():
        os.kill(worker, signal.SIGKILL)
    for process in site.workers:
        process.wait()
    return results


def check_ours(site: TaskSite, results: dict[str, Any]) -> None:
    for point, phase in ENDS.items():
        wait_for(partial(site.stands_at, f"order/{point}", phase), point)
    for point in ("before", "after"):
        wait_for(lambda point=point: follow(results[f"ours {point}"]).status == "SUCCESSFUL", point)
    wait_for(lambda: follow(results["ours wire"]).id != results["ours wire"].id, "the look at the held key")
    assert follow(results["ours wire"]).status == "READY"  # it comes back, and looks again
    assert counted(site, "ours") == [1, 1, 1]


def test_in_a_file(tmp_path: Path) -> None:
    with TaskSite(tmp_path) as site:
        results = kill_all_at_their_points(site, [tasks_shop.stock, tasks_shop.ours])
        assert counted(site, "stock") == [0, 1, 1]
        assert {site.status(result) for result in results.values()} == {"RUNNING"}
        said = site.reap(older_than=0)
        assert said.count("ready: its worker is dead") == 3
        assert said.count("left alone: it is under no policy") == 3
        site.start()
        check_ours(site, results)
        assert [site.status(results[f"stock {point}"]) for point in POINTS] == ["RUNNING"] * 3
        assert counted(site, "stock") == [0, 1, 1]
        # What people do by hand, where nobody guards the sends:
        DBTaskResult.objects.filter(status="RUNNING").update(status="READY")
        wait_for(lambda: counted(site, "stock") == [1, 2, 2], "stock tasks' second sends")
        time.sleep(0.3)
        print(f"\n{POINTS}: stock {counted(site, 'stock')} (by hand), ours {counted(site, 'ours')}")
        assert (counted(site, "stock"), counted(site, "ours")) == ([1, 2, 2], [1, 1, 1])


def test_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    with TaskSite(tmp_path, postgres) as site:
        results = kill_all_at_their_points(site, [tasks_shop.ours])
        site.reap(older_than=0)
        site.start()
        check_ours(site, results)
