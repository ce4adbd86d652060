"""Engine: applies a policy to calls. Holds what calls share: ledger, provider, clock, random source, listeners."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import random as _random
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from attrs import evolve

from retrypolicy._tasks import in_thread, to_the_end
from retrypolicy.budget import BudgetState
from retrypolicy.call import ATTEMPT, Ask, Call, Command, Perform, Replay, Wait
from retrypolicy.clock import Clock, SystemClock
from retrypolicy.decision import Decision, Retry, Stop
from retrypolicy.errors import CallRefused, ConfigurationError, LedgerUnavailable, PolicyError, UnprotectedKey
from retrypolicy.events import BudgetAlone, Listener
from retrypolicy.guard.key import Key, Secret, check_key, fingerprint, key_digest
from retrypolicy.guard.ledger import Ledger, Take
from retrypolicy.guard.opening import ledger_from_environment, open_ledger
from retrypolicy.guard.operation import Operation, current_operation
from retrypolicy.guard.reconcile import Reconciler, ask, ask_async, checked, reconciler_for
from retrypolicy.outcome import Answered, Effect, Outcome, Reason, interrupts
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import Provider
from retrypolicy.reports import attach
from retrypolicy.shared import SharedState
from retrypolicy.work import Attempts, Classify, Work, block_name

if TYPE_CHECKING:
    from retrypolicy.guard.recorder import Recorder

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

longest_sleep = math.inf
"""Seconds that a wait is slept at most, whatever was decided: set by `retrypolicy.testing.capped`."""

watchers: tuple[Callable[[Call], None], ...] = ()
"""Who hears of every call that is not driven any more: set by `retrypolicy.testing.watched`."""


class Engine:
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

    longest_attempt = 300.0
    """Seconds that an attempt is believed to take at most where no time limit is set: for the lease."""

    defers = True
    """False: nobody comes back later, so that what would be a Defer ends the call, and its key is let go."""

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
        self.clock: Clock = SystemClock() if clock is None else clock
        self.random: Callable[[], float] = _random.random if random is None else random
        self.listeners = tuple(listeners)
        for listener in self.listeners:
            if not callable(getattr(listener, "on_event", None)):
                raise ConfigurationError(f"listeners: {listener!r} is not allowed; must have a method on_event(event)")
        self._reconcilers = {name: checked(name, found) for name, found in (reconcilers or {}).items()}
        self._mode = mode()
        self.provider = _provider(provider, hosts)
        self.ledger = _ledger(ledger)
        self._secret_given = secret
        self._wake = threading.Event()
        self._running: set[Call] = set()
        self._ended = threading.Condition()
        self._warned = False
        self.shared = shared
        self._alone = False  # the shared budgets could not be reached when they were last tried
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
        *,
        own_key: Callable[[Provider | None], str | None] = lambda provider: None,
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
        if self.mode == "observe":
            pass  # nothing changes: no key goes out, and none is guarded
        elif method not in _NEVER_KEYED:
            own = own_key(provider)
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
        return Call(
            self,
            policy if provider is None else self._with_rules(policy, provider),
            method=method,
            host=host,
            key=key,
            digest=digest,
            fingerprint=mark,
            provider=provider,
            honoured=honoured,
            hooked=hooked,
            not_after=None if operation is None else operation.not_after,
        )

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

        It has the same end. It has the same key only for the same method at the same origin.
        """
        host, _ = _place(url)
        keyed = same_origin and method == before.method
        provider = before.provider if same_origin else self.provider_for(host)
        call = Call(
            self,
            before.policy if same_origin else self._with_rules(self._policy_for(policy, current_operation()), provider),
            method=method,
            host=host,
            key=before.key if keyed else None,
            digest=before.digest if keyed else b"",
            fingerprint=before.fingerprint if keyed else b"",
            provider=provider,
            honoured=before.honoured if keyed else False,
            hooked=hooked,
            not_after=before.not_after,
        )
        call.generation = before.generation
        call.follows(before)
        return call

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

    def _with_rules(self, policy: RetryPolicy, provider: Provider | None) -> RetryPolicy:
        """The policy's own rules, then the provider's."""
        return policy if provider is None or not provider.rules else _with_rules_of(policy, provider)

    # -- budget and breaker --------------------------------------------------------------------------------------------

    def opened(self, call: Call) -> None:
        """Tell the budget of a call that begins."""
        self._spending(call).on_call()

    def _spending(self, call: Call) -> BudgetState:
        state = call.spending
        if state is None:
            assert call.policy.budget is not None
            state = call.spending = call.policy.budget.state(call.host, self.clock, self.shared)
        return state

    def not_made(self, call: Call) -> None:
        """Tell the breaker that an attempt it let through was not made."""
        if call.policy.breaker is not None:
            call.policy.breaker.state(call.host, self.clock).record(None, call.began)

    def breaker_wait(self, call: Call) -> float | None:
        """Seconds until the breaker lets a call to this host through again; None: now."""
        assert call.policy.breaker is not None
        return call.policy.breaker.state(call.host, self.clock).before()

    def account(self, call: Call, outcome: Outcome, effect: Effect, decision: Decision) -> Decision:
        """Tell budget and breaker what an attempt produced; a retry that the budget refuses becomes a Stop."""
        policy = call.policy
        healthy = _healthy(outcome)
        if policy.breaker is not None:
            policy.breaker.state(call.host, self.clock).record(healthy, call.began)
        if policy.budget is None:
            return decision
        state = self._spending(call)
        kind = _kind(outcome)
        if isinstance(decision, Stop) and decision.reason is Reason.SUCCESS:
            state.on_success(call.last_kind)
        elif not isinstance(decision, Stop) or decision.reason in _RETRIED_OTHERWISE:
            state.on_failure(kind)
        if isinstance(decision, Retry):
            if state.permit(kind):
                call.last_kind = kind
            else:
                decision = Stop(reason=Reason.BUDGET_EXHAUSTED)
        if self.shared is not None and state.alone is not self._alone:
            self._alone = state.alone
            if self._alone:
                call.tell(BudgetAlone)
        return decision

    # -- running calls -------------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """`stop` was called: nobody waits any more."""
        return self._wake.is_set()

    def stop(self, grace: float = 0.0) -> bool:
        """Wake every sleeper, and let no call wait again; wait up to `grace` seconds for running calls to end.

        The calls end with their last response or error, reason STOPPED. True if none is running any more.
        """
        self._wake.set()
        with self._ended:
            return self._ended.wait_for(lambda: not self._running, timeout=grace)

    def drive(self, call: Call, attempt: Callable[[Call], Outcome]) -> Decision:
        """Run a call to its end: `attempt` is asked for an outcome as often as needed. Raises the guard's refusals."""
        steps = call.steps()
        send = steps.send
        self.enter(call)
        try:
            command = next(steps)
            while True:
                command = send(attempt(call)) if command is ATTEMPT else self.obey(steps, command)
        except StopIteration as end:
            decision: Decision = end.value
            return decision
        except BaseException as error:
            steps.close()
            self.clean_up(call, error)
            raise
        finally:
            self.leave(call)

    def enter(self, call: Call) -> None:
        """This call is being driven: `stop` waits for it."""
        self._running.add(call)

    def leave(self, call: Call) -> None:
        """This call is not driven any more."""
        self._running.discard(call)
        if self._wake.is_set():
            with self._ended:
                self._ended.notify_all()
        for tell in watchers:
            tell(call)

    def obey(self, steps: Any, command: Command | None) -> Command:
        """Do what a call's steps ask for, other than an attempt; returns what they ask for next."""
        if isinstance(command, Wait):
            woken = self.clock.sleep(min(command.seconds, longest_sleep), self._wake)
            result: Command = steps.send(woken)
            return result
        if isinstance(command, Ask):
            result = steps.send(ask(command.reconciler, command.held))
            return result
        assert isinstance(command, Perform)
        try:
            answer = self.perform(command)
        except LedgerUnavailable as error:
            result = steps.throw(error)
            return result
        result = steps.send(answer)
        return result

    def perform(self, command: Perform) -> Any:
        """One operation of the ledger."""
        return getattr(self.ledger, command.operation)(*command.args, **command.options)

    def arm(self, call: Call) -> None:
        """For a transport's hook between "connected" and the first byte. Raises the guard's refusals."""
        steps = call.arm()
        try:
            command = next(steps)
            while True:
                command = self.obey(steps, command)
        except StopIteration:
            return
        finally:
            steps.close()  # torn out by an interrupt: the call says at once what it leaves behind

    def clean_up(self, call: Call, error: BaseException) -> None:
        """A call was torn out of its steps by `error`: let go of what it has."""
        self.not_made(call)
        left = call.abandon()
        if left is not None:
            with contextlib.suppress(LedgerUnavailable):  # the lease runs out by itself
                self.perform(left)
        _tell_of_torn(call, error)

    async def drive_async(self, call: Call, attempt: Callable[[Call], Awaitable[Outcome]]) -> Decision:
        """As `drive`, without blocking the event loop (asyncio or trio)."""
        steps = call.steps()
        self.enter(call)
        try:
            command = next(steps)
            while True:
                if command is ATTEMPT:
                    command = steps.send(await attempt(call))
                else:
                    command = (await self.obey_async(steps, command))()
        except StopIteration as end:
            decision: Decision = end.value
            return decision
        except BaseException as error:
            steps.close()
            await self.clean_up_async(call, error)
            raise
        finally:
            self.leave(call)

    async def obey_async(self, steps: Any, command: Command | None) -> Callable[[], Command]:
        """As `obey`; returns what goes on with the steps (their end is a StopIteration: no coroutine can raise that).

        What is asked of the ledger is done to its end, though the task be cancelled meanwhile.
        """
        if isinstance(command, Wait):
            woken = await self.clock.sleep_async(min(command.seconds, longest_sleep), self._wake)
            return functools.partial(steps.send, woken)
        if isinstance(command, Ask):
            return functools.partial(steps.send, await ask_async(command.reconciler, command.held, in_thread))
        assert isinstance(command, Perform)
        try:
            return functools.partial(steps.send, await to_the_end(self._perform_async(command)))
        except LedgerUnavailable as error:
            return functools.partial(steps.throw, error)

    async def clean_up_async(self, call: Call, error: BaseException) -> None:
        """As `clean_up`."""
        self.not_made(call)
        left = call.abandon()
        if left is not None:
            with contextlib.suppress(LedgerUnavailable):
                await to_the_end(self._perform_async(left))
        _tell_of_torn(call, error)

    async def _perform_async(self, command: Perform) -> Any:
        method = getattr(self.ledger, command.operation)
        if inspect.iscoroutinefunction(method):
            return await method(*command.args, **command.options)
        return await in_thread(functools.partial(method, *command.args, **command.options))

    @property
    def _recorder(self) -> Recorder:
        """What says again in the background what the ledger could not take: one per process."""
        from retrypolicy.guard.recorder import recorder

        return recorder

    def record_later(self, digest: bytes, result: dict[str, Any], provider: str) -> None:
        """Good news that the ledger could not take: written again in the background."""
        self._recorder.later(self.ledger, digest, result, provider)

    def settle_later(self, command: Perform) -> None:
        """Bad news that the ledger could not take: without it, the call is held once its lease is over."""
        self._recorder.settle(self.ledger, command.operation, command.args, command.options)

    def withdraw_later(self, take: Take) -> None:
        """An arm that was not answered, and on which nothing was sent: taken back, should it show up."""
        self._recorder.withdraw(self.ledger, take)

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

        The guard is armed before each call of `fn`, since nobody can look inside. Raises what `fn` raised last, or a
        `CallRefused` of our own; `retrypolicy.report(error)` tells what happened.
        """
        if self.mode == "off":
            return fn(*args)
        work = Work(self, fn, args, on, idempotent, classify)
        try:
            self.drive(work.call, work.attempt)
        except (Replay, CallRefused) as refusal:
            raise work.refused(refusal) from None
        return work.finish()  # type: ignore[no-any-return]  # what fn returned

    async def run_async(
        self,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        on: type[Exception] | tuple[type[Exception], ...] = Exception,
        idempotent: bool = False,
        classify: Classify | str | None = None,
    ) -> T:
        """`run` for a coroutine function, under asyncio or trio."""
        if self.mode == "off":
            return await fn(*args)
        work = Work(self, fn, args, on, idempotent, classify)
        try:
            await self.drive_async(work.call, work.attempt_async)
        except (Replay, CallRefused) as refusal:
            raise work.refused(refusal) from None
        return work.finish()  # type: ignore[no-any-return]  # what fn returned

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
        return Attempts(self, block_name(sys._getframe(1)), on, idempotent, classify)

    def retry(
        self,
        *,
        on: type[Exception] | tuple[type[Exception], ...],
        idempotent: bool = False,
        classify: Classify | str | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """`run` (or `run_async`, for a coroutine function) as a decorator. `on` must be said."""

        def decorate(fn: Callable[P, T]) -> Callable[P, T]:
            options: dict[str, Any] = {"on": on, "idempotent": idempotent, "classify": classify}
            if inspect.iscoroutinefunction(fn):

                @functools.wraps(fn)
                async def again_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                    return await self.run_async(functools.partial(fn, *args, **kwargs), **options)

                return again_async  # type: ignore[return-value]  # the same coroutine function, to its callers

            @functools.wraps(fn)
            def again(*args: P.args, **kwargs: P.kwargs) -> T:
                return self.run(functools.partial(fn, *args, **kwargs), **options)

            return again

        return decorate


_NEVER_KEYED = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
_RETRIED_OTHERWISE = frozenset({Reason.ATTEMPTS_EXHAUSTED, Reason.BUDGET_EXHAUSTED, Reason.SERVER_SAID_NO})


@functools.lru_cache(maxsize=512)
def _place(url: str) -> tuple[str, str]:
    """Host and path of a URL; both empty where it can't be parsed (the transport says so then)."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.path
    except ValueError:
        return "", ""


def _tell_of_torn(call: Call, error: BaseException) -> None:
    if not isinstance(error, (CallRefused, Replay)):  # those are told of where they are turned into an answer
        call.over(Reason.INTERRUPTED)
        attach(error, evolve(call.report(), reason=Reason.INTERRUPTED))  # a queue must know that there was a call


def _healthy(outcome: Outcome) -> bool | None:
    """What an outcome says of the server's health; None: nothing (it refused us, or we were at fault)."""
    if isinstance(outcome, Answered):
        if outcome.status >= 500:
            return False
        return None if outcome.status == 429 else True
    if interrupts(outcome.error) or outcome.retry_limit == 0:
        return None
    return False


def _kind(outcome: Outcome) -> Any:
    if isinstance(outcome, Answered):
        return "throttled" if outcome.status == 429 else "transient"
    return "timeout" if "timeout" in type(outcome.error).__name__.lower() else "transient"


def _provider(given: Provider | str | None, hosts: Sequence[str]) -> Provider | None:
    if given is None:
        if hosts:
            raise ConfigurationError("hosts: not allowed without a provider whose hosts they extend")
        return None
    from retrypolicy.providers import load

    provider = load(given)
    return _at_hosts(provider, tuple(hosts)) if hosts else provider


# Anymail's backends make an engine for each message: what two values make together is remembered, by identity (both are
# immutable, and hold dicts).
_together: dict[tuple[object, ...], tuple[Any, Any]] = {}


def _at_hosts(provider: Provider, hosts: tuple[str, ...]) -> Provider:
    key = (id(provider), hosts)
    found: Provider = _remembered(key, provider, lambda: evolve(provider, hosts=tuple(provider.hosts) + hosts))
    return found


def _with_rules_of(policy: RetryPolicy, provider: Provider) -> RetryPolicy:
    key, alive = (id(policy), id(provider)), (policy, provider)
    found: RetryPolicy = _remembered(key, alive, lambda: evolve(policy, rules=policy.rules + provider.rules))
    return found


def _remembered(key: tuple[object, ...], alive: object, make: Callable[[], Any]) -> Any:
    """`alive` is what the ids in the key belong to: as long as it is kept, no other object gets them."""
    known = _together.get(key)
    if known is None:
        if len(_together) >= _MOST:
            _together.clear()
        known = _together[key] = (alive, make())
    return known[1]


_MOST = 256


def _ledger(given: Ledger | str | None) -> Ledger | None:
    if given is None:
        given = ledger_from_environment()
    return None if given is None else open_ledger(given)
