"""Beside requests-ntlm: a handshake of three requests on one connection, which is one call."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import spnego
from requests.adapters import HTTPAdapter
from requests_ntlm import HttpNtlmAuth

from retrypolicy import operation, report
from retrypolicy.errors import SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import Answer, Close, FaultServer, Request
from tests.companions.laws import BUSY, Opened, opened_around, plain

shapes = pytest.mark.parametrize("opened", [plain, opened_around(HTTPAdapter)], ids=["inherited", "around"])
CHALLENGE = {"WWW-Authenticate": "NTLM"}


@pytest.fixture
def auth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HttpNtlmAuth:
    """A user whom the servers below know."""
    users = tmp_path / "users"
    users.write_text("DOMAIN:user:password\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(users))
    return HttpNtlmAuth("DOMAIN\\user", "password")


def protected(script: list[Any]) -> Callable[[Request], Any]:
    """A server that authenticates connections, as NTLM does, and then plays a script."""
    contexts: dict[int, Any] = {}

    def act(request: Request) -> Any:
        said = request.header("Authorization")
        context = contexts.get(request.connection)
        if context is not None and context.complete:
            return script.pop(0)
        if said is None:
            return Answer(401, headers=CHALLENGE)
        if context is None:
            options = spnego.NegotiateOptions.use_ntlm
            context = contexts[request.connection] = spnego.server(protocol="ntlm", options=options)
        token = context.step(base64.b64decode(said.removeprefix("NTLM ")))
        if context.complete:
            return script.pop(0)
        return Answer(401, headers={"WWW-Authenticate": f"NTLM {base64.b64encode(token).decode()}"})

    return act


@shapes
def test_the_handshake_goes_through_us_and_stays_one_call(auth: HttpNtlmAuth, opened: Opened) -> None:
    ledger = MemoryLedger()
    with FaultServer(protected([Answer(200, b"welcome")])) as server, opened(ledger=ledger) as session:
        with operation(key="k"):
            response = session.post(server.url(), data=b"pay", auth=auth)
        assert (response.status_code, response.content) == (200, b"welcome")
        assert server.complete == 3
        assert server.connections == 1
    assert [record.phase for record in ledger.records()] == [Phase.DONE]
    assert [each.status_code for each in response.history] == [401, 401]
    found = report(response)
    assert found is not None
    assert found.total_attempts == 3
    assert [attempt.status for attempt in found.attempts] == [401, 401, 200]


@shapes
def test_a_refusal_behind_the_handshake_is_retried_on_its_connection(auth: HttpNtlmAuth, opened: Opened) -> None:
    with FaultServer(protected([BUSY, Answer(200)])) as server, opened() as session:
        assert session.post(server.url(), data=b"pay", auth=auth).status_code == 200
        assert [request.body for request in server.requests][2:] == [b"pay", b"pay"]
        assert server.connections == 1


@shapes
def test_an_answer_that_is_lost_behind_the_handshake_holds_the_key(auth: HttpNtlmAuth, opened: Opened) -> None:
    with FaultServer(protected([Close("request"), Answer(200)])) as server, opened(ledger=MemoryLedger()) as session:
        with pytest.raises(requests.ConnectionError), operation(key="k"):
            session.post(server.url(), data=b"pay", auth=auth)
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"pay", auth=auth)
        assert server.complete == 3
