"""kill -9 of a child, and of a whole worker, at each point of a send: stock Celery, and tasks under a policy.

And a soft time limit in the middle of a read.

Ground truth is what the server counted. Valkey is the broker, as Redis would be.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import celery
import pytest

from retrypolicy.guard import Phase

from ..guard.servers import Valkey, new_valkey  # noqa: TID252 - no other path is sure
from .celery_shop import BRIEF
from .workers import Field, wait_for

__all__ = ["new_valkey"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]

HAS_RETRY_ON_WORKER_LOST = hasattr(celery.Task, "retry_on_worker_lost")  # since 5.7
PLAIN = ["early", "late", "ours"]
KINDS = PLAIN + (["lost", "ours_lost"] if HAS_RETRY_ON_WORKER_LOST else [])
POINTS = ["before", "wire", "after"]
VISIBILITY = 5.0


def on(valkey: Valkey, place: Path) -> Field:
    return Field(
        place,
        valkey.url,
        valkey.url,
        visibility_timeout=VISIBILITY,
        unacked_restore_interval=1,
        unacked_restore_throttle=1,
    )


def key_of(kind: str, point: str) -> str:
    return f"order/{kind}/{point}"


def send_all(field: Field, kinds: list[str]) -> None:
    for kind in kinds:
        for point in POINTS:
            note = {"headers": {"retrypolicy": {"key": key_of(kind, point)}}} if kind.startswith("ours") else {}
            field.app.send_task(kind, (point, 1), **note)
    wait_for(lambda: len(field.waiting()) == len(kinds) * len(POINTS), "the way to the points")


def counted(field: Field, kinds: list[str]) -> dict[str, list[int]]:
    return {kind: [field.applied[kind, point, 1] for point in POINTS] for kind in kinds}


def check(field: Field, kinds: list[str]) -> None:
    ours = [kind for kind in kinds if kind.startswith("ours")]
    for kind in ours:
        ends = {"before": Phase.DONE, "wire": Phase.HELD, "after": Phase.DONE}
        for point in POINTS:
            wait_for(partial(field.stands_at, key_of(kind, point), ends[point]), f"{kind} {point}")
    twice = [kind for kind in kinds if kind in ("late", "lost")]

    def sent_twice(kind: str) -> bool:  # at least: a slow machine delivers more often, before it acknowledges
        return all(count >= least for count, least in zip(counted(field, [kind])[kind], [1, 2, 2], strict=True))

    wait_for(lambda: all(map(sent_twice, twice)), "stock Celery's second sends")
    time.sleep(1.0)  # whoever sends again, has done so by now
    found = counted(field, kinds)
    print(f"\n{POINTS}: {found}")
    assert found["early"] == [0, 1, 1]
    assert [found[kind] for kind in ours] == [[1, 1, 1]] * len(ours)


def ends_in_the_end(field: Field, result: Any) -> None:
    """Its message came again and again, until somebody had counted enough."""
    error = result.get(timeout=60, propagate=False, interval=0.05)
    assert f"was begun {BRIEF.max_attempts} times and never came to an end" in str(error)
    assert field.log.count("WorkerLostError") >= BRIEF.max_attempts
    assert sum(field.applied[kind, "always", 1] for kind in KINDS) == 0


def test_the_child_is_killed(new_valkey: Callable[..., Valkey], tmp_path: Path) -> None:
    with on(new_valkey(), tmp_path) as field:
        field.start(len(KINDS) * len(POINTS) + 2)
        soft = {"soft_time_limit": 1, "headers": {"retrypolicy": {"key": "order/soft"}}}
        field.app.send_task("ours", ("soft", 1), **soft)  # its answer never comes
        always = field.app.send_task("killer", ("always", 1))
        send_all(field, KINDS)
        for child in field.waiting():
            os.kill(child, signal.SIGKILL)
        check(field, KINDS)
        ends_in_the_end(field, always)
        assert (field.phase("order/soft"), field.applied["ours", "soft", 1]) == (Phase.HELD, 1)


def test_the_whole_worker_is_killed(new_valkey: Callable[..., Valkey], tmp_path: Path) -> None:
    """What it had comes again after the visibility timeout."""
    with on(new_valkey(), tmp_path) as field:
        worker = field.start(len(PLAIN) * len(POINTS))
        send_all(field, PLAIN)
        field.kill(worker)
        field.start(4)
        check(field, PLAIN)


def test_a_broker_of_files(tmp_path: Path) -> None:
    """It does not say that a message comes again, and has nothing but files."""
    folder = tmp_path / "messages"
    folder.mkdir()
    places = dict.fromkeys(["data_folder_in", "data_folder_out", "control_folder"], str(folder))
    with Field(tmp_path, "filesystem://", f"file://{tmp_path}", polling_interval=0.05, **places) as field:
        field.start(1)
        field.app.send_task("ours", ("before", 1), headers={"retrypolicy": {"key": "order"}})
        wait_for(field.waiting, "the way to the point")
        os.kill(field.waiting()[0], signal.SIGKILL)
        wait_for(partial(field.stands_at, "order", Phase.DONE), "the second delivery")
        assert field.applied["ours", "before", 1] == 1
