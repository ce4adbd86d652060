"""Many threads, one writer: whoever gets the turn serves all that wait, in one transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from retrypolicy.clock import SystemClock
from retrypolicy.errors import LedgerUnavailable

W = TypeVar("W")

_MOST = 64  # works in one transaction: a commit costs much more than a work, and nobody should wait for a crowd


class _Job(Generic[W]):
    __slots__ = ("answer", "error", "finished", "withdrawn", "work")

    def __init__(self, work: W) -> None:
        self.work = work
        self.answer: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.withdrawn = False


class Group(Generic[W]):
    """Has works done one after the other, those that wait at the same time together.

    `serve(works, deadline)` does all of them in one transaction, or none, and returns their answers.
    `patience` is how many seconds a work may wait. First come, first served: nobody starves.
    """

    def __init__(self, serve: Callable[[Sequence[W], float], Sequence[Any]], patience: float) -> None:
        self._serve = serve
        self._patience = patience
        self._clock = SystemClock()
        self._monotonic = self._clock.monotonic
        self._queue: deque[_Job[W]] = deque()
        # Reentrant only because its release() tells whether we own it: a signal (a soft time limit) may raise between
        # the acquiring and the line after it.
        self._turn = threading.RLock()
        self._busy: object = None
        self._waiting = 0  # about how many: a thread may be interrupted between the two

    def run(self, work: W) -> Any:
        """Raises `TimeoutError` if it got no turn, and whatever the work or its commit raised."""
        if not self._queue:
            try:
                if self._turn.acquire(blocking=False) and self._busy is None:
                    self._busy = work  # nobody waits, and nobody is served
                    return self._serve((work,), self._monotonic() + self._patience)[0]
            finally:
                try:
                    self._leave(work)
                except BaseException:  # a signal handler raised in the middle of it
                    self._leave(work)
                    raise
        return self._run_together(work)

    def _run_together(self, work: W) -> Any:
        job = _Job(work)
        self._queue.append(job)
        deadline = self._monotonic() + self._patience
        try:
            self._enter(job)
            if not job.finished:
                self._serve_all(job, deadline)
        finally:
            job.withdrawn = True
            try:
                self._leave(job)
            except BaseException:
                self._leave(job)
                raise
        if job.error is not None:
            raise job.error
        return job.answer

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody is served meanwhile. Raises `TimeoutError` if it got no turn."""
        me = object()
        try:
            self._enter(me)
            yield
        finally:
            self._leave(me)

    def _enter(self, me: object) -> None:
        if not self._turn.acquire(blocking=False):
            self._waiting += 1
            try:
                if not self._turn.acquire(timeout=self._patience):
                    raise TimeoutError(f"no turn within {self._patience} s")
            finally:
                self._waiting -= 1
        if self._busy is not None:  # a signal handler or a finaliser came in while this thread was serving
            raise TimeoutError("this thread is in the middle of another operation")
        self._busy = me

    def _leave(self, me: object) -> None:
        if self._busy is me:
            self._busy = None
        try:
            self._turn.release()
        except RuntimeError:  # not ours
            return
        if self._waiting:
            # A greenlet that goes on would have the turn again, and again, before others are told that it is free.
            self._clock.sleep(0.0)

    def _serve_all(self, own: _Job[W], deadline: float) -> None:
        jobs, queue = [own], self._queue
        try:
            while queue and len(jobs) < _MOST:
                job = queue.popleft()
                if not (job is own or job.finished or job.withdrawn):
                    jobs.append(job)
            self._together(jobs, deadline)
        finally:
            for job in jobs:
                if not job.finished:
                    job.error = LedgerUnavailable("the thread that wrote for this one was interrupted")
                    job.finished = True

    def _together(self, jobs: list[_Job[W]], deadline: float) -> None:
        try:
            answers = self._serve([job.work for job in jobs], deadline)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
                jobs[0].finished = True
                return
            for job in jobs:  # one of them may be to blame: each by itself
                self._together([job], deadline)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer = answer
            job.finished = True
