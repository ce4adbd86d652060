"""A process that sends what a queue delivered to it, in four threads. It may be killed at any moment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from threading import Lock, local
from typing import Any

import requests
from attrs import frozen

from retrypolicy import Effect, Exponential, Guard, RetryPolicy, operation, report
from retrypolicy.errors import AlreadyDone, CallRefused, SendHeld
from retrypolicy.guard import open_ledger
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import RetryAdapter

THREADS = 4
LEASE = 3.0  # seconds after which what a dead sender had on the wire counts as held
POLICY = RetryPolicy(
    max_attempts=4,
    total_timeout=10.0,
    backoff=Exponential(base=0.01, factor=2.0, cap=0.05),
    guard=Guard(lease=LEASE),
)
HONOURING = Provider(name="made-up", hosts=("127.0.0.1",), key=KeyPlacement(header="X-Key", window=3600.0))


@frozen(kw_only=True)
class Order:
    """What is the same for all senders."""

    server: str
    ledger: str
    secret: str
    keys: bool  # the server honours them


def key_of(number: int) -> str:
    return f"send/{number}"


def work(order: Order, numbers: Sequence[int], acknowledge: Connection) -> None:
    """Send these, and say of each what came of it: "sent", "held", or "again" (to be delivered again)."""
    logging.disable()
    adapter = RetryAdapter(
        POLICY, ledger=open_ledger(order.ledger), secret=order.secret, provider=HONOURING if order.keys else None
    )
    sessions, talking = local(), Lock()

    def one(number: int) -> None:
        if not hasattr(sessions, "own"):
            sessions.own = requests.Session()
            sessions.own.trust_env = False
            sessions.own.mount("http://", adapter)
        said = _send(sessions.own, order.server, number)
        with talking:
            acknowledge.send((number, said))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, numbers))


def _send(session: requests.Session, url: str, number: int) -> str:
    try:
        with operation(key=key_of(number), label=f"{number}"):
            response: Any = session.post(url, json={"number": number, "text": "x" * 200}, timeout=2.0)
        return _said(response)
    except AlreadyDone:
        return "sent"
    except SendHeld:
        return "held"
    except (CallRefused, requests.RequestException) as error:
        return _said(error)


def _said(of: object) -> str:
    found = report(of)
    assert found is not None
    return {Effect.APPLIED: "sent", Effect.UNKNOWN: "held", Effect.NOT_APPLIED: "again"}[found.effect]
