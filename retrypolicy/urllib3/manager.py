"""RetryPoolManager and RetryProxyManager: urllib3's managers, whose pools retry what is safe and send nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from urllib3 import HTTPConnectionPool, PoolManager, ProxyManager
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from retrypolicy.clock import Clock
from retrypolicy.engine import Engine
from retrypolicy.errors import ConfigurationError
from retrypolicy.events import Listener
from retrypolicy.guard.ledger import Ledger
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import Provider
from retrypolicy.shared import SharedState
from retrypolicy.urllib3.convert import as_retry, from_urllib3
from retrypolicy.urllib3.pool import Terms, take_over
from retrypolicy.urllib3.sending import MAX_IDLE, idle_limit


class RetryPoolManager(PoolManager):
    """A `urllib3.PoolManager` that applies a `RetryPolicy`. As it comes it is safe for every method, POST included.

    policy: a `RetryPolicy`; None: the default one.
    ledger: a ledger or its URL: remembers sends over crashes. None: `RETRYPOLICY_LEDGER`, else none.
    provider: the name of a profile, or a `Provider`: where the key goes, what the API's answers mean. It counts only
        for the profile's own hosts; `hosts` adds others.
    secret: keys the ledger's digests; None: `RETRYPOLICY_SECRET`.
    max_idle: seconds after which a pooled connection is not reused. None: no limit.
    retries: a number or a urllib3 `Retry`, as `PoolManager` takes it: turned into a policy (`from_urllib3`); how many
        redirects are followed stays what it says.
    num_pools, headers, connection_pool_kw: as for `PoolManager`.
    clock, random, listeners, shared: as for `Engine`.

    A request's own `retries` (a number, False, or a `Retry`) changes the policy for that request: how often it is
    tried, with which methods, after which statuses, how long apart. The guard, the time limits and what answers mean
    stay. The policy of an enclosing `operation` comes before both.

    The pools that it hands out (`connection_from_url`) do the same. Put before another manager it works there, too:
    `class Mine(RetryPoolManager, SOCKSProxyManager)`.

    Raises `PolicyError` or `ConfigurationError` for parts that can't be used.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        ledger: Ledger | str | None = None,
        provider: Provider | str | None = None,
        hosts: Sequence[str] = (),
        secret: str | bytes | Sequence[str | bytes] | None = None,
        max_idle: float | None = MAX_IDLE,
        retries: int | Retry | None = None,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] | None = None,
        listeners: Iterable[Listener] = (),
        shared: SharedState | None = None,
        **connection_pool_kw: Any,
    ) -> None:
        base = policy
        if retries is not None:
            if policy is not None:
                raise ConfigurationError("retries: not allowed beside a policy, which says how often to try")
            connection_pool_kw["retries"] = retries = as_retry(retries, "retries")
            policy = from_urllib3(retries)
        self._engine = Engine(
            policy,
            ledger=ledger,
            provider=provider,
            hosts=hosts,
            secret=secret,
            clock=clock,
            random=random,
            listeners=listeners,
            shared=shared,
        )
        self._terms = Terms(
            engine=self._engine, max_idle=idle_limit(max_idle), base=RetryPolicy() if base is None else base
        )
        super().__init__(num_pools=num_pools, headers=headers, **connection_pool_kw)

    @property
    def engine(self) -> Engine:
        """The engine behind this manager: its policy, its ledger, and `stop()`."""
        return self._engine

    @property
    def policy(self) -> RetryPolicy:
        """The policy of this manager; an enclosing `operation` may bring another."""
        return self._engine.policy

    def urlopen(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, method: str, url: str, redirect: bool = True, **kw: Any
    ) -> BaseHTTPResponse:
        """As `PoolManager.urlopen`, as often as the policy allows and the evidence makes safe.

        Returns the last response, or raises the last error, with a report on it. Raises the guard's refusals
        (`SendHeld`, `SendInProgress`, ...) as errors of urllib3, before a byte is sent.
        """
        kw["retries"] = self._terms.request(kw.get("retries"), redirect, self.connection_pool_kw.get("retries"))
        return super().urlopen(method, url, redirect, **kw)

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        pool = super()._new_pool(scheme, host, port, request_context)
        take_over(pool, self._terms)
        return pool


class RetryProxyManager(RetryPoolManager, ProxyManager):
    """A `urllib3.ProxyManager` that applies a `RetryPolicy`.

    proxy_url, proxy_headers, proxy_ssl_context, use_forwarding_for_https, ...: as for `ProxyManager`.
    The rest is as for `RetryPoolManager`.
    """

    def __init__(self, proxy_url: str, policy: RetryPolicy | None = None, **options: Any) -> None:
        super().__init__(policy, proxy_url=proxy_url, **options)
