"""Ledgers over a server: each operation is a generator of requests, and only the driver that answers them does I/O.

The sync and the async ledger of a store share its steps, the ledgers of all such stores share these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import unquote

from retrypolicy.errors import PolicyError
from retrypolicy.guard.ledger import Record, Refused, Take, Taken

T = TypeVar("T")

Steps = Generator[Any, Any, T]
"""Yields requests, is sent the replies, returns the answer. Any request may be made twice."""


def take_options(url: str, known: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """The URL without the options of its query that are known here, and these, read. Raises `PolicyError`."""
    address, _, query = url.partition("?")
    ours, theirs = {}, []
    for pair in query.split("&"):
        name, _, text = pair.partition("=")
        if name not in known:
            theirs.append(pair)
            continue
        try:
            ours[name] = known[name](unquote(text))
        except ValueError:
            raise PolicyError.of(name, unquote(text), "a number, or yes or no, as the option demands") from None
    rest = "&".join(theirs)
    return f"{address}?{rest}" if rest else address, ours


def yes_or_no(text: str) -> bool:
    """An option of a URL that is one or the other. Raises `ValueError`."""
    if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("yes", "true", "1")


class StoreSteps(Protocol):
    """The operations of one kind of store, without I/O."""

    timeout: float

    def arm(self, take: Take) -> Steps[Taken | Refused]: ...
    def claim(self, take: Take) -> Steps[Taken | Refused]: ...
    def read(self, key: bytes) -> Steps[tuple[Record | None, float]]: ...
    def park(self, key: bytes, owner: bytes, fence: int, lease: float, not_before: float) -> Steps[bool]: ...
    def done(self, key: bytes, result: Mapping[str, Any], provider: str) -> Steps[bool]: ...
    def reject(self, key: bytes, owner: bytes, fence: int, sure: bool, not_before: float) -> Steps[bool]: ...
    def unknown(self, key: bytes, owner: bytes, fence: int, not_before: float) -> Steps[bool]: ...
    def expire(self, key: bytes, fence: int) -> Steps[bool]: ...
    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        quiet: float,
        result: Mapping[str, Any] | None,
    ) -> Steps[bool]: ...
    def problems(self) -> Steps[list[str]]: ...


S = TypeVar("S", bound=StoreSteps)


class SteppedLedger(Generic[S]):
    """The part of a sync ledger that is the same for every store with steps."""

    durable = True
    _steps: S

    if TYPE_CHECKING:

        def _run(self, steps: Steps[T], /) -> T:
            """Answers the requests of one operation."""
            ...

    def arm(self, take: Take) -> Taken | Refused:
        return self._run(self._steps.arm(take))

    def claim(self, take: Take) -> Taken | Refused:
        return self._run(self._steps.claim(take))

    def read(self, key: bytes) -> tuple[Record | None, float]:
        return self._run(self._steps.read(key))

    def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        return self._run(self._steps.park(key, owner, fence, lease, not_before))

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        return self._run(self._steps.done(key, result, provider))

    def reject(self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0) -> bool:
        return self._run(self._steps.reject(key, owner, fence, sure, not_before))

    def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        return self._run(self._steps.unknown(key, owner, fence, not_before))

    def expire(self, key: bytes, fence: int) -> bool:
        return self._run(self._steps.expire(key, fence))

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return self._run(self._steps.resolve(key, fence, verdict, quiet, result))

    def problems(self) -> list[str]:
        return self._run(self._steps.problems())


class AsyncSteppedLedger(Generic[S]):
    """The same, for async ledgers."""

    durable = True
    _steps: S

    if TYPE_CHECKING:

        async def _run(self, steps: Steps[T], /) -> T:
            """Answers the requests of one operation."""
            ...

    async def arm(self, take: Take) -> Taken | Refused:
        return await self._run(self._steps.arm(take))

    async def claim(self, take: Take) -> Taken | Refused:
        return await self._run(self._steps.claim(take))

    async def read(self, key: bytes) -> tuple[Record | None, float]:
        return await self._run(self._steps.read(key))

    async def park(self, key: bytes, owner: bytes, fence: int, *, lease: float = 0.0, not_before: float = 0.0) -> bool:
        return await self._run(self._steps.park(key, owner, fence, lease, not_before))

    async def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        return await self._run(self._steps.done(key, result, provider))

    async def reject(
        self, key: bytes, owner: bytes, fence: int, *, sure: bool = False, not_before: float = 0.0
    ) -> bool:
        return await self._run(self._steps.reject(key, owner, fence, sure, not_before))

    async def unknown(self, key: bytes, owner: bytes, fence: int, *, not_before: float = 0.0) -> bool:
        return await self._run(self._steps.unknown(key, owner, fence, not_before))

    async def expire(self, key: bytes, fence: int) -> bool:
        return await self._run(self._steps.expire(key, fence))

    async def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        *,
        quiet: float = 0.0,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return await self._run(self._steps.resolve(key, fence, verdict, quiet, result))

    async def problems(self) -> list[str]:
        return await self._run(self._steps.problems())
