"""Types as users see them. Read by mypy and pyright (`nox -s types`), never run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, assert_type

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, PoolManager, ProxyManager

from retrypolicy import Engine, Exponential, History, Report, RetryPolicy, decide, load_policies, report
from retrypolicy.backoff import Backoff
from retrypolicy.config import Finding, lint
from retrypolicy.decision import Decision
from retrypolicy.outcome import Answered
from retrypolicy.urllib3 import RetryPoolManager, RetryProxyManager
from retrypolicy.work import Block

engine = Engine()


def add(a: int, *, b: int) -> int:
    return a + b


async def fetch(name: str) -> bytes:
    return name.encode()


@engine.retry(on=OSError, idempotent=True)
def decorated(a: int, *, b: str) -> float:
    return a + len(b)


@engine.retry(on=(OSError, ValueError))
async def decorated_async(name: str) -> bytes:
    return name.encode()


async def uses() -> None:
    assert_type(engine.run(len, "text"), int)
    assert_type(await engine.run_async(fetch, "name"), bytes)
    assert_type(decorated(1, b="x"), float)
    assert_type(await decorated_async("x"), bytes)
    for attempt in engine.attempts(idempotent=True):
        assert_type(attempt, Block)
        with attempt as same:
            assert_type(same.number, int)
    async for attempt in engine.attempts(on=OSError):
        async with attempt:
            pass


assert_type(load_policies(Path("policies.toml")), dict[str, RetryPolicy])
assert_type(RetryPolicy().to_dict(), dict[str, Any])
assert_type(RetryPolicy().with_(max_attempts=3), RetryPolicy)
assert_type(lint(RetryPolicy(), "resend"), list[Finding])
assert_type(report(OSError()), Report | None)
assert_type(decide(RetryPolicy(), History(), Answered(status=503), now=0.0, random=0.5), Decision)

http = RetryPoolManager(RetryPolicy(), ledger="memory:", maxsize=4)
assert_type(http.policy, RetryPolicy)
assert_type(http.engine, Engine)
assert_type(http.request("GET", "https://example.com"), BaseHTTPResponse)
assert_type(http.connection_from_url("https://example.com"), HTTPConnectionPool)
manager: PoolManager = http
proxy_manager: ProxyManager = RetryProxyManager("http://proxy.example.com", RetryPolicy(), provider="resend")

backoff: Backoff = Exponential()
keeps: Callable[[int], float] = lambda a: decorated(a, b="")  # noqa: E731 - the type is what is looked at
coroutine: Callable[[str], Coroutine[Any, Any, bytes]] = decorated_async
