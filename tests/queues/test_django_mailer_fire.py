"""Under fire: two processes that queue and send, killed at random. The server's count is the truth.

QUEUE_SENDS says how many messages (`nox -s fire`: 1,000, on SQLite and on PostgreSQL).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrypolicy.testing import Answer, Close, Reset

from ..guard.servers import Postgres, postgres  # noqa: TID252 - no other path is sure
from .mailer_field import OK, Field, Killed, Shop, postgresql, sqlite

__all__ = ["postgres"]

SENDS = int(os.environ.get("QUEUE_SENDS", "24"))
BATCH = 20
PATIENCE = 120.0 + 2 * SENDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]

_STEPS: list[tuple[float, Any, bool]] = [  # how often, what the server does, and whether it took the message
    (0.62, OK, True),
    (0.10, Answer(200, headers=OK.headers, body=OK.body, delay=0.1), True),
    (0.06, Close("request"), True),
    (0.02, Reset("request"), True),
    (0.03, Answer(500), True),
    (0.02, Close("request"), False),
    (0.10, Answer(429, headers={"Retry-After": "0"}), False),
    (0.05, Answer(503, headers={"Retry-After": "1"}), False),
]


class Hour:
    """A bad one."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.chance = random.Random(7)
        self.names = [f"order {number}" for number in range(SENDS)]
        self.over = False
        self.errors: list[BaseException] = []
        field.answer = self.answer

    def answer(self, subject: str) -> tuple[Any, bool]:
        ((step, applies),) = self.chance.choices([(s, a) for _, s, a in _STEPS], [w for w, _, _ in _STEPS])
        return step, applies

    def sender(self, shop: Shop) -> None:
        """What cron does, without a pause."""
        while not self.over:
            with contextlib.suppress(Killed):
                shop.do("send_mail")
                shop.do("retry_due")

    def seller(self, shop: Shop) -> None:
        """A web server that queues, and another sender."""
        for start in range(0, SENDS, BATCH):
            shop.do("queue", *self.names[start : start + BATCH])
            with contextlib.suppress(Killed):
                shop.do("retry_due")
                shop.do("send_mail")
        while self.waiting(shop) != self.held(shop):
            with contextlib.suppress(Killed):
                shop.do("retry_due")
                shop.do("send_mail")
        self.over = True

    def waiting(self, shop: Shop) -> list[str]:
        return sorted(subject for subject, _ in shop.do("rows"))

    def held(self, shop: Shop) -> list[str]:
        return sorted(shop.do("held"))

    def thread(self, work: Callable[[Shop], None], shop: Shop) -> threading.Thread:
        def run() -> None:
            try:
                work(shop)
            except BaseException as error:
                self.errors.append(error)
                self.over = True

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"] if SENDS > 100 else ["sqlite"])
def test_a_bad_hour(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind == "sqlite":
        database = sqlite(tmp_path)
    else:
        server: Postgres = request.getfixturevalue("postgres")
        database = postgresql(server.folder)
    kills = 0
    with Field(tmp_path / "shop", database, stock=False, shops=2, grace=0.5) as field:
        hour = Hour(field)
        field.shop.do("rows")
        began = time.monotonic()
        threads = [hour.thread(hour.sender, field.shops[0]), hour.thread(hour.seller, field.shops[1])]
        while not hour.over:
            time.sleep(hour.chance.expovariate(1 / 0.7))
            assert time.monotonic() < began + PATIENCE
            shop = hour.chance.choice(field.shops)
            if kills < SENDS / 2 or SENDS > 100:  # a busy machine must come to an end, too
                kills += shop.kill("send_mail", "retry_due")
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        if hour.errors:
            raise hour.errors[0]
        field.server.settle()
        held = hour.held(field.shop)
        effects = {name: field.accepted[name] for name in hour.names}
        requests = field.requests
    twice = [name for name, count in effects.items() if count > 1]
    lost = [name for name, count in effects.items() if count == 0 and name not in held]
    once = sum(count == 1 for count in effects.values())
    print(
        f"\ndjango-mailer on {kind}: {SENDS} messages in {seconds:.0f} s, {kills} processes killed, {requests} "
        f"requests: accepted once {once}, more than once {len(twice)}, lost {len(lost)}, held {len(held)} "
        f"(of these accepted: {sum(effects[name] > 0 for name in held)})"
    )
    assert (twice, lost) == ([], [])
    assert kills > 0
    assert once > SENDS / 2
