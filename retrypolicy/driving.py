"""Drivers: do what a call's steps ask for (an attempt, a wait, the ledger), with and without an event loop."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve

from retrypolicy._tasks import in_thread, to_the_end
from retrypolicy.call import ATTEMPT, Ask, Call, Command, Perform, Replay, Wait, spending
from retrypolicy.clock import Clock
from retrypolicy.decision import Decision
from retrypolicy.errors import CallRefused, LedgerUnavailable
from retrypolicy.guard.ledger import Ledger, Take
from retrypolicy.guard.reconcile import ask, ask_async
from retrypolicy.outcome import Outcome, Reason
from retrypolicy.reports import attach

if TYPE_CHECKING:
    from retrypolicy.guard.recorder import Recorder

longest_sleep = math.inf
"""Seconds that a wait is slept at most, whatever was decided: set by `retrypolicy.testing.capped`."""

watchers: tuple[Callable[[Call], None], ...] = ()
"""Who hears of every call that is not driven any more: set by `retrypolicy.testing.watched`."""


class Driver:
    """Runs calls against a clock and a ledger. Thread-safe."""

    def __init__(self, clock: Clock, ledger: Ledger | None) -> None:
        self.clock = clock
        self.ledger = ledger
        self._wake = threading.Event()
        self._running: set[Call] = set()
        self._ended = threading.Condition()
        self.stopping = False
        """`stop` was called: nobody waits any more."""

    def stop(self, grace: float = 0.0) -> bool:
        """Wake every sleeper, and let no call wait again; wait up to `grace` seconds for running calls to end.

        The calls end with their last response or error, reason STOPPED. True if none is running any more.
        """
        self.stopping = True
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
        if self.stopping:
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
        spending.not_made(call)
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
        spending.not_made(call)
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


def _tell_of_torn(call: Call, error: BaseException) -> None:
    if not isinstance(error, (CallRefused, Replay)):  # those are told of where they are turned into an answer
        call.over(Reason.INTERRUPTED)
        attach(error, evolve(call.report(), reason=Reason.INTERRUPTED))  # a queue must know that there was a call
