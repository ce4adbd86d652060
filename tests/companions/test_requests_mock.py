"""Beside requests-mock: its adapter inside ours retries; its mocker takes our place."""

from __future__ import annotations

import pytest
import requests
import requests_mock

from retrypolicy import Effect, Stage, operation, report
from retrypolicy.errors import SendHeld
from retrypolicy.guard import MemoryLedger
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import Answer, FaultServer
from tests.companions.laws import AT_ONCE, check_laws, plain, told

URL = "http://api.example.com/"
REFUSED = {"status_code": 503, "headers": {"Retry-After": "0"}, "text": "busy"}


def test_around_its_adapter() -> None:
    fake = requests_mock.Adapter()
    fake.register_uri("POST", URL, [REFUSED, {"status_code": 429}, {"json": {"id": 1}, "cookies": {"a": "1"}}])
    with requests.Session() as session:
        adapter = mount(session, AT_ONCE, transport=fake)
        response = session.post(URL, data=b"pay")
        assert response.json() == {"id": 1}
        assert response.cookies.get_dict() == {"a": "1"}
        assert response.connection is adapter
        assert [entry.status for entry in response.raw.retries.history] == [503, 429]
        assert [sent.text for sent in fake.request_history] == ["pay"] * 3
    assert told(response).total_attempts == 3


def test_an_error_of_its_adapter_is_unknown() -> None:
    fake = requests_mock.Adapter()
    fake.register_uri("POST", URL, exc=requests.ReadTimeout)
    fake.register_uri("GET", URL, [{"exc": requests.ReadTimeout}, {"text": "here"}])
    with requests.Session() as session:
        mount(session, AT_ONCE, transport=fake, ledger=MemoryLedger())
        with pytest.raises(requests.ReadTimeout) as caught, operation(key="k"):
            session.post(URL, data=b"pay")
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(URL, data=b"pay")
        assert fake.call_count == 1
        assert session.get(URL).text == "here"
    found = told(caught.value)
    assert (found.stage, found.effect) == (Stage.UNOBSERVED, Effect.UNKNOWN)


def test_an_address_without_an_answer_is_told_as_without_us() -> None:
    with requests.Session() as session:
        mount(session, AT_ONCE, transport=requests_mock.Adapter())
        with pytest.raises(requests_mock.NoMockAddress):
            session.post(URL, data=b"pay")


def test_its_mocker_answers_instead_of_us() -> None:
    """It replaces `Session.get_adapter`, so that no adapter of the session is asked: one answer, no report."""
    with plain() as session:
        with requests_mock.Mocker() as mocker:
            mocker.post(URL, [REFUSED, {"json": {}}])
            response = session.post(URL, data=b"pay")
        assert (response.status_code, mocker.call_count, report(response)) == (503, 1, None)
        assert isinstance(session.get_adapter(URL), RetryAdapter)


def test_its_mocker_lets_real_requests_through_to_us() -> None:
    with requests_mock.Mocker(real_http=True) as mocker:
        mocker.post(URL, text="mocked")
        check_laws(plain)
        with FaultServer([Answer(200, b"real")]) as server, plain() as session:
            assert (session.post(URL).text, session.post(server.url()).text) == ("mocked", "real")
