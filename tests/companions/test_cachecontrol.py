"""Beside CacheControl, in both shapes: what is fresh costs no request, and only what arrived whole is kept."""

from __future__ import annotations

import gc
from email.utils import formatdate

import pytest
import requests
from cachecontrol import CacheControl, CacheControlAdapter

from retrypolicy.requests import RetryAdapter
from retrypolicy.testing import Answer, Close, FaultServer
from tests.companions.laws import AT_ONCE, BUSY, Opened, check_laws, opened_around, opened_with, told

DAY = 86_400  # the tests may start long after this module was read


def keep(seconds: int, **more: str) -> dict[str, str]:
    return {"Date": formatdate(usegmt=True), "Cache-Control": f"max-age={seconds}", **more}


FRESH = Answer(200, b"fresh", headers=keep(DAY))
BUSY_AND_FRESH = Answer(503, b"busy", headers=keep(DAY, **{"Retry-After": "0"}))


class Retrying(RetryAdapter, CacheControlAdapter):
    """As its users write it."""


SHAPES: list[Opened] = [opened_with(Retrying), opened_around(CacheControlAdapter)]
shapes = pytest.mark.parametrize("opened", SHAPES, ids=["inherited", "around"])


@shapes
def test_laws(opened: Opened) -> None:
    check_laws(opened, watched=opened is SHAPES[0])


@shapes
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_fresh_answer_costs_no_request(opened: Opened, framing: str) -> None:
    fresh = Answer(200, b"fresh", headers=keep(DAY), framing=framing)  # type: ignore[arg-type]  # a word
    with FaultServer([BUSY_AND_FRESH, Close("request"), fresh, Answer(500)]) as server, opened() as session:
        first, second = session.get(server.url()), session.get(server.url())
        assert (first.content, second.content) == (b"fresh", b"fresh")
        assert (first.from_cache, second.from_cache) == (False, True)  # type: ignore[attr-defined]  # CacheControl's
        assert server.complete == 3
    assert told(first).total_attempts == 3


@shapes
@pytest.mark.filterwarnings("ignore:unclosed file")  # CacheControl forgets its buffer where a body breaks
def test_a_body_that_broke_is_not_kept(opened: Opened) -> None:
    broken = Answer(200, b"0123456789", headers=keep(DAY), cut=("body", 5))
    with FaultServer([broken, FRESH]) as server, opened() as session:
        assert [session.get(server.url()).content for _ in range(2)] == [b"fresh", b"fresh"]
        assert server.complete == 2
    gc.collect()


@shapes
def test_a_stale_answer_is_asked_for_again_by_its_tag(opened: Opened) -> None:
    tagged = Answer(200, b"tagged", headers=keep(0, ETag='"1"'))
    script = [tagged, BUSY, Answer(304, headers=keep(DAY, ETag='"1"')), Answer(500)]
    with FaultServer(script) as server, opened() as session:
        contents = [session.get(server.url()).content for _ in range(3)]
        assert contents == [b"tagged"] * 3
        assert [request.header("If-None-Match") for request in server.requests] == [None, '"1"', '"1"']


@shapes
def test_a_refused_put_that_came_through_makes_the_cache_forget(opened: Opened) -> None:
    with FaultServer([FRESH, BUSY, Answer(200), FRESH]) as server, opened() as session:
        session.get(server.url())
        assert session.put(server.url(), data=b"new").status_code == 200
        assert session.get(server.url()).content == b"fresh"
        assert server.complete == 4


def test_a_session_that_has_its_cache_already() -> None:
    """`CacheControl(session)` mounts an adapter of its own: what was mounted there goes around it."""
    with FaultServer([BUSY, FRESH]) as server, CacheControl(requests.Session()) as session:
        session.mount("http://", RetryAdapter(AT_ONCE, transport=session.get_adapter("http://")))
        assert [session.get(server.url()).content for _ in range(2)] == [b"fresh"] * 2
        assert server.complete == 2
