"""The connection pools of a manager: each request through one is a call, or a hop of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen
from urllib3 import HTTPConnectionPool, HTTPHeaderDict
from urllib3.exceptions import MaxRetryError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout

from retrypolicy.engine import Engine
from retrypolicy.errors import ConfigurationError
from retrypolicy.policy import RetryPolicy
from retrypolicy.urllib3.convert import as_retry, from_urllib3
from retrypolicy.urllib3.errors import as_urllib3_error
from retrypolicy.urllib3.redirects import Redirects
from retrypolicy.urllib3.run import Run, only_once

if TYPE_CHECKING:
    _Pool = HTTPConnectionPool
else:
    _Pool = object  # mixed into whatever class the manager makes pools of


@frozen(kw_only=True)
class Terms:
    """What the pools of one manager have in common.

    `base`: the policy that a request's own `retries` changes. (The engine's may be made of a `Retry` itself.)
    """

    engine: Engine
    max_idle: float | None
    base: RetryPolicy

    def request(self, retries: Retry | bool | int | None, redirect: bool, default: Retry | int | None) -> Redirects:
        """What goes along with a request from hop to hop, as its `retries` say. `default`: where they say nothing."""
        if isinstance(retries, Redirects):
            return retries
        policy = None
        if retries is not None:
            try:
                retries = as_retry(retries, "retries", redirect)
            except ConfigurationError as error:
                raise as_urllib3_error(error) from None
            policy = under(self.base, retries)
        return Redirects(Retry.from_int(retries, redirect=redirect, default=default), policy, redirect)


def under(policy: RetryPolicy, retries: Retry) -> RetryPolicy:
    """The policy with a `Retry` for what that can say: how often, which methods and statuses, how long to wait.

    What answers mean, the guard, time limits, budget and breaker stay the policy's.
    """
    made = from_urllib3(retries)
    return made.with_(
        total_timeout=policy.total_timeout,
        attempt_timeout=policy.attempt_timeout,
        lifetime=policy.lifetime,
        idempotent_methods=policy.idempotent_methods,
        refusal_statuses=policy.refusal_statuses,
        rules=policy.rules + made.rules,
        guard=policy.guard,
        budget=policy.budget,
        breaker=policy.breaker,
    )


class RetryPool(_Pool):
    """Mixed in front of a pool's class."""

    terms: Terms

    def urlopen(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | bool | int | None = None,
        redirect: bool = True,
        assert_same_host: bool = True,
        timeout: Any = Timeout.DEFAULT_TIMEOUT,
        **options: Any,
    ) -> BaseHTTPResponse:
        """As `HTTPConnectionPool.urlopen`, as often as the policy allows and the evidence makes safe."""
        if timeout is Timeout.DEFAULT_TIMEOUT:
            timeout = self.timeout
        elif not isinstance(timeout, Timeout):
            timeout = Timeout.from_float(timeout)  # or the error about it, before anything is sent or armed
        hops = self.terms.request(retries, redirect, self.retries)
        options |= {"assert_same_host": assert_same_host, "timeout": timeout}
        headers = self.headers if headers is None else headers
        if self.terms.engine.mode == "off":
            response = self.transmit(method, url, body, headers, only_once(hops.counter), **options)
            response.retries = hops.counter
        else:
            response = Run(self, hops, method, url, body, headers, options).to_the_end()
        if not redirect or not response.get_redirect_location():
            return response
        return self._follow(response, method, url, body, headers, hops, options)

    def transmit(
        self, method: str, url: str, body: Any, headers: Mapping[str, str], retries: Retry, **options: Any
    ) -> BaseHTTPResponse:
        """One attempt, by urllib3."""
        return super().urlopen(method, url, body, headers, retries=retries, redirect=False, **options)

    def _follow(
        self,
        response: BaseHTTPResponse,
        method: str,
        url: str,
        body: Any,
        headers: Mapping[str, str],
        hops: Redirects,
        options: dict[str, Any],
    ) -> BaseHTTPResponse:
        """The next hop of a request that was made on the pool itself: a manager follows redirects as urllib3 does."""
        location = str(response.get_redirect_location())
        left_out: set[str] = set()
        if response.status == 303:
            method, body, left_out = "GET", None, {*_ABOUT_CONTENT}
            options = {**options, "chunked": False, "body_pos": None}
        if not self.is_same_host(location):
            left_out |= hops.remove_headers_on_redirect
        try:
            hops = hops.increment(method, url, response=response, _pool=self)
        except MaxRetryError:
            if hops.raise_on_redirect:
                response.drain_conn()
                raise
            return response
        response.drain_conn()
        kept = HTTPHeaderDict(headers)
        for name in left_out:
            kept.discard(name)
        return self.urlopen(method, location, body, kept, hops, True, **options)


_ABOUT_CONTENT = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-type",
    "digest",
    "last-modified",
)
"""What goes with the body when a redirect turns a request into a GET (RFC 9110 15.4)."""

_classes: dict[type, type] = {}


def take_over(pool: HTTPConnectionPool, terms: Terms) -> None:
    """Make this pool, whatever its class, one of ours."""
    cls = type(pool)
    # The names stay the same: they are in error messages and logs.
    ours = _classes.get(cls) or _classes.setdefault(
        cls, type(cls.__name__, (RetryPool, cls), {"__module__": cls.__module__})
    )
    pool.__class__ = ours
    pool.__dict__["terms"] = terms
