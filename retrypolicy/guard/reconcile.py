"""Reconcilers: ask a provider what became of a held send, before anybody has to look into it by hand."""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

from attrs import field, frozen

from retrypolicy import plugins
from retrypolicy.errors import ConfigurationError

logger = logging.getLogger("retrypolicy.ledger")

Verdict = Literal["applied", "not_applied", "unknown"]
VERDICTS = ("applied", "not_applied", "unknown")
ANY = "*"
"""The name of a reconciler for every provider that has none of its own, and for calls without a provider."""


@frozen(kw_only=True)
class HeldSend:
    """A send whose outcome is unknown, as a reconciler is asked about it. Times are seconds since the epoch."""

    key: str = field(repr=False)  # as the caller gave it
    outgoing: str | None = field(repr=False)  # as the provider got it; None: none went out
    label: str
    provider: str
    attempts: int
    first_armed: float | None  # between these two something may have reached the provider
    last_armed: float | None


class Reconciler(Protocol):
    """Asks a provider, by its own means (a search in its log, its events): any callable, sync or async.

    "applied" is believed at once. "not_applied" (the provider knows nothing of it) counts only after a quiet time: the
    `quiet` of the provider's profile, or of an attribute `quiet` here (seconds; the longer one), on top of the time
    that the attempt itself may have taken. Without either it never counts. What it raises counts as "unknown".
    """

    def __call__(self, held: HeldSend, /) -> Verdict | Awaitable[Verdict]: ...


_registered: dict[str, Reconciler] = {}


def register(provider: str, reconciler: Reconciler) -> None:
    """Name the reconciler for a provider's held sends (`"*"`: for all that have none of their own).

    An installed package does the same with an entry point in the group `retrypolicy.reconcilers`.
    Raises `ConfigurationError` for what can't be called.
    """
    _registered[provider] = checked(provider, reconciler)


def checked(provider: str, reconciler: Any) -> Reconciler:
    """The reconciler, if it can be one."""
    if not callable(reconciler):
        raise ConfigurationError(f"reconcilers: {reconciler!r} for {provider!r} is not allowed; must be callable")
    found: Reconciler = reconciler  # pyright: ignore[reportAssignmentType]
    return found


def reconciler_for(provider: str, own: Mapping[str, Reconciler]) -> Reconciler | None:
    """The one for this provider (empty: none): an engine's own, a registered one, or an installed one."""
    for name in (provider, ANY):
        for known in (own, _registered):
            if name in known:
                return known[name]
        if name and name in plugins.names("reconcilers"):
            return checked(name, plugins.load("reconcilers", name))
    return None


def quiet_time(reconciler: Reconciler, profile: float | None) -> float | None:
    """Seconds after which "the provider knows nothing of it" counts; None: never."""
    known = [seconds for seconds in (profile, getattr(reconciler, "quiet", None)) if seconds is not None]
    return max(known) if known else None


def ask(reconciler: Reconciler, held: HeldSend) -> Verdict:
    """What the reconciler says. It runs outside of the call's `operation`, so that its own requests have no key."""
    try:
        said = contextvars.Context().run(reconciler, held)
        if inspect.isawaitable(said):
            getattr(said, "close", lambda: None)()
            raise TypeError("an async reconciler needs an async call")
    except Exception as error:
        return _failed(held, error)
    return _verdict(held, said)


async def ask_async(
    reconciler: Reconciler, held: HeldSend, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> Verdict:
    """`ask` for an event loop: a plain function runs in a thread."""
    if not inspect.iscoroutinefunction(reconciler):
        answer: Verdict = await in_thread(lambda: ask(reconciler, held))
        return answer
    try:
        said = await reconciler(held)
    except Exception as error:
        return _failed(held, error)
    return _verdict(held, said)


def _verdict(held: HeldSend, said: Any) -> Verdict:
    if said not in VERDICTS:
        logger.error("the reconciler for %s said %s; must be one of %s", _name(held), type(said), ", ".join(VERDICTS))
        return "unknown"
    verdict: Verdict = said
    return verdict


def _failed(held: HeldSend, error: Exception) -> Verdict:
    # The type only: its words may quote what it asked for.
    logger.warning("the reconciler for %s failed: %s", _name(held), type(error).__name__)
    return "unknown"


def _name(held: HeldSend) -> str:
    return held.provider or "calls without a provider"
