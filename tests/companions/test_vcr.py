"""Beside VCR.py: a cassette holds every attempt, and playing it back takes the same decisions without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
import vcr
from requests.adapters import HTTPAdapter
from vcr.errors import CannotOverwriteExistingCassetteException

from retrypolicy import Effect, Stage, operation
from retrypolicy.errors import AlreadyDone, SendHeld
from retrypolicy.guard import MemoryLedger
from retrypolicy.testing import Answer, Close, FaultServer
from tests.companions.laws import BUSY, Opened, check_laws, opened_around, plain, told

SHAPES: list[Opened] = [plain, opened_around(HTTPAdapter)]
shapes = pytest.mark.parametrize("opened", SHAPES, ids=["inherited", "around"])


@shapes
def test_a_recorded_call_is_played_back_attempt_by_attempt(opened: Opened, tmp_path: Path) -> None:
    cassette = str(tmp_path / "cassette.yaml")
    refused = Answer(503, b"busy", headers=[("Retry-After", "0"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=1")])
    with FaultServer([refused, Answer(429), Answer(200, b"thanks")]) as server:
        for mode in (vcr.mode.ONCE, vcr.mode.NONE):  # record, then play back
            with vcr.use_cassette(cassette, record_mode=mode) as tape, opened() as session:
                response = session.post(server.url(), data=b"pay")
                assert response.content == b"thanks"
                assert session.cookies.get_dict() == {"a": "1", "b": "1"}
                assert told(response).total_attempts == 3
                assert len(tape) == 3
            assert server.complete == 3


@shapes
def test_while_recording_the_wire_is_not_seen_and_what_is_lost_is_unknown(opened: Opened, tmp_path: Path) -> None:
    cassette, ledger = str(tmp_path / "cassette.yaml"), MemoryLedger()
    with FaultServer([Close("request"), Answer(200)]) as server, opened(ledger=ledger) as session:
        with vcr.use_cassette(cassette):
            with pytest.raises(requests.ConnectionError) as caught, operation(key="k"):
                session.post(server.url(), data=b"pay")
            with pytest.raises(SendHeld), operation(key="k"):
                session.post(server.url(), data=b"pay")
            assert server.complete == 1
            with operation(key="another"):
                assert session.post(server.url(), data=b"pay").status_code == 200
            with pytest.raises(AlreadyDone), operation(key="another"):
                session.post(server.url(), data=b"pay")
        assert server.complete == 2
    found = told(caught.value)
    assert (found.stage, found.effect) == (Stage.UNOBSERVED, Effect.UNKNOWN)


@shapes
def test_laws_while_recording(opened: Opened, tmp_path: Path) -> None:
    with vcr.use_cassette(str(tmp_path / "cassette.yaml"), record_mode=vcr.mode.ALL):
        check_laws(opened, watched=False)


@shapes
def test_a_request_that_is_not_on_the_cassette(opened: Opened, tmp_path: Path) -> None:
    cassette = str(tmp_path / "cassette.yaml")
    with FaultServer([Answer(200)]) as server:
        with vcr.use_cassette(cassette), opened() as session:
            session.get(server.url())
        played_back = vcr.use_cassette(cassette, record_mode=vcr.mode.NONE)
        with played_back, opened() as session, pytest.raises(CannotOverwriteExistingCassetteException):
            session.post(server.url("/other"), data=b"pay")
        assert server.complete == 1


@shapes
def test_before_and_behind_a_cassette_the_wire_is_watched(opened: Opened, tmp_path: Path) -> None:
    """vcrpy swaps the connection classes of pools that our session goes on using."""
    script = [Answer(200), BUSY, Answer(200), Close("request")]
    with FaultServer(script) as server, opened() as session:
        session.post(server.url(), data=b"live")
        with vcr.use_cassette(str(tmp_path / "cassette.yaml")):
            assert session.post(server.url(), data=b"taped").status_code == 200
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(server.url(), data=b"live")
        assert server.complete == 4
    assert told(caught.value).stage is Stage.SENT
    check_laws(opened, watched=True)
