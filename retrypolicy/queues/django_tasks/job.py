"""One run of a task under a policy: its calls are named, and what they ended with is told to the queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from attrs import evolve, field, frozen
from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, NotPublished
from retrypolicy.guard.key import check_key
from retrypolicy.guard.operation import operation
from retrypolicy.policy import RetryPolicy
from retrypolicy.queues.django_tasks.framework import task_started
from retrypolicy.queues.names import policy_named
from retrypolicy.reports import report
from retrypolicy.step import GiveUp, RetryAt, Settled, next_step, slim

KEY = "idempotency_key"
"""The keyword of a task's arguments that names its one call. The task's own code does not get it."""

NOTE = "retrypolicy"
"""The keyword in which a task that comes back has what is known of its earlier runs, and the entry of a return value
that says where a task went on."""

clock: Clock = SystemClock()
logger = logging.getLogger("retrypolicy")
_started: ContextVar[Any] = ContextVar("retrypolicy_task_started", default=None)


def _remember(task_result: Any, **kwargs: Any) -> None:
    _started.set(task_result)


# Workers send this in the thread that calls the task then: so its id is known without `takes_context`.
task_started.connect(_remember, dispatch_uid="retrypolicy.queues.django_tasks")


def started(func: Callable[..., Any]) -> Any:
    """The result object of the run that a worker has begun of this function; None: somebody else calls it."""
    result = _started.get()
    if result is None or result.task.func is not func:
        return None
    _started.set(None)
    return result


@frozen(kw_only=True)
class Note:
    """What travels with a task that comes back. `first` and `after` are ids of results."""

    first: str
    after: str
    since: float  # when the first run began, in wall-clock seconds since the epoch
    cut: int = field(default=0)  # how many runs were ended from outside, with no call in them

    @classmethod
    def of(cls, given: object) -> Note:
        """Raises `ConfigurationError` for one that somebody else wrote, and wrong."""
        kinds: dict[str, type | tuple[type, ...]] = {"first": str, "after": str, "since": (int, float), "cut": int}
        if not isinstance(given, Mapping) or set(given) != set(kinds):
            raise ConfigurationError(f"the task's argument {NOTE}: not allowed; it is for tasks that come back")
        for name, kind in kinds.items():
            if isinstance(given[name], bool) or not isinstance(given[name], kind):
                raise ConfigurationError(f"the task's argument {NOTE}: {name} can't be {type(given[name]).__name__}")
        return cls(**given)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"first": self.first, "after": self.after, "since": self.since, "cut": self.cut}


class Job:
    """One run of a task: `result` is the worker's object for it."""

    def __init__(self, result: Any, policy: RetryPolicy | str) -> None:
        self.result, self.policy = result, policy_named(policy)
        given = result.kwargs.get(NOTE)
        identity = str(result.id)
        if given is None:
            self.note = Note(first=identity, after=identity, since=clock.now())
        else:
            self.note = evolve(Note.of(given), after=identity)
        key = result.kwargs.get(KEY)
        self.key = None if key is None else check_key(key)
        self.name = f"{result.task.module_path}[{self.note.first}]"

    def run(self, run: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run the task's own code once. Returns what the queue is to keep, or raises an error that it may keep."""
        own = {name: value for name, value in kwargs.items() if name not in (KEY, NOTE)}
        scope = None if self.key else self.name
        try:
            with operation(key=self.key, scope=scope, policy=self.policy, label=self.name):
                return run(*args, **own)
        except Exception as error:
            step = next_step(error, policy=self.policy, since=self.note.since)
            if isinstance(step, GiveUp) and step.error is error:
                raise
            if isinstance(step, Settled) and self.key is not None:
                return None if step.result is None else dict(step.result)
            if isinstance(step, (GiveUp, Settled)):
                # Settled, but not the task's only call: what else it had to do was not done.
                raise (step.error if isinstance(step, GiveUp) else slim(error)) from None
            return self.come_back(step.when, slim(error))
        except (SystemExit, KeyboardInterrupt) as stopped:  # the worker is being stopped
            self.stopped(stopped)
            raise stopped from None

    def stopped(self, error: BaseException) -> None:
        """Whoever stops a worker does not mean its task; but a task that ends its worker each time comes to an end."""
        step = next_step(error, policy=self.policy, since=self.note.since)
        if report(error) is None:
            self.note = evolve(self.note, cut=self.note.cut + 1)
            step = RetryAt(when=clock.now()) if self.note.cut < self.policy.max_attempts else step
        if not isinstance(step, (GiveUp, Settled)) and self.result.task.get_backend().supports_defer:
            self.come_back(step.when, slim(error))

    def come_back(self, when: float, why: Exception) -> dict[str, Any]:
        """Enqueue the task again, for `when`. Returns what this run leaves behind."""
        task, result = self.result.task, self.result
        if not task.get_backend().supports_defer:
            why.add_note(
                f"The task backend {result.backend!r} can't run a task later (run_after): it does not come back"
            )
            raise why from None
        due = _moment(when)
        kwargs = {**result.kwargs, NOTE: self.note.plain()}
        try:
            again = self._enqueue(task.using(run_after=due), result.args, kwargs)
        except Exception as error:
            said = (
                f"task {self.name} is due at {due.isoformat()}, but its queue did not take that "
                f"({type(error).__name__}). manage.py retrypolicy_reap_tasks brings it back"
            )
            logger.error(said)
            raise NotPublished(said, report=report(why), error=type(error).__name__) from None
        return {NOTE: {"continues_as": str(again.id), "run_after": due.isoformat(), "why": str(why)}}

    def _enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        try:
            return task.enqueue(*args, **kwargs)
        except Exception:
            close_old_connections()  # one that was lost during a long run is only found now
            return task.enqueue(*args, **kwargs)


def _moment(when: float) -> datetime:
    # A millisecond late, so that rounding makes nothing early.
    due = datetime.fromtimestamp(when + 0.001, tz=UTC)
    return due if settings.USE_TZ else timezone.make_naive(due)
