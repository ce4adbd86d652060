"""Strategies for sending: requests and their keys, what a server does to them, and the order of concurrent callers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from retrypolicy.guard.key import MAX_KEY_LENGTH
from retrypolicy.testing.faults.catalogue import FAULTS, TLS_FAULTS, TUNNEL_FAULTS
from retrypolicy.testing.faults.steps import Answer, Close, Handshake, Raw, Refuse, Reset, Stall, Step, Tunnel
from retrypolicy.testing.strategies.making import (
    check_flag,
    check_integer,
    check_number,
    check_some,
    check_url,
    making,
    seconds,
    some,
)
from retrypolicy.testing.strategies.parts import final_statuses
from retrypolicy.testing.strategies.policy import METHODS
from retrypolicy.testing.turns import Turn

_letters = st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp"))
_any = st.characters(exclude_categories=("Cc", "Cs"))


def keys(*, max_size: int = 40) -> SearchStrategy[str]:
    """Idempotency keys: any text that can be one, of at most `max_size` characters."""
    check_integer("max_size", max_size, 1, MAX_KEY_LENGTH)
    return st.tuples(_letters, st.text(_any, max_size=max_size - 1)).map("".join)


_SIMPLE_HEADERS: dict[str, SearchStrategy[str]] = {
    "Content-Type": st.sampled_from(["application/json", "text/plain"]),
    "Authorization": st.just("Bearer secret"),
    "X-Request-Id": st.uuids().map(str),
}


def requests(
    *, url: str = "https://api.example.com", methods: Collection[str] | None = None, max_body: int = 64
) -> SearchStrategy[dict[str, Any]]:
    """Requests as keyword arguments: `session.request(**request)` sends one with requests.

    `url`: what their addresses begin with. `methods`: of these only (of GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS,
    QUERY). `max_body`: the most bytes that a body has.
    """
    check_integer("max_body", max_body, 0)
    check_url("url", url)
    path = st.sampled_from(["/", "/emails", "/orders/42", "/search?q=a%20b"])
    return making(
        dict,
        {"method": st.sampled_from(check_some("methods", methods, METHODS)), "url": path.map(url.rstrip("/").__add__)},
        some({"headers": making(dict, {}, some(_SIMPLE_HEADERS)), "data": st.binary(max_size=max_body)}),
    )


_points = st.sampled_from(["request", "accept", "arrival", "head"])
_parts = st.sampled_from(["head", "body"])
_few = st.integers(0, 40)
_answers = st.builds(Answer, st.just(503) | final_statuses)
_hinted = st.builds(
    lambda status, after: Answer(status, headers={"Retry-After": str(after)}),
    st.sampled_from([503, 429]),
    st.integers(0, 2),
)
_ends = st.builds(Close, _points) | st.builds(Reset, _points)
_cuts = st.builds(Close, _parts, _few) | st.builds(Reset, _parts, _few)


def faults(
    *,
    min_size: int = 1,
    max_size: int = 4,
    slow: bool = False,
    tls: bool = False,
    tunnels: bool = False,
    recovers: bool = True,
) -> SearchStrategy[list[Step]]:
    """Scripts for the `FaultServer`: so many faults, from its catalogue and beyond, then a 200.

    Without those whose code fills pages (a header of 70,000 bytes).

    `slow`: also such as make a client wait (stalls, drips, late answers, a port that refuses for a while).
    `tls`: also of the TLS handshake. `tunnels`: also of a proxy. `recovers=False`: the last fault stays for good.
    """
    check_integer("min_size", min_size, 0 if recovers else 1)
    check_integer("max_size", max_size, min_size)
    for name, value in (("slow", slow), ("tls", tls), ("tunnels", tunnels), ("recovers", recovers)):
        check_flag(name, value)
    known = [*FAULTS.values(), *(TLS_FAULTS.values() if tls else ()), *(TUNNEL_FAULTS.values() if tunnels else ())]
    known = [step for step in known if (slow or not _is_slow(step)) and len(repr(step)) <= _LONGEST]
    known.sort(key=lambda step: len(repr(step)))  # the simplest first
    kinds: list[SearchStrategy[Step]] = [_answers, _hinted, _ends, _cuts, st.sampled_from(known)]
    if slow:
        kinds.append(st.builds(Refuse, st.floats(0.01, 0.2)))
    scripts = st.lists(st.one_of(kinds), min_size=min_size, max_size=max_size)
    return scripts.map(lambda steps: [*steps, Answer(200)]) if recovers else scripts


_LONGEST = 1000  # characters of a step that can still be read in an example


def _is_slow(step: Step) -> bool:
    if isinstance(step, Tunnel):
        return _is_slow(step.act)
    if isinstance(step, (Handshake, Refuse)):
        return False
    if isinstance(step, Answer) and (step.delay or step.drip or any(each.every for each in step.interim)):
        return True
    return isinstance(step, Stall) or (isinstance(step, (Answer, Raw)) and step.then == "stall")


def schedules(
    *, callers: int = 2, max_size: int = 20, max_wait: float = 3600.0, crashes: bool = True, jumps: bool = True
) -> SearchStrategy[tuple[Turn, ...]]:
    """The order in which concurrent callers take their steps, and what happens to their clocks and processes.

    `max_size`: the most turns. `max_wait`: the most seconds that pass before one. `crashes`, `jumps`: a caller's
    process may die; the wall clock may be set.
    """
    check_integer("callers", callers, 1)
    check_integer("max_size", max_size, 1)
    check_number("max_wait", max_wait, 0)
    check_flag("crashes", crashes)
    check_flag("jumps", jumps)
    sometimes: dict[str, SearchStrategy[Any]] = {"wait": seconds(0, max_wait)}
    if jumps:
        sometimes["jump"] = st.sampled_from([60.0, -60.0, 3600.0, -3600.0, 86400.0, -86400.0])
    if crashes:
        sometimes["crash"] = st.just(True)
    turn = making(Turn, {"caller": st.integers(0, callers - 1)}, some(sometimes, most=2))
    return st.lists(turn, min_size=1, max_size=max_size).map(tuple)
