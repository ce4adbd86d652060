"""Response heads: cut off, and preceded by informational ones."""

from __future__ import annotations

import http.client

import pytest
import requests
import urllib3

from retrypolicy.outcome import Stage
from retrypolicy.testing import Answer, FaultServer, Raw
from retrypolicy.testing.faults.steps import Interim
from retrypolicy.urllib3.reading import MAX_INFORMATIONAL, HeadTruncated, TooManyInformational
from retrypolicy.urllib3.wire import Watch, track, watching
from tests.urllib3.wireclient import attempt, pool

WHOLE = b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: 2\r\n\r\nok"
HEAD_SIZE = WHOLE.index(b"\r\n\r\n") + 4


@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("size", range(1, HEAD_SIZE))
def test_a_head_cut_at_any_byte_is_an_error(size, kind):
    with FaultServer([Raw(WHOLE[:size])], tls=kind == "tls") as server, pool(server, kind) as target:
        result = attempt(target)
    assert isinstance(result.error, urllib3.exceptions.ProtocolError)
    assert isinstance(result.error.args[1], http.client.HTTPException)
    if size >= len(b"HTTP/1.1 200"):
        assert isinstance(result.error.args[1], HeadTruncated)
    assert result.watch.stage is Stage.ANSWERING
    assert not result.watch.head_complete


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"HTTP/1.0 200 OK\r\n\r\nok", WHOLE])
def test_a_whole_head_is_none(head):
    with FaultServer([Raw(head)]) as server, pool(server, "plain") as target:
        result = attempt(target)
    assert result.error is None
    assert result.content == b"ok"
    assert result.watch.head_complete


def test_a_head_in_many_pieces_is_whole():
    with FaultServer([Answer(200, b"ok", drip=("head", 0.002))]) as server, pool(server, "plain") as target:
        result = attempt(target)
    assert result.content == b"ok"
    assert result.watch.head_complete


def test_requests_calls_a_cut_head_a_connection_error():
    with FaultServer([Raw(b"HTTP/1.1 200 OK\r\n")]) as server, requests.Session() as session:
        adapter = session.get_adapter(server.url())
        request = session.prepare_request(requests.Request("POST", server.url(), data=b"x"))
        assert track(adapter.get_connection_with_tls_context(request, True))
        watch = Watch()
        with pytest.raises(requests.ConnectionError) as caught, watching(watch):
            adapter.send(request)
    assert isinstance(caught.value.args[0].args[1], HeadTruncated)


@pytest.mark.parametrize("interim", [100, 102, 103, 199])
@pytest.mark.parametrize("every", [0.0, 0.02])
def test_informational_answers_are_skipped(interim, every):
    steps = [
        Answer(200, b"FIRST", interim=[Interim(interim, headers={"Link": "</a>"}, times=2, every=every)]),
        Answer(200, b"SECOND"),
    ]
    with FaultServer(steps) as server, pool(server, "plain") as target:
        assert attempt(target).content == b"FIRST"
        second = attempt(target)
        assert second.content == b"SECOND"
        assert second.watch.reused


def test_switching_protocols_is_final():
    with FaultServer([Answer(101, headers={"Upgrade": "other"})]) as server, pool(server, "plain") as target:
        assert attempt(target).response.status == 101


@pytest.mark.parametrize("status", [100, 103])
def test_up_to_ten_informational_answers(status):
    script = [Answer(200, b"ok", interim=[Interim(status, times=MAX_INFORMATIONAL)])]
    with FaultServer(script) as server, pool(server, "plain") as target:
        assert attempt(target).content == b"ok"


@pytest.mark.parametrize("status", [100, 103])
@pytest.mark.parametrize("times", [MAX_INFORMATIONAL + 1, None])
def test_more_than_ten_are_too_many(status, times):
    script = [Answer(200, b"ok", interim=[Interim(status, times=times)])]
    with FaultServer(script) as server, pool(server, "plain") as target:
        result = attempt(target)
    assert isinstance(result.error.args[1], TooManyInformational)
    assert result.watch.stage is Stage.ANSWERING


def test_the_end_after_an_informational_answer_is_not_an_answer():
    with FaultServer([Answer(103, then="fin")]) as server, pool(server, "plain") as target:
        result = attempt(target)
    assert isinstance(result.error, urllib3.exceptions.ProtocolError)
    assert result.watch.stage is Stage.ANSWERING


def test_without_a_watch_nothing_changes():
    with FaultServer([Answer(103, then="fin")]) as server, pool(server, "plain") as target:
        assert track(target)
        assert target.urlopen("GET", "/", retries=False).status == 103
