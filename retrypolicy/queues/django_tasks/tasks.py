"""Tasks under a policy: a class for backends of ours, and a decorator for all others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

from asgiref.sync import async_to_sync, sync_to_async

from retrypolicy.errors import ConfigurationError
from retrypolicy.guard.key import check_key
from retrypolicy.policy import RetryPolicy
from retrypolicy.queues.django_tasks.framework import Task
from retrypolicy.queues.django_tasks.job import KEY, NOTE, Job, started
from retrypolicy.queues.names import policy_named

P = ParamSpec("P")
T = TypeVar("T")

policies: dict[str, RetryPolicy | str] = {}
"""What is known in this process: the policy of each task that is under one, by the task's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTask(Task):
    """What `@task(retry_policy="email")` makes on a backend of ours. Without `retry_policy`: a task as any other.

    All calls in one run are made under the policy. Each has a key, made of the id of the task's first result, its
    content, and how often that content came before in this run; `enqueue(..., idempotency_key=)` names the one call of
    a task that makes only one. A task that ends with an error comes back when `next_step` says so, as a new result; or
    it fails with an error that has no secret in it.

    `enqueue` raises `ConfigurationError` for what can't be a key, and for a policy that does not exist.
    """

    retry_policy: RetryPolicy | str | None = None

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        if self.retry_policy is not None:
            _note(self.func, self.retry_policy)

    def enqueue(self, *args: Any, **kwargs: Any) -> Any:
        """As Django's own. `idempotency_key` names the task's one call."""
        return Task.enqueue(self, *args, **self._checked(kwargs))

    async def aenqueue(self, *args: Any, **kwargs: Any) -> Any:
        """As Django's own. `idempotency_key` names the task's one call."""
        return await Task.aenqueue(self, *args, **self._checked(kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task. A call in somebody's own code is one, and nothing more."""
        result = None if self.retry_policy is None else started(self.func)
        if result is None or self.retry_policy is None:
            return Task.call(self, *args, **kwargs)
        return Job(result, self.retry_policy).run(functools.partial(Task.call, self), args, kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """The same, for workers that are coroutines."""
        return await sync_to_async(self.call)(*args, **kwargs)

    def _checked(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.retry_policy is None:
            return kwargs
        policy_named(self.retry_policy)
        if kwargs.get(KEY) is None:
            return {name: value for name, value in kwargs.items() if name != KEY}
        check_key(kwargs[KEY])
        return kwargs


def with_policy(policy: RetryPolicy | str = "worker") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """What `@task(retry_policy=...)` does, for a backend that knows no policies: below `@task()`.

    `enqueue(..., idempotency_key=)` works, too; but a key that can't be one is found when the task runs.
    """

    def decorate(run: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(run)
        def under_policy(*args: P.args, **kwargs: P.kwargs) -> T:
            result = started(under_policy)
            inner: Callable[..., Any] = async_to_sync(run) if inspect.iscoroutinefunction(run) else run
            if result is None:
                return cast("T", inner(*args, **kwargs))
            return cast("T", Job(result, policy).run(inner, args, kwargs))

        _note(run, policy)
        under_policy.retry_policy = policy  # type: ignore[attr-defined]  # for policy_of
        return under_policy

    return decorate


def policy_of(task: Any) -> RetryPolicy | str | None:
    """What a task is under; None: nothing of ours."""
    found: RetryPolicy | str | None = getattr(task, "retry_policy", None) or getattr(task.func, "retry_policy", None)
    return found


def _note(func: Callable[..., Any], policy: RetryPolicy | str) -> None:
    path = f"{func.__module__}.{func.__qualname__}"
    for name in (KEY, NOTE):
        if name in inspect.signature(func).parameters:
            raise ConfigurationError(
                f"{path}: a parameter {name} is not allowed; a task under a policy does not get it"
            )
    policies[path] = policy
