"""Strategies for what becomes of attempts: answers, failures, and what is known of a call when one has ended."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from retrypolicy.decision import History
from retrypolicy.outcome import Answered, Failed, Outcome, Stage
from retrypolicy.testing.strategies.making import check_integer, check_number, check_some, making, pinned, seconds
from retrypolicy.testing.strategies.parts import HOUR, statuses
from retrypolicy.testing.strategies.policies import METHODS

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
_bodies = st.sampled_from([b"", b"{}", b'{"name": "rate_limit_exceeded"}', b'{"error": {"code": 1}}', b"not JSON"])
_lost: SearchStrategy[type[Exception]] = st.sampled_from([ConnectionResetError, TimeoutError, EOFError])

# How attempts end at each stage: the error, and how many repeats its kind is worth (None: as many as there are).
_REFUSED = [
    (ConnectionRefusedError, None),
    (TimeoutError, None),
    (socket.gaierror, 1),
    (ssl.SSLCertVerificationError, 0),
]
_BROKEN = [(ConnectionResetError, None), (BrokenPipeError, None), (TimeoutError, None)]
_CUT = [(ConnectionResetError, None), (TimeoutError, None), (EOFError, None)]
_ENDS: dict[Stage, list[tuple[type[Exception], int | None]]] = {
    Stage.NOT_CONNECTED: list(_REFUSED),
    Stage.NOT_SENT: list(_BROKEN),
    Stage.HEAD_UNFINISHED: list(_BROKEN),
    Stage.BODY_UNFINISHED: list(_BROKEN),
    Stage.SENT: list(_CUT),
    Stage.ANSWERING: list(_CUT),
    Stage.UNOBSERVED: [*_CUT, (OSError, None), (ValueError, 0)],
}


def responses(**fields: Any) -> SearchStrategy[Answered]:
    """Answers of every status, with and without hints, JSON bodies and bodies that broke off.

    A field given by name is as the caller says: a strategy to draw it from, or its value.
    """
    usual: dict[str, SearchStrategy[Any]] = {
        "headers": making(dict, {}, _plain),
        "body": _bodies,
        "body_error": _lost.map(lambda kind: kind()),
        "pushback": seconds(0, 2 * HOUR),
        "reused": st.booleans(),
    }
    fields.setdefault("status", st.just(200) | statuses)
    return making(Answered, *pinned(Answered, fields, usual))


def failures(*, stages: Collection[Stage] | None = None) -> SearchStrategy[Failed]:
    """Attempts that failed, each with an error as it happens at that stage. `stages`: at these only."""
    return st.sampled_from(check_some("stages", stages, list(Stage))).flatmap(_AT_STAGE.__getitem__)


@st.composite
def _failed(draw: st.DrawFn, stage: Stage) -> Failed:
    kind, worth = draw(st.sampled_from(_ENDS[stage]))
    reused = stage is not Stage.NOT_CONNECTED and draw(st.booleans())
    return Failed(error=kind(), stage=stage, retry_limit=worth, reused=reused)


_AT_STAGE = {stage: _failed(stage) for stage in Stage}


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
    methods = st.sampled_from(METHODS) if method is None else method
    return _history(st.just(methods) if isinstance(methods, str) else methods, max_attempts, now)


@st.composite
def _history(draw: st.DrawFn, methods: SearchStrategy[str], most: int, now: float) -> History:
    given: dict[str, Any] = {"method": draw(methods), "attempts": draw(st.integers(1, most))}
    elapsed = given["elapsed"] = draw(seconds(0, min(HOUR, now)))
    before = given["attempts"] - 1
    if before:
        given["tainted"] = draw(st.booleans())
        given["previous"] = draw(seconds(0, HOUR))
        given["streak"] = draw(st.integers(0, before))
        given["spent"] = draw(
            st.dictionaries(st.sampled_from(["connect", "read", "status", "other"]), st.integers(1, before))
        )
    if draw(st.booleans()):
        given["first_seen"] = now - elapsed - draw(seconds(0, 24 * HOUR))
    if draw(st.booleans()):
        given["key_until"] = now + draw(seconds(-HOUR, 24 * HOUR))
    if draw(st.booleans()):
        given["not_after"] = now + draw(seconds(-HOUR, 24 * HOUR))
    given["replayable"] = not draw(st.booleans())
    given["accepts_duplicates"] = draw(st.booleans())
    return History(**given)
