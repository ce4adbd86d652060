"""The work that the queues' workers do in the tests, and the points at which they are killed.

Imported in other processes; everything they must know is in the environment variable SHOP.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import requests

from retrypolicy import Constant, Exponential, Guard, RetryPolicy, step
from retrypolicy.guard import open_ledger
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
