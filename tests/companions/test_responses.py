"""Beside responses, which stands in for the wire: the same decisions, and no request that escapes."""

from __future__ import annotations

import pytest
import requests
import responses
from requests.adapters import HTTPAdapter

from retrypolicy import Effect, Stage, operation
from retrypolicy.errors import AlreadyDone, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import Answer, Close, FaultServer
from tests.companions.laws import Opened, check_laws, opened_around, plain, told

URL = "http://api.example.com/"
SHAPES: list[Opened] = [plain, opened_around(HTTPAdapter)]
shapes = pytest.mark.parametrize("opened", SHAPES, ids=["inherited", "around"])


@shapes
def test_refusals_are_retried_and_every_attempt_is_a_call(opened: Opened) -> None:
    with responses.RequestsMock() as mock, opened() as session:
        mock.add("POST", URL, status=503, headers={"Retry-After": "0", "Set-Cookie": "a=1"})
        mock.add("POST", URL, status=429)
        mock.add("POST", URL, json={"id": 1}, headers={"X": "y"})
        response = session.post(URL, data=b"pay")
        assert response.json() == {"id": 1}
        assert [call.response.status_code for call in mock.calls] == [503, 429, 200]  # type: ignore[union-attr]  # responses
        assert session.cookies.get_dict() == {"a": "1"}
        assert "Set-Cookie" not in response.headers
        assert [entry.status for entry in response.raw.retries.history] == [503, 429]
    assert told(response).total_attempts == 3


@shapes
def test_refusals_that_do_not_end_are_not_retried_twice_over(opened: Opened) -> None:
    """responses plays urllib3's retries by `adapter.max_retries`: they must not be stacked on ours."""
    with responses.RequestsMock() as mock, opened() as session:
        refused = mock.add("POST", URL, status=503, headers={"Retry-After": "0"})
        assert session.post(URL).status_code == 503
        assert refused.call_count == 4


@shapes
def test_an_error_of_a_mock_is_unknown(opened: Opened) -> None:
    with responses.RequestsMock() as mock, opened() as session:
        mock.add("POST", URL, body=requests.ConnectionError("lost"))
        with pytest.raises(requests.ConnectionError, match="lost") as caught:
            session.post(URL, data=b"pay")
        assert len(mock.calls) == 1
        mock.add("GET", URL, body=requests.ConnectionError("lost"))
        mock.add("GET", URL, body="here")
        assert session.get(URL).text == "here"
    found = told(caught.value)
    assert (found.stage, found.effect) == (Stage.UNOBSERVED, Effect.UNKNOWN)


@shapes
def test_keys_are_settled_under_a_mock(opened: Opened) -> None:
    ledger = MemoryLedger()
    with responses.RequestsMock() as mock, opened(ledger=ledger) as session:
        mock.add("POST", URL, json={"id": 1})
        with operation(key="done"):
            session.post(URL, data=b"pay")
        with pytest.raises(AlreadyDone), operation(key="done"):
            session.post(URL, data=b"pay")
        mock.replace("POST", URL, body=requests.ConnectionError("lost"))
        with pytest.raises(requests.ConnectionError), operation(key="lost"):
            session.post(URL, data=b"pay")
        with pytest.raises(SendHeld), operation(key="lost"):
            session.post(URL, data=b"pay")
        assert len(mock.calls) == 2
    assert {record.phase for record in ledger.records()} == {Phase.DONE, Phase.HELD}


@shapes
def test_what_passes_through_is_watched(opened: Opened) -> None:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_passthru("http://127.0.0.1")
        mock.add_passthru("https://127.0.0.1")
        check_laws(opened, watched=opened is plain)


@shapes
def test_nothing_stays_behind(opened: Opened) -> None:
    """A session that served under the mock goes to the network afterwards, watched."""
    with opened() as session, FaultServer([Close("head"), Answer(200)]) as server:
        with responses.RequestsMock() as mock:
            mock.add("POST", server.url())
            session.post(server.url())
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(server.url(), data=b"pay")
        assert server.played == 1
    assert told(caught.value).stage is Stage.SENT
