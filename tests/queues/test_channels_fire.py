"""Under fire: the outbox, handed over to workers of Channels that are killed at random, with a sweeper as cron.

QUEUE_SENDS says how many messages (`nox -s fire`: 1,000). The server's count is the truth.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import attrs
import pytest
from django.db import transaction

from retrypolicy.django import outbox
from retrypolicy.django.delivery import State
from retrypolicy.guard import Phase, open_ledger
from retrypolicy.testing import Answer
from tests.anymail.sending import ok

from ..guard.servers import new_valkey  # noqa: TID252 - no other path is sure
from .channels_shop import message
from .channels_town import Town, town
from .workers import SENDS, bad_hour

__all__ = ["new_valkey", "town"]

WORKERS = 2
PATIENCE = 120.0 + 2 * SENDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]


def test_a_bad_hour(town: Town) -> None:
    chance = random.Random(13)
    hour = bad_hour(chance)

    def answer(text: str) -> tuple[Any, bool]:
        step, applies = hour({})
        if isinstance(step, Answer) and step.status == 200:
            step = attrs.evolve(ok("postmark"), delay=step.delay)
        return step, applies

    town.answer = answer
    town.start(*["outbox"] * WORKERS)
    kills, waits, put = 0, 0, 0
    began = time.monotonic()
    while put < SENDS or town.rows.filter(state=State.WAITING).exists():
        assert time.monotonic() < began + PATIENCE, "some messages came to no end"
        for _ in range(min(8, SENDS - put)):
            with transaction.atomic(using=town.alias):
                outbox.put(message(f"order {put}"), key=f"order/{put}")
            put += 1
        time.sleep(chance.expovariate(1 / 0.3))
        if kills < SENDS / 6:
            victim = town.workers.pop(chance.randrange(WORKERS))
            os.kill(victim, signal.SIGKILL)
            town.start("outbox")
            kills += 1
        # As if the time were over that a killed worker, or a wake-up that got lost, had for it; also of those that are
        # being sent at this moment.
        town.rows.filter(state=State.WAITING).update(due=0)
        waits += len(list(outbox.sweep(using=town.alias, limit=8)))
    seconds = time.monotonic() - began
    town.kill()
    town.server.settle()
    accepted = [town.accepted[f"order {number}"] for number in range(SENDS)]
    listed = {int(row.key.partition("/")[2]): row.state for row in town.rows}
    twice = sum(count > 1 for count in accepted)
    lost = sum(not accepted[number] and number not in listed for number in range(SENDS))
    print(
        f"\nOutbox and Channels: {SENDS} in {seconds:.0f} s, {kills} workers killed, {waits} turns of the sweeper, "
        f"{town.server.complete} requests: accepted once {accepted.count(1)}, more than once {twice}, lost {lost}, "
        f"listed {len(listed)} (of these accepted: {sum(accepted[number] > 0 for number in listed)})"
    )
    assert (twice, lost) == (0, 0)
    assert accepted.count(1) > SENDS / 2
    assert set(listed.values()) <= {State.HELD}
    ledger = open_ledger(town.shop["ledger"])
    assert ledger.counts()[Phase.DONE] == SENDS - len(listed)
    ledger.close()
