"""What happened, for listeners and the log: one frozen event per thing. No header, no body, no address."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from attrs import frozen

from retrypolicy.outcome import Effect, Reason, Stage

logger = logging.getLogger("retrypolicy")


@frozen(kw_only=True)
class CallEvent:
    """What every event tells: which call (an id of this process), by which policy and provider, to which host."""

    call: str
    policy: str | None = None
    provider: str | None = None
    host: str | None = None
    method: str | None = None
    label: str = ""


@frozen(kw_only=True)
class CallStarted(CallEvent):
    """A run of a call begins."""


@frozen(kw_only=True)
class AttemptStarted(CallEvent):
    """An attempt is about to connect."""

    number: int


@frozen(kw_only=True)
class AttemptEnded(CallEvent):
    """An attempt has ended."""

    number: int
    elapsed: float
    effect: Effect
    status: int | None = None
    error: str | None = None
    stage: Stage | None = None


@frozen(kw_only=True)
class Decided(CallEvent):
    """What follows an attempt, and why. `action` is retry, defer or stop."""

    number: int
    action: str
    reason: Reason


@frozen(kw_only=True)
class Waiting(CallEvent):
    """The call sleeps before its next attempt."""

    seconds: float
    reason: Reason


@frozen(kw_only=True)
class Deferred(CallEvent):
    """The call is over for this run; it makes sense to run it again at `until`."""

    until: float
    reason: Reason


@frozen(kw_only=True)
class Held(CallEvent):
    """The key's outcome is unknown: it waits in the ledger for evidence."""

    key_digest: str


@frozen(kw_only=True)
class Reconciled(CallEvent):
    """A reconciler was asked about a held key. `counts`: its verdict settled the key."""

    key_digest: str
    verdict: str
    counts: bool


@frozen(kw_only=True)
class Replayed(CallEvent):
    """The call was done earlier; nothing was sent."""

    key_digest: str


@frozen(kw_only=True)
class LedgerDown(CallEvent):
    """The ledger could not be reached for this operation."""

    operation: str


@frozen(kw_only=True)
class BudgetAlone(CallEvent):
    """The shared retry budgets can't be reached: this process goes on with its own, and soon tries again."""


@frozen(kw_only=True)
class Observed(CallEvent):
    """`RETRYPOLICY_MODE=observe`: this would have been done, and was not."""

    action: str
    reason: Reason


@frozen(kw_only=True)
class Done(CallEvent):
    """A run of a call has ended, well or badly."""

    attempts: int
    effect: Effect
    reason: Reason


Event = (
    CallStarted
    | AttemptStarted
    | AttemptEnded
    | Decided
    | Waiting
    | Deferred
    | Held
    | Reconciled
    | Replayed
    | LedgerDown
    | BudgetAlone
    | Observed
    | Done
)


class Listener(Protocol):
    """Told of everything that happens. What it raises is logged, and never changes the outcome of a call."""

    def on_event(self, event: Event) -> None: ...


def heard(kind: type[Waiting]) -> bool:
    """Does the log want to hear of events of this kind? An event that nobody hears is not made."""
    return logger.isEnabledFor(logging.INFO)


def clean(text: str) -> str:
    """Without what would begin a line of its own, or what a terminal would obey: a label may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def publish(event: Event, listeners: Iterable[Listener]) -> None:
    """Tell the log, then every listener."""
    _log(event)
    for listener in listeners:
        try:
            listener.on_event(event)
        except Exception:
            logger.exception("a listener failed on %s", type(event).__name__)


def _log(event: Event) -> None:
    where = f"{event.method or 'call'} to {event.host or 'unknown host'}"
    if event.label:
        where += f" [{clean(event.label)}]"
    match event:
        case Waiting():
            logger.info("%s: waiting %.3f s (%s)", where, event.seconds, event.reason.value)
        case Deferred():
            logger.warning("%s: deferred until %.0f (%s)", where, event.until, event.reason.value)
        case Held():
            logger.warning("%s: outcome unknown, key %s is held", where, event.key_digest[:12])
        case Reconciled():
            counts = "settled" if event.counts else "still held"
            logger.warning("%s: reconciler says %s, key %s is %s", where, event.verdict, event.key_digest[:12], counts)
        case Replayed():
            logger.info("%s: done earlier, key %s replayed, nothing sent", where, event.key_digest[:12])
        case Observed():
            logger.info("%s: observed only, would have done: %s (%s)", where, event.action, event.reason.value)
        case LedgerDown():
            logger.error("%s: ledger unavailable (%s)", where, event.operation)
        case _:
            pass
