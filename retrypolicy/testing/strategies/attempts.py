"""Strategies for what becomes of attempts: answers, failures, and what is known of a call when one has ended."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.strategies import SearchStrategy

from retrypolicy.decision import History
from retrypolicy.outcome import Answered, Failed, Outcome, Stage
from retrypolicy.testing.strategies.making import check_integer, check_number, check_some, making, pinned, seconds, some
from retrypolicy.testing.strategies.parts import HOUR, final_statuses
from retrypolicy.testing.strategies.policy import METHODS

NOW = 1_000_000.0
"""What a new `VirtualClock` shows."""

_whole = st.integers(0, 7200).map(str)
_HINTS: dict[str, SearchStrategy[str]] = {
    "Retry-After": _whole
    | st.sampled_from(["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "-1", "1.5", ""]),
    "Retry-After-Ms": _whole,
    "RateLimit": _whole.map(lambda reset: f'"default";r=0;t={reset}'),
    "X-Should-Retry": st.sampled_from(["true", "false"]),
}
_plain: dict[str, SearchStrategy[str]] = {
    **_HINTS,
    "Content-Type": st.just("application/json"),
    "Idempotency-Replayed": st.just("true"),
}
_flags = st.booleans()
_bodies = st.sampled_from([b"", b"{}", b'{"name": "rate_limit_exceeded"}', b'{"error": {"code": 1}}', b"not JSON"])
_lost: SearchStrategy[type[Exception]] = st.sampled_from([ConnectionResetError, TimeoutError, EOFError])

_End = tuple[type[Exception], int | None]
# How attempts end at each stage: the error, and how many repeats its kind is worth (None: as many as there are).
_REFUSED: list[_End] = [
    (ConnectionRefusedError, None),
    (TimeoutError, None),
    (socket.gaierror, 1),
    (ssl.SSLCertVerificationError, 0),
]
_BROKEN: list[_End] = [(ConnectionResetError, None), (BrokenPipeError, None), (TimeoutError, None)]
_CUT: list[_End] = [(ConnectionResetError, None), (TimeoutError, None), (EOFError, None)]
_ENDS: dict[Stage, list[_End]] = {
    Stage.NOT_CONNECTED: _REFUSED,
    Stage.NOT_SENT: _BROKEN,
    Stage.HEAD_UNFINISHED: _BROKEN,
    Stage.BODY_UNFINISHED: _BROKEN,
    Stage.SENT: _CUT,
    Stage.ANSWERING: _CUT,
    Stage.UNOBSERVED: [*_CUT, (OSError, None), (ValueError, 0)],
}


def responses(**fields: Any) -> SearchStrategy[Answered]:
    """Answers of every status, with and without hints, JSON bodies and bodies that broke off.

    A field given by name is as the caller says: a strategy to draw it from, or its value.
    """
    usual: dict[str, SearchStrategy[Any]] = {
        "headers": making(dict, {}, some(_plain, most=3)),
        "body": _bodies,
        "body_error": _lost.map(lambda kind: kind()),
        "pushback": seconds(0, 2 * HOUR),
        "reused": _flags,
    }
    fields.setdefault("status", st.just(200) | final_statuses)
    return pinned(Answered, fields, usual)


def failures(*, stages: Collection[Stage] | None = None) -> SearchStrategy[Failed]:
    """Attempts that failed, each with an error as it happens at that stage. `stages`: at these only."""
    return st.sampled_from(check_some("stages", stages, list(Stage))).flatmap(_AT_STAGE.__getitem__)


@st.composite
def _failed(draw: st.DrawFn, ends: SearchStrategy[_End], stage: Stage) -> Failed:
    kind, worth = draw(ends)
    reused = stage is not Stage.NOT_CONNECTED and draw(_flags)
    return Failed(error=kind(), stage=stage, retry_limit=worth, reused=reused)


_AT_STAGE = {stage: _failed(st.sampled_from(ends), stage) for stage, ends in _ENDS.items()}


def outcomes() -> SearchStrategy[Outcome]:
    """What one attempt can produce: `responses()` and `failures()`."""
    return responses() | failures()


def histories(
    *, method: str | SearchStrategy[str] | None = None, max_attempts: int = 20, now: float = NOW
) -> SearchStrategy[History]:
    """What `decide()` is told of a call whose attempt has just ended at `now` (seconds since the epoch).

    They are consistent: what an earlier attempt left behind (a wait, a taint, a streak, spent retries) is only there if
    there was one, and nothing was first seen after its run began. `method`: one, or a strategy for it; None: any.
    """
    check_integer("max_attempts", max_attempts, 1)
    check_number("now", now, 0)
    if not (method is None or isinstance(method, (str, SearchStrategy))):
        raise InvalidArgument(f"method: {method!r} is not allowed; must be the name of a method, or a strategy for it")
    methods = st.sampled_from(METHODS) if method is None else st.just(method) if isinstance(method, str) else method
    ago = seconds(0, min(HOUR, now))
    around = seconds(-HOUR, 24 * HOUR).map(now.__add__)
    always = {"method": methods, "elapsed": ago}
    sometimes: dict[str, SearchStrategy[Any]] = {
        "first_seen": seconds(0, 24 * HOUR),
        "key_until": around,
        "not_after": around,
        "replayable": _flags,
        "accepts_duplicates": _flags,
    }
    later = {
        "attempts": st.integers(2, max(2, max_attempts)),
        "tainted": _flags,
        "previous": seconds(0, HOUR),
        "streak": st.integers(0, max_attempts),
        "spent": _spent,
    }

    def make(**given: Any) -> History:
        made = given.get("attempts", 1) - 1
        if "first_seen" in given:  # drawn as how long before the run
            given["first_seen"] = now - given["elapsed"] - given["first_seen"]
        if "streak" in given:
            given["streak"] = min(made, given["streak"])
        if "spent" in given:
            given["spent"] = dict(Counter(given["spent"][:made]))
        return History(**given)

    first = making(make, always, some(sometimes))
    if max_attempts == 1:
        return first
    attempts = {"attempts": later.pop("attempts")}
    return first | making(make, {**always, **attempts}, some({**sometimes, **later}))


_spent = st.lists(st.sampled_from(["connect", "read", "status", "other"]), max_size=8)
