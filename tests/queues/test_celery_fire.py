"""Under fire: tasks whose children and whole workers are killed at random. The server's count is the truth.

QUEUE_SENDS says how many tasks (`nox -s fire`: 1,000).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.guard import Phase
from retrypolicy.guard.key import Secret
from retrypolicy.queues import Held, RetryAt, next_step

from ..guard.servers import Valkey, new_valkey  # noqa: TID252 - no other path is sure
from .shop import SECRET
from .workers import SENDS, Field, bad_hour, key_of

__all__ = ["new_valkey"]

CHILDREN = 4
SWEEP = 12.0  # seconds after which the sender looks after a message of which nothing was heard
PATIENCE = 120.0 + 2 * SENDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]


def _any(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


in_full = pytest.mark.skipif("QUEUE_SENDS" not in os.environ, reason="nox -s fire runs it")


@pytest.mark.parametrize("broker", ["valkey", pytest.param("files", marks=in_full)])
def test_a_bad_hour(new_valkey: Callable[..., Valkey], tmp_path: Path, broker: str) -> None:
    """The sender keeps a list, as an outbox does: a worker that is killed may have taken a message from Redis, and not
    yet noted that it has it. Then nobody has. `next_step` tells the sender what to do about one that was not heard of.
    A broker of files forgets all that a whole worker had. There only whole workers are killed: with a broker that it
    polls, Celery stands still for good when a child is killed that waits for work (it has the lock of their queue).
    """
    chance = random.Random(7)
    waiting: Callable[[], object]
    if broker == "valkey":
        valkey = new_valkey()
        place = valkey.url, valkey.url
        options: dict[str, Any] = {"visibility_timeout": 5.0, "unacked_restore_interval": 1}
        options["unacked_restore_throttle"] = 1
        client = valkey.client()
        waiting, spell = partial(client.llen, "celery"), 8.0
    else:
        folder = tmp_path / "messages"
        folder.mkdir()
        place = "filesystem://", f"file://{tmp_path}"
        options = dict.fromkeys(["data_folder_in", "data_folder_out", "control_folder"], str(folder))
        options["polling_interval"] = 0.05
        waiting, spell = partial(_any, folder, "*.celery.msg"), 1.0
    secret = Secret.of(SECRET)

    kills = whole = swept = 0
    with Field(tmp_path, *place, **options) as field:
        field.shop["attempts"] = 20  # none is to fail for being killed often
        published: dict[int, float] = {}

        def publish(number: int) -> None:
            headers = {"retrypolicy": {"key": key_of(number)}}
            field.app.send_task("ours", ("no", number), task_id=f"order-{number}", headers=headers)
            published[number] = time.monotonic()

        field.answer = bad_hour(chance)
        for number in range(SENDS):
            publish(number)
        worker = field.start(CHILDREN)
        began = last = time.monotonic()
        open_: set[int] = set(range(SENDS))
        while open_:
            time.sleep(chance.expovariate(1 / 0.4))
            now = time.monotonic()
            open_ = {n for n in open_ if field.phase(key_of(n)) not in (Phase.DONE, Phase.HELD)}
            assert now < began + PATIENCE, f"no end: {[(n, field.phase(key_of(n))) for n in sorted(open_)]}"
            for number in () if waiting() else open_:
                if now > published[number] + SWEEP:
                    # In its lease: somebody has it. After it: what was armed and given up becomes held.
                    step = next_step(key_of(number), ledger=field.ledger, secret=secret)
                    if isinstance(step, Held) or (isinstance(step, RetryAt) and step.when <= time.time()):
                        publish(number)
                        swept += 1
            if worker.poll() is not None:  # kombu's broker of files chokes on what a killed publisher left half written
                worker, last = field.start(CHILDREN), now
            elif field.pids and now > last + spell + chance.random() * 4.0:
                field.kill(worker)
                field.pids.clear()
                worker, whole, last = field.start(CHILDREN), whole + 1, now
            elif field.pids and broker == "valkey":
                with contextlib.suppress(ProcessLookupError):
                    pid = chance.choice(sorted(field.pids))
                    field.pids.discard(pid)
                    if os.getpgid(pid) == worker.pid:
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
        seconds = time.monotonic() - began
        field.kill(worker)
        killed = f"{kills} children and {whole} whole workers killed, {swept} published again"
        held = field.count_up(f"Celery, {broker}: {SENDS} tasks in {seconds:.0f} s, {killed}")
        listed = [record.label for record in field.ledger.records() if record.phase is Phase.HELD]
    assert sorted(listed) == sorted(f"ours[order-{n}]" for n in held)
    assert kills + whole > 0
