"""Celery tasks under a policy: the worker's redelivery and the request's retries are one call, with one key.

Celery keeps nothing of it but the message: when to come back stands in its headers, what was done in the ledger.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from attrs import evolve, frozen
from celery.app.task import Task
from celery.exceptions import Ignore, Reject, Retry

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable, NotPublished, SendDeferred, SendFailed
from retrypolicy.guard import Ledger
from retrypolicy.guard.key import check_key, key_digest
from retrypolicy.guard.ledger import Take, Taken
from retrypolicy.guard.operation import operation
from retrypolicy.policy import RetryPolicy
from retrypolicy.queues.names import ledger_named, policy_named, secret
from retrypolicy.step import GiveUp, Settled, kills_its_workers, next_step, slim

if TYPE_CHECKING:
    from retrypolicy.queues.celery_checks import Problem as Problem
    from retrypolicy.queues.celery_checks import check_app as check_app
    from retrypolicy.queues.celery_django import DjangoPolicyTask as DjangoPolicyTask

__all__ = ["DjangoPolicyTask", "PolicyTask", "Problem", "check_app", "with_policy"]

P = ParamSpec("P")
T = TypeVar("T")

HEADER = "retrypolicy"
"""The header of a message in which a task's key, its beginning and its next time travel."""

LONGEST_COUNTDOWN = 900.0
"""Seconds that a message waits in a worker at most. A broker delivers again what is not acknowledged in time: RabbitMQ
after 30 minutes, SQS after 30, Redis after an hour. https://docs.celeryq.dev/en/stable/userguide/calling.html"""

clock: Clock = SystemClock()
logger = logging.getLogger("retrypolicy")


class PolicyTask(Task):
    """A base for tasks that call an API: `@app.task(base=PolicyTask)`, or `Celery(task_cls=...)` for all of them.

    All calls in one run are made under `retry_policy`. Each has a key, made of the task's id, its content, and how
    often that content came before in this run; `apply_async(..., idempotency_key=)` names the one call of a task that
    makes only one. A task that ends with an error comes back when `next_step` says so, or fails with an error that
    can be pickled and has no secret in it.

    retry_policy: a `RetryPolicy`, the name of a preset, or in a Django project a name from its settings.
    retry_ledger: where deliveries that kill their worker are counted, a ledger or its URL; None: as everywhere.
    max_countdown: seconds that a message waits in a worker at most; longer waits are made of several. None: half the
        broker's visibility timeout, or 15 minutes.

    Raises `ConfigurationError` for `autoretry_for` beside it when the task is defined, and for a policy that does not
    exist when it runs (or by `check_app`).
    """

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    retry_policy: RetryPolicy | str = "worker"
    retry_ledger: Ledger | str | None = None
    max_countdown: float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_autoretry(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; a direct call in somebody's own code is one, and nothing more."""
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        return _Job(self, self.retry_policy).run(self.run, args, kwargs)

    def apply_async(
        self, args: Any = None, kwargs: Any = None, *more: Any, idempotency_key: str | None = None, **options: Any
    ) -> Any:
        """As Celery's own. `idempotency_key` names the task's one call. Raises `ConfigurationError` if it can't."""
        if idempotency_key is not None:
            note = Note(key=check_key(idempotency_key))
            options["headers"] = {**(options.get("headers") or {}), HEADER: note.to_header()}
        return super().apply_async(args, kwargs, *more, **options)


def with_policy(
    policy: RetryPolicy | str = "worker",
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """What `PolicyTask` does, for a task whose base can't change: below `@app.task(bind=True, acks_late=True, ...)`.

    `check_app` says whether the task acknowledges late.
    """

    def decorate(run: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(run)
        def under_policy(*args: P.args, **kwargs: P.kwargs) -> T:
            task: Any = args[0] if args else None
            if not isinstance(task, Task):
                raise ConfigurationError("with_policy: the task's first argument must be itself; say bind=True")
            if task.request.called_directly:
                return run(*args, **kwargs)
            refuse_autoretry(task)
            result: T = _Job(task, policy).run(run, args, kwargs)
            return result

        under_policy.retry_policy = policy  # type: ignore[attr-defined]  # for check_app
        return under_policy

    return decorate


def refuse_autoretry(task: Any) -> None:
    """Celery's own retries would run below ours, and repeat what the policy gave up. Raises `ConfigurationError`."""
    if getattr(task, "autoretry_for", ()):
        name = getattr(task, "name", None) or task.__name__
        raise ConfigurationError(
            f"{name}: autoretry_for is not allowed beside a policy, it would repeat what the policy does not; remove "
            "it, and say in retry_policy what is worth a retry"
        )


def longest_countdown(task: Any) -> float:
    """Seconds that a message of this task may wait in a worker."""
    if getattr(task, "max_countdown", None) is not None:
        return float(task.max_countdown)
    timeout = visibility_timeout(task.app)
    return LONGEST_COUNTDOWN if timeout is None else min(LONGEST_COUNTDOWN, timeout / 2)


def visibility_timeout(app: Any) -> float | None:
    """Seconds after which the broker delivers a message again, where the app sets them."""
    given = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    return None if given is None else float(given)


@frozen(kw_only=True)
class Note:
    """What travels with a task's message. Times are wall-clock seconds since the epoch."""

    key: str | None = None
    since: float | None = None  # when its first run began
    due: float | None = None

    @classmethod
    def of(cls, headers: Mapping[str, Any] | None) -> Note:
        """Raises `ConfigurationError` for a header that somebody else wrote, and wrong."""
        given = (headers or {}).get(HEADER)
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"the message's header {HEADER}: must be a mapping")
        key = given.get("key")
        times = [given.get(name) for name in ("since", "due")]
        for value in times:
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ConfigurationError(f"the message's header {HEADER}: {type(value).__name__} is not a time")
        return cls(key=None if key is None else check_key(key), since=times[0], due=times[1])

    def to_header(self) -> dict[str, Any]:
        """As plain data, without what is not set."""
        return {k: v for k, v in (("key", self.key), ("since", self.since), ("due", self.due)) if v is not None}


class _Job:
    """One delivery of a task's message to a worker."""

    def __init__(self, task: Any, policy: RetryPolicy | str) -> None:
        self.task, self.request = task, task.request
        self.policy = policy_named(policy)
        note = Note.of(self.request.headers)
        self.now = clock.now()
        self.note = evolve(note, since=self.now) if note.since is None else note

    def run(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the task's own code once, and say to the queue what comes next."""
        note, name = self.note, f"{self.task.name}[{self.request.id}]"
        if note.due is not None and note.due > self.now:
            early = SendDeferred("the task is not due yet; nothing was sent", retry_at=note.due)
            raise self.come_back(note.due, early) from None
        try:
            with (
                _Delivery(self),
                operation(key=note.key, scope=None if note.key else name, policy=self.policy, label=name),
            ):
                return run(*args, **kwargs)
        except (Retry, Ignore, Reject):
            raise
        except Exception as error:
            step = next_step(error, policy=self.policy, since=note.since)
            if isinstance(step, GiveUp) and step.error is error:
                raise
            if isinstance(step, Settled) and note.key is not None:
                return None if step.result is None else dict(step.result)
            if isinstance(step, (GiveUp, Settled)):
                # Settled, but not the task's only call: what else it had to do was not done.
                raise (step.error if isinstance(step, GiveUp) else slim(error)) from None
            raise self.come_back(step.when, slim(error)) from None

    def come_back(self, when: float, why: Exception) -> Exception:
        """Publish the message again, for `when`; returns what to raise then."""
        request = self.request
        if request.is_eager:
            return why  # nobody comes back: there is no queue
        left = max(0.0, when - clock.now())
        wait = min(left, longest_countdown(self.task))
        note = evolve(self.note, due=when)
        # The same task id; and the same count of retries, which is not ours.
        message = self.task.signature_from_request(
            request, countdown=wait, headers={**(request.headers or {}), HEADER: note.to_header()}
        )
        try:
            message.apply_async()
        except Exception as error:
            return self.not_published(error, when)
        retry: Exception = Retry(exc=why, when=wait, sig=message)
        return retry

    def not_published(self, error: Exception, when: float) -> Exception:
        """The broker is away. What was not acknowledged goes back to it, and comes again."""
        late = bool(self.task.acks_late)
        fate = "its message goes back unacknowledged" if late else "its message was acknowledged early, and is gone"
        said = (
            f"task {self.task.name}[{self.request.id}] is due at {when:.0f}, but the broker did not take that "
            f"({type(error).__name__}); {fate}"
        )
        logger.error(said)
        rejected: Exception = Reject(said, requeue=True)
        return rejected if late else NotPublished(said, error=type(error).__name__)


class _Delivery:
    """Counts the deliveries that kill their worker, in the ledger: the next one finds that this one never ended.

    Costs nothing where the message is known to come for the first time.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._ledger: Ledger | None = None

    def __enter__(self) -> None:
        task, request, policy = self._job.task, self._job.request, self._job.policy
        again = (request.delivery_info or {}).get("redelivered") or request.retries > 0
        if request.is_eager or not (again or not tells_redelivery(task.app)):
            return
        ledger = ledger_named(getattr(task, "retry_ledger", None))
        if ledger is None:
            return
        self._digest = digest = key_digest(secret(), f"{HEADER}-delivery:{task.name}[{request.id}]")
        self._owner = digest[:16]  # the same for all deliveries, so that each of them may have it
        take = Take(
            key=digest, owner=self._owner, token=os.urandom(8), fingerprint=b"", lease=-1.0, label=f"run of {task.name}"
        )
        try:
            answer = ledger.claim(take)
        except LedgerUnavailable:
            return  # then nothing is sent, either
        if not isinstance(answer, Taken):
            return
        self._ledger, self._fence = ledger, answer.fence
        died = answer.attempts - 1
        old = policy.lifetime is not None and self._job.now >= answer.first_seen + policy.lifetime
        if kills_its_workers(died, policy) or (died and old):
            self._over()
            raise SendFailed(
                f"task {task.name}[{request.id}] was begun {died} times and never came to an end: it may kill its "
                "workers. It is not run again",
                error="WorkerLostError",
            )

    def __exit__(self, *error: object) -> None:
        self._over()

    def _over(self) -> None:
        if self._ledger is not None:
            try:
                self._ledger.reject(self._digest, self._owner, self._fence)
            except LedgerUnavailable:
                logger.warning("the end of a delivery of %s could not be recorded", self._job.task.name)


@functools.cache
def tells_redelivery(app: Any) -> bool:
    """Does a message of this broker say that it was delivered before?"""
    driver: str = app.connection_for_read().transport.driver_type
    return driver in ("amqp", "redis")


def __getattr__(name: str) -> Any:
    # Lazily: Django is not everybody's, and the checks are not the worker's.
    if name == "DjangoPolicyTask":
        from retrypolicy.queues.celery_django import DjangoPolicyTask

        return DjangoPolicyTask
    if name in ("Problem", "check_app"):
        from retrypolicy.queues import celery_checks

        return getattr(celery_checks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
