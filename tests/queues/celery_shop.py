"""What the workers of the Celery tests run: the same job as plain Celery tasks, and as tasks under a policy."""

from __future__ import annotations

from typing import Any

import celery
import requests

from retrypolicy.queues.celery import PolicyTask

from .shop import POLICY, SHOP, guarded, plain, work

BRIEF = POLICY.with_(max_attempts=2)

app = celery.Celery("shop", broker=SHOP.get("broker"), backend=SHOP.get("backend"))
app.conf.update(broker_transport_options=SHOP.get("options", {}), task_publish_retry_policy={"max_retries": 1})
app.conf.update(
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=True,
)

_STOCK: dict[str, Any] = {"autoretry_for": (requests.RequestException,), "retry_backoff": True, "shared": False}


@app.task(name="early", **_STOCK)
def early(point: str, number: int) -> str:
    return work(plain(), "early", point, number)


@app.task(name="late", acks_late=True, reject_on_worker_lost=True, **_STOCK)
def late(point: str, number: int) -> str:
    return work(plain(), "late", point, number)


@app.task(name="lost", acks_late=True, retry_on_worker_lost=True, default_retry_delay=0, **_STOCK)
def lost(point: str, number: int) -> str:
    return work(plain(), "lost", point, number)


@app.task(name="ours", base=PolicyTask, retry_policy=POLICY, retry_ledger=SHOP.get("ledger"), shared=False)
def ours(point: str, number: int) -> str:
    return work(guarded(), "ours", point, number)


@app.task(name="killer", base=PolicyTask, retry_policy=BRIEF, retry_ledger=SHOP.get("ledger"), shared=False)
def killer(point: str, number: int) -> str:
    return work(guarded(), "ours", point, number)


@app.task(
    name="ours_lost",
    base=PolicyTask,
    retry_policy=POLICY,
    retry_ledger=SHOP.get("ledger"),
    retry_on_worker_lost=True,
    default_retry_delay=0,
    shared=False,
)
def ours_lost(point: str, number: int) -> str:
    return work(guarded(), "ours_lost", point, number)
