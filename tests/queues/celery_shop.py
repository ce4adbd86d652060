"""What the workers of the Celery tests run: the same job as plain Celery tasks, and as tasks under a policy.

Imported by workers in other processes; everything they must know is in the environment variable SHOP.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import celery
import requests

from retrypolicy import Constant, Exponential, Guard, RetryPolicy, step
from retrypolicy.guard import open_ledger
from retrypolicy.queues.celery import PolicyTask
from retrypolicy.requests import mount

SHOP: dict[str, Any] = json.loads(os.environ.get("SHOP", "{}"))
SECRET = "a secret for the shop"
LEASE = 1.5
POLICY = RetryPolicy(
    max_attempts=SHOP.get("attempts", 4),
    max_wait=0.2,
    total_timeout=10.0,
    lifetime=600.0,
    backoff=Exponential(base=0.01, cap=0.05),
    guard=Guard(lease=LEASE),
)

BRIEF = POLICY.with_(max_attempts=2)

app = celery.Celery("shop", broker=SHOP.get("broker"), backend=SHOP.get("backend"))
app.conf.update(broker_transport_options=SHOP.get("options", {}), task_publish_retry_policy={"max_retries": 1})
app.conf.update(
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=True,
)
step.HELD_LOOK = (SHOP.get("look", 60.0), 3600.0)


def arrive(point: str, kind: str, number: int) -> bool:
    """Say that this job is at the point where its worker is to be killed. False: it was there before."""
    name = Path(SHOP["place"], f"{kind}-{point}-{number}")
    try:
        with open(name, "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def work(session: requests.Session, kind: str, point: str, number: int) -> str:
    """Send one order, and wait for the killer at the point where he is expected."""
    if point == "always":
        os.kill(os.getpid(), 9)
    if point == "before" and arrive(point, kind, number):
        time.sleep(60)
    order = {"kind": kind, "point": point, "number": number, "text": "x" * 200}
    response = session.post(SHOP["server"], json=order, headers={"X-Pid": str(os.getpid())}, timeout=30)
    if kind.startswith("ours") or response.status_code < 500:
        response.raise_for_status()
    if point == "after" and arrive(point, kind, number):
        time.sleep(60)
    return "sent"


def plain() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def guarded() -> requests.Session:
    session = plain()
    mount(session, RetryPolicy(backoff=Constant(seconds=0)), ledger=open_ledger(SHOP["ledger"]))
    return session


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
