"""RetryAdapter: an HTTPAdapter that retries what is safe, and keeps duplicates from going out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import requests
from requests.adapters import DEFAULT_POOLBLOCK, DEFAULT_POOLSIZE, BaseAdapter, HTTPAdapter
from urllib3.util import Retry as Urllib3Retry
from urllib3.util import Timeout

from retrypolicy.clock import Clock
from retrypolicy.engine import Engine, several
from retrypolicy.errors import ConfigurationError
from retrypolicy.events import Listener
from retrypolicy.guard.ledger import Ledger
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import Provider
from retrypolicy.requests.pools import Pools
from retrypolicy.requests.run import Run
from retrypolicy.requests.unbuilt import Unbuilt
from retrypolicy.shared import SharedState
from retrypolicy.urllib3.convert import from_urllib3
from retrypolicy.urllib3.sending import MAX_IDLE, ONE_ATTEMPT, current_sending, idle_limit


class RetryAdapter(HTTPAdapter):
    """An `HTTPAdapter` that applies a `RetryPolicy`. `RetryAdapter()` is safe for every method, POST included.

    policy: a `RetryPolicy`; None: the default one.
    ledger: a ledger or its URL: remembers sends over crashes. None: `RETRYPOLICY_LEDGER`, else none.
    provider: the name of a profile, or a `Provider`: where the key goes, what the API's answers mean. It counts only
        for the profile's own hosts; `hosts` adds others.
    secret: keys the ledger's digests; None: `RETRYPOLICY_SECRET`.
    transport: another adapter to send through (a companion's). Its wire may not be watched; then what can't be
        seen counts as unknown, and the guard is armed before the call.
    max_idle: seconds after which a pooled connection is not reused. None: no limit.
    max_retries: a number or a urllib3 `Retry`, as `HTTPAdapter` takes it: turned into a policy (`from_urllib3`).
    pool_connections, pool_maxsize, pool_block: as for `HTTPAdapter`.
    clock, random, listeners, shared: as for `Engine`.
    others: for the next adapter, where this one is put before another: `class Mine(RetryAdapter, SSLAdapter)`.

    Raises `PolicyError` or `ConfigurationError` for parts that can't be used.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "_settings"]

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        ledger: Ledger | str | None = None,
        provider: Provider | str | None = None,
        hosts: Sequence[str] = (),
        secret: str | bytes | Sequence[str | bytes] | None = None,
        transport: BaseAdapter | None = None,
        max_idle: float | None = MAX_IDLE,
        max_retries: int | Urllib3Retry | None = None,
        pool_connections: int = DEFAULT_POOLSIZE,
        pool_maxsize: int = DEFAULT_POOLSIZE,
        pool_block: bool = DEFAULT_POOLBLOCK,
        clock: Clock | None = None,
        random: Callable[[], float] | None = None,
        listeners: Iterable[Listener] = (),
        shared: SharedState | None = None,
        **others: Any,
    ) -> None:
        if max_retries is not None:
            if policy is not None:
                raise ConfigurationError("max_retries: not allowed beside a policy, which says how often to try")
            policy = from_urllib3(max_retries)
        if transport is not None and not isinstance(transport, BaseAdapter):
            raise ConfigurationError(f"transport: {transport!r} is not allowed; must be a requests adapter")
        tries = getattr(getattr(transport, "max_retries", None), "total", 0)
        if isinstance(transport, RetryAdapter) or tries != 0:
            # The last of several attempts says nothing about those before it.
            raise ConfigurationError(
                "transport: an adapter that retries by itself is not allowed; set its max_retries to 0"
            )
        self._settings: dict[str, Any] = {
            "policy": policy,
            "ledger": ledger,
            "provider": provider,
            "hosts": several("hosts", hosts),
            "secret": secret,
            "clock": clock,
            "random": random,
            "listeners": several("listeners", listeners),
            "shared": shared,
        }
        self.transport = transport
        self.max_idle = idle_limit(max_idle)
        self._engine = Engine(**self._settings)
        self._pools = Pools(self)
        super().__init__(
            pool_connections=pool_connections,
            pool_maxsize=pool_maxsize,
            max_retries=0,
            pool_block=pool_block,
            **others,
        )

    # -- urllib3's own retries are never stacked on ours --------------------------------------------------------------

    @property
    def max_retries(self) -> Urllib3Retry:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Always none: urllib3 must make one attempt. What is assigned here becomes the policy."""
        return ONE_ATTEMPT

    @max_retries.setter
    def max_retries(self, value: int | Urllib3Retry) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if isinstance(value, Urllib3Retry) and (value is ONE_ATTEMPT or (not value.total and value.read is False)):
            return  # what HTTPAdapter's constructor sets by itself
        self._settings["policy"] = from_urllib3(value)
        self._engine = Engine(**self._settings)

    # -- sending ---------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine behind this adapter: its policy, its ledger, and `stop()`."""
        return self._engine

    @property
    def policy(self) -> RetryPolicy:
        """The policy of this adapter; an enclosing `operation` may bring another."""
        return self._engine.policy

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request, as often as the policy allows and the evidence makes safe.

        Returns the last response, or raises the last error, with a report on it. Raises the guard's refusals
        (`SendHeld`, `SendInProgress`, ...) as errors of requests, before a byte is sent.
        """
        options = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
        send = super().send if self.transport is None else self._send_through
        known = _as_timeout(timeout)
        if known is None or self._engine.mode == "off":
            return send(request, **options)
        # The guard is called between "connected" and the first byte if nobody sends but HTTPAdapter itself. Another
        # adapter, a class in between, or a mock in the place of its `send` may do anything: the key is armed before.
        hooked = getattr(send, "__func__", None) is _SEND
        if hooked:
            options["timeout"] = known  # else it would be made anew for every attempt
        response: requests.Response = Run(self, request, options, send, hooked).to_the_end()
        return response

    def _send_through(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """One attempt, through the other adapter."""
        transport = self.transport
        assert transport is not None
        run = current_sending()
        if isinstance(run, Run) and run.request is request:
            self._look_into(transport, run, options)
        response = transport.send(request, **options)
        response.connection = self  # digest and NTLM send again through it
        return response

    def _look_into(self, transport: BaseAdapter, run: Run, options: dict[str, Any]) -> None:
        """Watch the wire of another adapter, if its `send` is HTTPAdapter's: one attempt, on the pool that it finds."""
        if not isinstance(transport, HTTPAdapter) or getattr(transport.send, "__func__", None) is not _SEND:
            return
        run.off_pool()
        verify, cert = options["verify"], options["cert"]
        with suppress(Exception):  # which `send` meets, too
            pool = transport.get_connection_with_tls_context(run.request, verify, options["proxies"], cert)
            transport.cert_verify(pool, run.url, verify, cert)
            run.on_pool(pool)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: Any,
        proxies: Any = None,
        cert: Any = None,
    ) -> Any:
        find = super().get_connection_with_tls_context
        run = current_sending()
        if not isinstance(run, Run) or run.request is not request:
            return find(request, verify, proxies=proxies, cert=cert)
        pool = run.pool
        if pool is None or pool.pool is None:  # none yet, or closed meanwhile
            pool = run.pool = self._pools.get(request, verify, proxies, cert, find)
        run.on_pool(pool)
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        try:
            super().cert_verify(conn, url, verify, cert)
        except (OSError, ValueError, TypeError, LookupError):  # no such file, or nothing that names one
            run = current_sending()
            if run is not None:
                run.off_pool()
            raise

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        target = None if proxies else self._pools.targets.get(request.url or "")
        return self._pools.target(request, proxies, super().request_url) if target is None else target

    def build_response(self, req: requests.PreparedRequest, resp: Any, **others: Any) -> requests.Response:
        build, run = super().build_response, current_sending()
        ours = isinstance(run, Run) and run.request is req and run.may_be_repeated(resp)
        if ours and getattr(build, "__func__", None) is _BUILD:  # no other adapter's in between
            return Unbuilt(self, req, resp)
        return build(req, resp, **others)

    def close(self) -> None:
        """Close pooled connections. The ledger stays open: other adapters may share it."""
        super().close()
        self._pools = Pools(self)
        if self.transport is not None:
            self.transport.close()

    # -- pickling: sessions pickle their adapters ---------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        if self._settings["secret"] is not None:
            raise TypeError("an adapter made with secret= can't be pickled: set RETRYPOLICY_SECRET instead")
        names = {name for each in type(self).__mro__ for name in vars(each).get("__attrs__", ())} - {"max_retries"}
        state = {name: getattr(self, name, None) for name in names}
        return {**state, "_transport": self.transport, "max_idle": self.max_idle}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._settings = state["_settings"]
        self.transport, self.max_idle = state["_transport"], state["max_idle"]
        self._engine = Engine(**self._settings)
        self._pools = Pools(self)
        super().__setstate__(state)


def _as_timeout(given: Any) -> Timeout | None:
    """What HTTPAdapter makes of a timeout. None: it can't use it, and says so before anything is sent or armed."""
    if given is None:
        return _NO_TIMEOUT
    if isinstance(given, Timeout):
        return given
    try:
        connect, read = given if isinstance(given, tuple) else (given, given)
        return Timeout(connect=connect, read=read)
    except ValueError:
        return None


_NO_TIMEOUT = Timeout(connect=None, read=None)


_SEND = HTTPAdapter.send
_BUILD = HTTPAdapter.build_response


def mount(session: requests.Session, policy: RetryPolicy | None = None, **options: Any) -> RetryAdapter:
    """Mount one `RetryAdapter` on a session, for both schemes; returns it. `options` are the adapter's.

    Raises what `RetryAdapter` raises, and `ConfigurationError` where there is no session to mount it on.
    """
    if not callable(getattr(session, "mount", None)):
        raise ConfigurationError(f"session: {session!r} is not allowed; must be a requests.Session")
    adapter = RetryAdapter(policy, **options)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return adapter
