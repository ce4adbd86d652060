"""Engine: applies a policy to calls. Holds what calls share: ledger, provider, clock, random source, listeners."""

from __future__ import annotations

import functools
import inspect
import os
import random as _random
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from retrypolicy.call import Call, Replay
from retrypolicy.clock import Clock, SystemClock
from retrypolicy.driving import Driver
from retrypolicy.errors import CallRefused, ConfigurationError, PolicyError, UnprotectedKey
from retrypolicy.events import Listener
from retrypolicy.guard.key import Key, Secret, check_key, fingerprint, key_digest
from retrypolicy.guard.ledger import Ledger
from retrypolicy.guard.opening import ledger_from_environment, open_ledger
from retrypolicy.guard.operation import Operation, current_operation
from retrypolicy.guard.reconcile import Reconciler, checked, reconciler_for
from retrypolicy.outcome import Effect
from retrypolicy.policy import LONGEST_ATTEMPT, RetryPolicy
from retrypolicy.providers import Provider
from retrypolicy.providers.together import at_hosts, with_rules
from retrypolicy.shared import SharedState
from retrypolicy.work import Attempts, Classify, Work, block_name, check_on

P = ParamSpec("P")
T = TypeVar("T")

MODE_VARIABLE = "RETRYPOLICY_MODE"
MODES = ("enforce", "observe", "off")


def mode() -> str:
    """What `RETRYPOLICY_MODE` says: enforce (the default), observe, or off. Raises `ConfigurationError` otherwise."""
    value = os.environ.get(MODE_VARIABLE, "").strip().lower() or "enforce"
    if value not in MODES:
        raise ConfigurationError(f"{MODE_VARIABLE}: {value!r} is not allowed; must be one of {', '.join(MODES)}")
    return value


override: str | None = None
"""What replaces every engine's mode: set by `retrypolicy.testing.deactivated`."""


class Engine(Driver):
    """Applies a policy to calls: retries, waits, guards.

    policy: a `RetryPolicy`; the default retries whatever is safe.
    ledger: a ledger or its URL; None: what `RETRYPOLICY_LEDGER` says, else none (evidence, but no memory).
    provider: the name of a profile, or a `Provider`; it counts only for its own hosts, and for `hosts`.
    secret: keys the ledger's digests; None: what `RETRYPOLICY_SECRET` says.
    clock, random: where time and chance come from; for tests.
    listeners: told of everything that happens.
    shared: where the processes of a fleet keep their retry budgets together (`retrypolicy.shared.RedisState`).
    reconcilers: for `Guard(on_unknown="reconcile")`, by the provider's name; see `retrypolicy.guard.reconcile`.

    Thread-safe. Raises `PolicyError` or `ConfigurationError` for parts that can't be used.
    """

    longest_attempt = LONGEST_ATTEMPT

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        ledger: Ledger | str | None = None,
        provider: Provider | str | None = None,
        hosts: Sequence[str] = (),
        secret: str | bytes | Sequence[str | bytes] | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] | None = None,
        listeners: Iterable[Listener] = (),
        reconcilers: Mapping[str, Reconciler] | None = None,
        shared: SharedState | None = None,
    ) -> None:
        policy = RetryPolicy() if policy is None else policy
        if not isinstance(policy, RetryPolicy):
            raise PolicyError.of("policy", policy, "a RetryPolicy")
        self.policy = policy
        self.random: Callable[[], float] = _random.random if random is None else random
        self.listeners = several("listeners", listeners)
        for listener in self.listeners:
            _has("listeners", listener, "on_event")
        if reconcilers is not None and not isinstance(reconcilers, Mapping):
            raise ConfigurationError(f"reconcilers: {reconcilers!r} is not allowed; must be a dict by name")
        self._reconcilers = {name: checked(name, found) for name, found in (reconcilers or {}).items()}
        if not callable(self.random):
            raise ConfigurationError(f"random: {random!r} is not allowed; must be a function without arguments")
        if clock is not None:
            _has("clock", clock, "monotonic")
        if shared is not None:
            _has("shared", shared, "move")
        self._mode = mode()
        self.provider = _provider(provider, several("hosts", hosts))
        super().__init__(SystemClock() if clock is None else clock, _ledger(ledger))
        self._secret_given = secret
        self._warned = False
        self.shared = shared
        self.alone = False  # the shared budgets could not be reached when they were last tried
        if shared is not None and policy.budget is not None:
            policy.budget.state("", self.clock, shared)  # a budget that can't be shared is said at once

    @property
    def mode(self) -> str:
        """enforce, observe or off."""
        return self._mode if override is None else override

    @functools.cached_property
    def secret(self) -> Secret:
        """What the ledger's digests are keyed with. Says once if it is missing where it matters."""
        secret = Secret.of(self._secret_given)
        if self.ledger is not None and getattr(self.ledger, "durable", True):
            secret.warn_if_missing()
        return secret

    # -- making calls ------------------------------------------------------------------------------------------------

    def provider_for(self, host: str) -> Provider | None:
        """The profile, if it speaks of this host."""
        provider = self.provider
        return provider if provider is not None and provider.covers(host) else None

    def begin(
        self,
        method: str,
        url: str,
        own_key: Callable[[Provider | None], str | None] | None = None,
        content: Callable[[Provider | None], bytes] = lambda provider: b"",
        hooked: bool = False,
        policy: RetryPolicy | None = None,
    ) -> Call:
        """A call for one request. Reads the enclosing `operation`. Nothing is sent or written yet.

        policy: where the request itself brings one. That of an operation goes before it.

        Raises `ConfigurationError` where the policy demands a key that is missing or protects nothing, and
        `KeyReused` for a second request under one operation's key.
        """
        operation = current_operation()
        policy = self._policy_for(policy, operation)
        host, path = _place(url)
        provider = None if self.provider is None else self.provider_for(host)
        key: Key | None = None
        digest = mark = b""
        honoured = False
        observed = self.mode == "observe"
        if observed:
            pass  # nothing changes: no key goes out, and none is guarded
        elif method not in _NEVER_KEYED:
            own = None if own_key is None else own_key(provider)
            if own is not None or operation is not None:
                what = content(provider)
                key = self._key(own, what)
                if key is not None:
                    honoured = provider is not None and provider.honours(method, host, path)
                    if self.ledger is not None:
                        self._can_reconcile(policy, provider)
                        digest, mark = self._digests(key, what)
                    elif not honoured:
                        self._unprotected(policy, provider, host)
            if key is None and policy.guard.unkeyed == "refuse" and method not in policy.idempotent_methods:
                raise ConfigurationError(
                    f"Guard.unkeyed is 'refuse', and this {method} has no key; nothing was sent. Put it inside "
                    "operation(key=...); threads of a pool do not inherit one"
                )
        call = Call(
            self,
            policy if provider is None else with_rules(policy, provider),
            method,
            host,
            key,
            digest,
            mark,
            provider,
            honoured,
            hooked,
            None if operation is None else operation.not_after,
            observed,
        )
        if operation is not None:
            call.defers = operation.defers
        return call

    def _policy_for(self, given: RetryPolicy | None, operation: Operation | None) -> RetryPolicy:
        if operation is not None and operation.policy is not None:
            return operation.policy
        return self.policy if given is None else given

    def follow(
        self,
        before: Call,
        method: str,
        url: str,
        *,
        same_origin: bool,
        hooked: bool = False,
        policy: RetryPolicy | None = None,
    ) -> Call:
        """The call for a hop (a redirect, an auth handler's second try) that belongs to an earlier one.

        It has the same end, and tells of the earlier attempts, too. It has the same key only for the same method at the
        same origin.
        """
        host, _ = _place(url)
        keyed = same_origin and method == before.method
        provider = before.provider if same_origin else self.provider_for(host)
        if same_origin:
            policy = before.policy
        else:
            policy = self._policy_for(policy, current_operation())
            policy = policy if provider is None else with_rules(policy, provider)
        call = Call(
            self,
            policy,
            method,
            host,
            before.key if keyed else None,
            before.digest if keyed else b"",
            before.fingerprint if keyed else b"",
            provider,
            same_origin and self.honours_again(before, method, url),
            hooked,
            before.not_after,
            before.observed,
        )
        call.generation = before.generation
        call.follows(before)
        return call

    def honours_again(self, before: Call, method: str, url: str) -> bool:
        """Does the provider honour the key of an earlier hop on this one, at the same origin, as well?"""
        return (
            before.honoured
            and method == before.method
            and before.provider is not None
            and before.provider.honours(method, *_place(url))
        )

    def may_follow(self, call: Call, method: str, url: str, *, same_origin: bool) -> bool:
        """May an answer of this call lead to that request? If that repeats it: only where any repeat is safe.

        Another origin knows nothing of the key. So what may have been applied is not sent there, even if the last
        answer was a 307, which says that it did nothing.
        """
        if method != call.method or call.idempotent or call.accepts_duplicates or self.mode == "observe":
            return True
        if call.effect is Effect.NOT_APPLIED:
            return True
        until = call.key_until if same_origin and self.honours_again(call, method, url) else None
        return until is not None and self.clock.now() < until

    def _key(self, own: str | None, content: bytes) -> Key | None:
        operation = current_operation()
        bound = None if operation is None else operation.key_for(content)
        if own is None:
            return bound
        if operation is not None and operation.key not in (None, own) and not operation.yields:
            raise ConfigurationError("the key in the request itself and the operation's key differ; nothing was sent")
        return Key(value=check_key(own), label="" if operation is None else operation.label)

    def _digests(self, key: Key, content: bytes) -> tuple[bytes, bytes]:
        secret = self.secret
        digest = key_digest(secret, key.value)
        assert self.ledger is not None
        for index, old in enumerate(secret.old_digests(b"key", key.value.encode()), start=1):
            # A record from before a rotation of the secret goes on under its old name.
            if self.ledger.read(old)[0] is not None:
                return old, fingerprint(Secret(secret.values[index:]), content)
        return digest, fingerprint(secret, content)

    def reconciler(self, policy: RetryPolicy, provider: str) -> Reconciler | None:
        """Whom to ask about a held send; None where the policy does not want that."""
        return reconciler_for(provider, self._reconcilers) if policy.guard.on_unknown == "reconcile" else None

    def _can_reconcile(self, policy: RetryPolicy, provider: Provider | None) -> None:
        name = provider.name if provider is not None else ""
        if policy.guard.on_unknown == "reconcile" and self.reconciler(policy, name) is None:
            raise ConfigurationError(
                f"Guard.on_unknown is 'reconcile', and there is none for {name or 'calls without a provider'}; "
                "nothing was sent. Name one: retrypolicy.guard.reconcile.register(name, reconciler), name '*' for all"
            )

    def _unprotected(self, policy: RetryPolicy, provider: Provider | None, host: str) -> None:
        text = f"a key was given for a request to {host}, but nothing uses it: there is no ledger, and " + (
            f"{provider.name} does not honour keys there" if provider else "no provider profile covers this host"
        )
        if policy.guard.unkeyed == "refuse":
            raise ConfigurationError(text + "; nothing was sent")
        if not self._warned:
            self._warned = True
            import warnings

            warnings.warn(text, UnprotectedKey, stacklevel=5)

    # -- any callable --------------------------------------------------------------------------------------------------

    def run(
        self,
        fn: Callable[..., T],
        *args: Any,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
        idempotent: bool = False,
        classify: Classify | str | None = None,
    ) -> T:
        """Call `fn(*args)` under the policy, and return its result or raise its last error.

        on: which errors are worth another attempt. That alone proves nothing about effect: the call is repeated
            only if `idempotent`, or under a key (`operation`), or where `classify` says that nothing was applied.
        classify: given the error or the result, says what it means: an `Effect`, an `Outcome`, or None (as usual); or
            the name of an installed classifier (entry points `retrypolicy.classifiers`).

        The guard is armed before each call of `fn`, since nobody can look inside. Under a key its name, and those of
        its arguments that are plain data, are the call's content. Raises what `fn` raised last, or a `CallRefused` of
        our own; `retrypolicy.report(error)` tells what happened.
        """
        check_on(on)
        if self.mode == "off":
            return fn(*args)
        returned: T = self._done(Work(self, fn, args, {}, on, idempotent, classify))
        return returned

    async def run_async(
        self,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
        idempotent: bool = False,
        classify: Classify | str | None = None,
    ) -> T:
        """`run` for a coroutine function, under asyncio or trio."""
        check_on(on)
        if self.mode == "off":
            return await fn(*args)
        returned: T = await self._done_async(Work(self, fn, args, {}, on, idempotent, classify))
        return returned

    def _done(self, work: Work) -> Any:
        try:
            self.drive(work.call, work.attempt)
        except (Replay, CallRefused) as refusal:
            raise work.refused(refusal) from None
        return work.finish()

    async def _done_async(self, work: Work) -> Any:
        try:
            await self.drive_async(work.call, work.attempt_async)
        except (Replay, CallRefused) as refusal:
            raise work.refused(refusal) from None
        return work.finish()

    def attempts(
        self,
        *,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
        idempotent: bool = False,
        classify: Classify | str | None = None,
    ) -> Attempts:
        """`run` for a block of code: `for attempt in engine.attempts(...):` and in it `with attempt:` and the work.

        In a coroutine `async for` and `async with`. The last error leaves the block as it is; a block that ends well,
        or by `break` or `return`, ends the loop. Under a key the block's content is the function that it stands in.
        """
        check_on(on)
        return Attempts(self, block_name(sys._getframe(1)), on, idempotent, classify)

    def retry(
        self,
        *,
        on: type[Exception] | tuple[type[Exception], ...],
        idempotent: bool = False,
        classify: Classify | str | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """`run` (or `run_async`, for a coroutine function) as a decorator. `on` must be said."""
        check_on(on)

        def decorate(fn: Callable[P, T]) -> Callable[P, T]:
            if inspect.iscoroutinefunction(fn):

                @functools.wraps(fn)
                async def again_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                    if self.mode == "off":
                        return await fn(*args, **kwargs)
                    return await self._done_async(Work(self, fn, args, kwargs, on, idempotent, classify))

                return again_async  # type: ignore[return-value]  # the same coroutine function, to its callers

            @functools.wraps(fn)
            def again(*args: P.args, **kwargs: P.kwargs) -> T:
                if self.mode == "off":
                    return fn(*args, **kwargs)
                returned: T = self._done(Work(self, fn, args, kwargs, on, idempotent, classify))
                return returned

            return again

        return decorate


_NEVER_KEYED = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})


@functools.lru_cache(maxsize=512)
def _place(url: str) -> tuple[str, str]:
    """Host and path of a URL; both empty where it can't be parsed (the transport says so then)."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.path
    except ValueError:
        return "", ""


def _has(field: str, value: object, method: str) -> None:
    if not callable(getattr(value, method, None)):
        raise ConfigurationError(f"{field}: {value!r} is not allowed; must have a method {method}()")


def several(field: str, given: Iterable[T]) -> tuple[T, ...]:
    """A list as a tuple. Raises `ConfigurationError` for a text, which would fall apart, and for a single thing."""
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise ConfigurationError(f"{field}: {given!r} is not allowed; must be a list")
    return tuple(given)


def _provider(given: Provider | str | None, hosts: tuple[str, ...]) -> Provider | None:
    if given is None:
        if hosts:
            raise ConfigurationError("hosts: not allowed without a provider whose hosts they extend")
        return None
    from retrypolicy.providers import load

    provider = load(given)
    return at_hosts(provider, hosts) if hosts else provider


def _ledger(given: Ledger | str | None) -> Ledger | None:
    if given is None:
        given = ledger_from_environment()
    return None if given is None else open_ledger(given)
