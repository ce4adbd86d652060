"""follow(): from the result of a task's first run to that of its last."""

from __future__ import annotations

from typing import Any

from retrypolicy.queues.django_tasks.framework import SUCCESSFUL
from retrypolicy.queues.django_tasks.job import NOTE


def follow(result: Any) -> Any:
    """The result in which a task came to its end, or waits now. Each run that comes back later is one more result.

    Reads the results anew. Raises Django's `TaskResultDoesNotExist` for one that was pruned.
    """
    backend, identity = result.task.get_backend(), result.id
    while True:
        result = backend.get_result(identity)
        value = result.return_value if result.status == SUCCESSFUL else None
        if not isinstance(value, dict) or set(value) != {NOTE}:
            return result
        identity = value[NOTE]["continues_as"]
