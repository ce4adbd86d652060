"""What the ledger could not take at once, or was not heard to take, is said again in the background.

What became of an attempt is written again until the ledger has it: good news must not get lost, and without the bad
news a call that was refused is held. And an arm that got no answer, so that nothing was sent, is taken back when it
shows up: its owner is the only one who knows that nothing was sent.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from retrypolicy.errors import LedgerUnavailable, RetryPolicyError
from retrypolicy.guard.ledger import Phase, Take

logger = logging.getLogger("retrypolicy.ledger")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_PATIENCE = 10.0  # seconds: an event loop may end with our coroutine in it
_LOOKS = 6
"""How often a ledger that answers is asked for an arm that may still arrive: for half a minute."""
_MOST_WITHDRAWALS = 1000
"""In a long outage every call leaves one, and hardly any of them was executed. What is not taken back gets held."""


class Recorder:
    """A queue of chores and one daemon thread, started when it is first needed.

    Ledgers may be async ones: their coroutines run in the event loop they were used in, or in one of the thread's own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[_Statement | _Withdrawal] = deque()
        self._filled = threading.Event()
        self._thread: threading.Thread | None = None

    def later(self, ledger: Any, key: bytes, result: Mapping[str, Any], provider: str) -> None:
        """Record `key` as done as soon as the ledger takes it."""
        self._add(_Statement(ledger, "done", (key, result), {"provider": provider}))

    def settle(self, ledger: Any, operation: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Say this (park, reject, unknown) as soon as the ledger takes it. Late is no harm: it has its arm's fence."""
        self._add(_Statement(ledger, operation, arguments, options))

    def withdraw(self, ledger: Any, take: Take) -> None:
        """Nothing was sent on this arm, and nothing will be. If the ledger has it, now or later, take it back."""
        if len(self._queue) < _MOST_WITHDRAWALS:
            self._add(_Withdrawal(ledger, take))

    def flush(self) -> int:
        """Try everything once, now; returns how many chores are left."""
        away: set[int] = set()
        for _ in range(len(self._queue)):
            try:
                chore = self._queue.popleft()
            except IndexError:
                break
            if id(chore.ledger) in away:  # one time-out a round is enough
                self._queue.append(chore)
                continue
            try:
                if not chore.attempt():
                    self._queue.append(chore)
            except LedgerUnavailable:
                away.add(id(chore.ledger))
                self._queue.append(chore)
            except RetryPolicyError:
                continue  # a ledger that can't be used at all, as its first caller was told
            except Exception as error:  # no ledger should; what is not said stays armed, and gets held
                logger.error("%s raised %s in the background", type(chore.ledger).__name__, type(error).__name__)
        return len(self._queue)

    def _add(self, chore: _Statement | _Withdrawal) -> None:
        with self._lock:
            self._queue.append(chore)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="retrypolicy-recorder", daemon=True)
                self._thread.start()
        self._filled.set()

    def _work(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()
            for wait in waits():
                if not self.flush():
                    break
                threading.Event().wait(wait)


def waits() -> Iterator[float]:
    """Seconds between the rounds of one outage."""
    wait = _FIRST_WAIT
    while True:
        yield wait
        wait = min(wait * 2, _LONGEST_WAIT)


class _Chore:
    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def say(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if not inspect.iscoroutinefunction(operation):
            return operation(*arguments, **options)
        try:
            if self._loop is not None and self._loop.is_running():
                future = asyncio.run_coroutine_threadsafe(operation(*arguments, **options), self._loop)
                return future.result(_PATIENCE)
            return asyncio.run(self._alone(operation, *arguments, **options))
        except LedgerUnavailable:
            raise
        except Exception as error:  # of an event loop that just ended, or of a client that is bound to it
            raise LedgerUnavailable(f"ledger: {type(error).__name__} in the background") from error

    async def _alone(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return await operation(*arguments, **options)
        finally:
            await self.ledger.close()  # the connections of this event loop


class _Statement(_Chore):
    def __init__(self, ledger: Any, operation: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        super().__init__(ledger)
        self._what = operation, arguments, options

    def attempt(self) -> bool:
        """Whether it needs no other attempt."""
        operation, arguments, options = self._what
        self.say(getattr(self.ledger, operation), *arguments, **options)
        return True


class _Withdrawal(_Chore):
    def __init__(self, ledger: Any, take: Take) -> None:
        super().__init__(ledger)
        self._take = take
        self._looks = _LOOKS

    def attempt(self) -> bool:
        """Whether it needs no other attempt."""
        take = self._take
        record, _ = self.say(self.ledger.read, take.key)
        if record is not None and (record.phase, record.owner, record.token) == (Phase.ARMED, take.owner, take.token):
            # By the fence of this very arm: whatever happened to the record since, nothing else can be undone.
            self.say(self.ledger.park, take.key, take.owner, record.fence)
            return True
        self._looks -= 1
        return not self._looks or (record is not None and record.phase is Phase.DONE)


recorder = Recorder()


@atexit.register
def _last_chance() -> None:
    recorder.flush()


def _after_fork() -> None:
    # Neither the thread nor the parent's entries belong to the child.
    global recorder
    recorder = Recorder()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
