"""Work that nobody can look into: functions, coroutines and blocks of code, run as calls of an engine."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from retrypolicy import plugins
from retrypolicy.call import ATTEMPT, Call, Command, Perform, Replay, Steps
from retrypolicy.errors import CallRefused, ConfigurationError
from retrypolicy.outcome import Answered, Effect, Failed, Outcome, interrupts, unobserved
from retrypolicy.reports import attach

if TYPE_CHECKING:
    from retrypolicy.engine import Engine
    from retrypolicy.providers import Provider

Classify = Callable[[Any], Outcome | Effect | None]
"""Given an error or a result, says what it means; None: as usual."""


class Work:
    """One call of `Engine.run`: a callable that nobody can look into."""

    __slots__ = ("args", "call", "classify", "error", "fn", "kwargs", "on", "result")

    def __init__(
        self,
        engine: Engine,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        on: type[Exception] | tuple[type[Exception], ...],
        idempotent: bool,
        classify: Classify | str | None,
    ) -> None:
        self.fn, self.args, self.kwargs, self.on = fn, args, kwargs, on
        self.classify: Classify | None = None if classify is None else _classifier(classify)
        self.call = engine.begin("PUT" if idempotent else "CALL", "", None, self._content)
        self.result: Any = None
        self.error: BaseException | None = None

    def _content(self, provider: Provider | None) -> bytes:
        fn = self.fn
        name = f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__name__)}"
        return f"{name} {_said(self.args, self.kwargs)}".encode("utf-8", "surrogatepass")

    def attempt(self, call: Call) -> Outcome:
        try:
            self.result = self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            return self.raised(error)
        return self.returned()

    async def attempt_async(self, call: Call) -> Outcome:
        try:
            self.result = await self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            return self.raised(error)
        return self.returned()

    def returned(self) -> Outcome:
        self.error = None
        return DONE if self.classify is None else self._classified(self.result, DONE)

    def raised(self, error: BaseException) -> Outcome:
        self.error = error
        failed = unobserved(error, None if isinstance(error, self.on) else 0)
        return failed if self.classify is None or interrupts(error) else self._classified(error, failed)

    def _classified(self, found: Any, usual: Outcome) -> Outcome:
        """What the classifier says. Where it fails nobody knows: unknown, not repeated, and its error is raised."""
        assert self.classify is not None
        try:
            return _outcome(self.classify(found), usual)
        except Exception as broken:
            self.error = broken
            return unobserved(broken, 0)

    def refused(self, refusal: Replay | CallRefused) -> CallRefused:
        """The error for the caller when the guard lets nothing through."""
        if isinstance(refusal, Replay):
            return self.call.already_done(refusal.record)
        self.call.refused(refusal)
        return refusal

    def finish(self) -> Any:
        if self.error is not None:
            attach(self.error, self.call.report())
            raise self.error
        return self.result


def _said(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Arguments as far as they are plain data, and the same in another process; of others only the type."""
    if not args and not kwargs:
        return ""
    try:
        return json.dumps([args, kwargs], sort_keys=True, default=_plain)
    except (TypeError, ValueError, RecursionError):  # keys that can't be sorted, a list that holds itself
        return json.dumps([_plain(value) for value in (*args, *kwargs.values())])


def _plain(value: object) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value)) if all(isinstance(item, (str, int, bytes)) for item in value) else "set"
    if isinstance(value, enum.Enum) or type(value).__module__ in ("datetime", "decimal", "fractions", "uuid"):
        return repr(value)
    return type(value).__qualname__


DONE = Answered(status=200)


def _outcome(said: Outcome | Effect | None, usual: Outcome) -> Outcome:
    """What `classify` said, as an outcome that the standard table reads the same way."""
    if said is None:
        return usual
    if isinstance(said, (Answered, Failed)):
        return said
    if not isinstance(said, Effect):
        raise ConfigurationError(f"classify: {said!r} is not allowed; must return an Effect, an Outcome, or None")
    status = {Effect.APPLIED: 200, Effect.NOT_APPLIED: 429, Effect.UNKNOWN: 500}[said]
    return Answered(status=status)


def _classifier(given: Classify | str) -> Classify:
    found: Any = plugins.load("classifiers", given) if isinstance(given, str) else given
    if not callable(found):
        raise ConfigurationError(f"classify: {given!r} is not allowed; must be a function, or a classifier's name")
    return found  # type: ignore[no-any-return]  # a plug-in's


def check_on(on: Any) -> None:
    """Raises `ConfigurationError` for what is neither an exception class nor a tuple of them."""
    kinds = on if isinstance(on, tuple) else (on,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise ConfigurationError(f"on: {on!r} is not allowed; must be an exception class, or a tuple of them")


def block_name(frame: FrameType) -> str:
    """The function that this frame runs, as its module names it."""
    return f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}"


class Attempts:
    """What `Engine.attempts` gives: as many blocks as the policy allows, for `for` or `async for`."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        on: type[Exception] | tuple[type[Exception], ...],
        idempotent: bool,
        classify: Classify | str | None,
    ) -> None:
        def block() -> None:
            """Stands for the block, of which nothing but its name is known."""

        block.__module__, _, block.__qualname__ = name.rpartition(".")
        self.engine = engine
        self.work = Work(engine, block, (), {}, on, idempotent, classify)
        self.steps: Steps | None = None
        self.command: Command | None = None  # what the steps asked for last
        self.over = False

    def __iter__(self) -> Attempts:
        return self

    def __next__(self) -> Block:
        if self.over:
            raise StopIteration
        return Block(self)

    def __aiter__(self) -> Attempts:
        return self

    async def __anext__(self) -> Block:
        if self.over:
            raise StopAsyncIteration
        return Block(self)

    def end(self) -> None:
        """No more blocks."""
        self.over = True
        self.engine.leave(self.work.call)


class Block:
    """One attempt of a block of code: a context manager, for `with` or `async with`.

    The key is armed as the block is entered, and what became of it is settled, and the next wait slept, as it is left.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._engine = attempts.engine

    @property
    def number(self) -> int:
        """Which attempt of the call this is, from 1; 0 before it is entered."""
        return self._attempts.work.call.attempts

    def __enter__(self) -> Self:
        attempts, engine = self._attempts, self._engine
        try:
            if self._begun():
                while attempts.command is not ATTEMPT:
                    attempts.command = engine.obey(attempts.steps, attempts.command)
        except StopIteration:
            self._denied()
        except BaseException as error:
            engine.clean_up(attempts.work.call, error)
            self._torn(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        attempts, engine = self._attempts, self._engine
        if attempts.steps is None:
            return False
        try:
            self._send(error)
            while not _arms(attempts.command):
                attempts.command = engine.obey(attempts.steps, attempts.command)
        except StopIteration:
            return self._left(error)
        except BaseException as torn:
            engine.clean_up(attempts.work.call, torn)
            self._torn(torn)
        return True

    async def __aenter__(self) -> Self:
        attempts, engine = self._attempts, self._engine
        try:
            if self._begun():
                while attempts.command is not ATTEMPT:
                    attempts.command = (await engine.obey_async(attempts.steps, attempts.command))()
        except StopIteration:
            self._denied()
        except BaseException as error:
            await engine.clean_up_async(attempts.work.call, error)
            self._torn(error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        attempts, engine = self._attempts, self._engine
        if attempts.steps is None:
            return False
        try:
            self._send(error)
            while not _arms(attempts.command):
                attempts.command = (await engine.obey_async(attempts.steps, attempts.command))()
        except StopIteration:
            return self._left(error)
        except BaseException as torn:
            await engine.clean_up_async(attempts.work.call, torn)
            self._torn(torn)
        return True

    def _begun(self) -> bool:
        """Have the steps of the call begun? Not where the mode is "off": then the block runs once, as it is."""
        attempts = self._attempts
        if attempts.steps is None:
            if self._engine.mode == "off":
                attempts.over = True
                return False
            attempts.steps = attempts.work.call.steps()
            self._engine.enter(attempts.work.call)
            attempts.command = next(attempts.steps)
        return True

    def _send(self, error: BaseException | None) -> None:
        """Tell the steps how the block ended."""
        attempts = self._attempts
        assert attempts.steps is not None
        attempts.command = attempts.steps.send(DONE if error is None else attempts.work.raised(error))

    def _left(self, error: BaseException | None) -> bool:
        """The steps are done; an error goes on its way, with a report on it."""
        self._attempts.end()
        if error is not None:
            last = self._attempts.work.error
            if last is not None and last is not error:  # the classifier's own
                attach(last, self._attempts.work.call.report())
                raise last from error
            attach(error, self._attempts.work.call.report())
        return False

    def _denied(self) -> None:
        """The steps ended before this attempt (the circuit opened, say): the error of the last one is raised."""
        self._attempts.end()
        self._attempts.work.finish()

    def _torn(self, error: BaseException) -> NoReturn:
        self._attempts.end()
        if isinstance(error, (Replay, CallRefused)):
            raise self._attempts.work.refused(error) from None
        raise error


def _arms(command: Command | None) -> bool:
    """Does this begin the next attempt? Whoever leaves the loop between two attempts has armed nothing."""
    return command is ATTEMPT or (isinstance(command, Perform) and command.operation == "arm")
