"""One synced write and one lazy write for a send that goes well; one read for one that fails before its first byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from urllib3.util import connection as urllib3_connection

from retrypolicy import Constant, RetryPolicy, operation
from retrypolicy.guard import SQLiteLedger
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, FaultServer

OPERATIONS = ["arm", "claim", "read", "park", "done", "reject", "unknown", "expire", "resolve"]


@pytest.mark.parametrize(
    ("connects", "asked"),
    [
        ([True], ["arm", "done"]),
        ([False], ["read"]),
        ([False, False, False], ["read"]),
        ([False, False, True], ["read", "arm", "done"]),
    ],
)
def test_what_is_asked_of_the_ledger(
    connects: list[bool], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = SQLiteLedger(tmp_path / "sends.db")
    heard: list[str] = []
    for name in OPERATIONS:
        real = getattr(ledger, name)
        monkeypatch.setattr(ledger, name, lambda *a, _name=name, _real=real, **o: heard.append(_name) or _real(*a, **o))
    left = list(connects)
    connect = urllib3_connection.create_connection

    def may_connect(*args: Any, **options: Any) -> Any:
        if not left.pop(0):
            raise ConnectionRefusedError(111, "refused")
        return connect(*args, **options)

    monkeypatch.setattr(urllib3_connection, "create_connection", may_connect)
    policy = RetryPolicy(max_attempts=len(connects), backoff=Constant(seconds=0))
    with FaultServer([Answer(200)]) as server, requests.Session() as session, operation(key="k"):
        mount(session, policy, ledger=ledger, secret="s")
        if connects[-1]:
            assert session.post(server.url(), data=b"x").status_code == 200
        else:
            with pytest.raises(requests.ConnectionError):
                session.post(server.url(), data=b"x")
        assert server.complete == connects[-1]
    assert left == []
    assert heard == asked
