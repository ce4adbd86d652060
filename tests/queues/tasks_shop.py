"""What the workers of the tests of Django's tasks run: in processes of their own, or in that of the test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import requests
from django.core import mail

from retrypolicy import Constant, Guard, RetryPolicy
from retrypolicy.django import settings
from retrypolicy.errors import AlreadyDone
from retrypolicy.guard import Ledger
from retrypolicy.queues.django_tasks import with_policy
from retrypolicy.queues.django_tasks.framework import HOME
from retrypolicy.requests import mount

from . import shop

task = import_module(HOME).task

QUICK = RetryPolicy(
    max_attempts=3,
    max_wait=0.01,
    total_timeout=5.0,
    lifetime=20.0,
    backoff=Constant(seconds=0.05),
    guard=Guard(lease=0.3),
)
"""Every wait is too long for a run."""

# -- in processes of their own


@task
def stock(point: str, number: int) -> str:
    return shop.work(shop.plain(), "stock", point, number)


@task(retry_policy=shop.POLICY)
def ours(point: str, number: int) -> str:
    session = shop.plain()
    mount(session, RetryPolicy(backoff=Constant(seconds=0)), ledger=settings.ledger())
    return shop.work(session, "ours", point, number)


# -- in the test's own process


class Counter:
    """Where the tasks below find the server and the ledger, and say that they ran."""

    server = ""
    ledger: Ledger | None = None
    also: Callable[[], None] = staticmethod(lambda: None)
    runs = 0


def post(*orders: str) -> str:
    Counter.runs += 1
    Counter.also()
    with requests.Session() as session:
        session.trust_env = False
        mount(session, RetryPolicy(max_attempts=1), ledger=Counter.ledger)
        for order in orders:
            with contextlib.suppress(AlreadyDone) if len(orders) > 1 else contextlib.nullcontext():
                session.post(Counter.server, data=order.encode()).raise_for_status()
    return "sent"


@task(retry_policy=QUICK)
def send(*orders: str) -> str:
    return post(*orders)


@task(backend="stock")
@with_policy(QUICK)
def wrapped(*orders: str) -> str:
    return post(*orders)


@task(retry_policy=QUICK)
async def coroutine(*orders: str) -> str:
    return post(*orders)


@task(backend="stock")
@with_policy(QUICK)
async def wrapped_coroutine(*orders: str) -> str:
    return post(*orders)


@task(retry_policy=QUICK, takes_context=True)
def with_context(context: Any, *orders: str) -> str:
    assert context.task_result.args == list(orders)
    return post(*orders)


@task(backend="immediate", retry_policy=QUICK)
def at_once(*orders: str) -> str:
    return post(*orders)


@task(backend="dummy", retry_policy=QUICK)
def never(*orders: str) -> str:
    return post(*orders)


@task(retry_policy="by name")
def by_name(*orders: str) -> str:
    return post(*orders)


@task(retry_policy=QUICK.with_(max_attempts=1))
def by_mail(*to: str) -> int:
    return mail.EmailMessage("Receipt", "of your order", "shop@example.com", list(to)).send()


@task
def plain(*orders: str) -> str:
    return post(*orders)
