"""What must hold beside every companion, counted by a server. A companion's test says how its sessions are opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter

from retrypolicy import Constant, Effect, Reason, Report, RetryPolicy, Stage, operation, report
from retrypolicy.errors import SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import Answer, Close, FaultServer, Reset

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))
BUSY = Answer(503, b"busy", headers={"Retry-After": "0"})

Opened = Callable[..., requests.Session]
"""Opens a session whose `RetryAdapter` is made with these options, the way the companion's users would."""


def opened_around(make: Callable[[], BaseAdapter]) -> Opened:
    """Sessions with a `RetryAdapter` around the adapter that `make` makes."""

    def opened(**options: Any) -> requests.Session:
        session = requests.Session()
        mount(session, AT_ONCE, transport=make(), **options)
        return session

    return opened


def opened_with(adapter_class: type[RetryAdapter], **own: Any) -> Opened:
    """Sessions with an adapter of this class, which inherits from the companion's, too."""

    def opened(**options: Any) -> requests.Session:
        session = requests.Session()
        adapter = adapter_class(AT_ONCE, **own, **options)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session

    return opened


def plain(**options: Any) -> requests.Session:
    """A session as in the README."""
    session = requests.Session()
    mount(session, AT_ONCE, **options)
    return session


def check_laws(opened: Opened, *, watched: bool = True) -> None:
    """`watched`: can the wire be watched? If not, nothing is lost but repeats of what was never sent."""
    a_refused_post_is_repeated(opened)
    a_get_is_repeated_when_its_answer_is_lost(opened)
    a_post_is_not(opened, watched)
    a_post_of_which_nothing_was_sent_is_repeated_if_that_is_seen(opened, watched)
    a_key_remembers(opened)
    a_key_of_which_nothing_was_sent_is_let_go(opened, watched)


def a_refused_post_is_repeated(opened: Opened) -> None:
    with FaultServer([BUSY, Answer(429), Answer(200, b"thanks")]) as server, opened() as session:
        response = session.post(server.url(), data=b"pay")
        assert (response.status_code, response.content) == (200, b"thanks")
        assert [request.body for request in server.requests] == [b"pay"] * 3
        assert server.applied == 1
    assert told(response).total_attempts == 3
    assert isinstance(response.connection, RetryAdapter)


def a_get_is_repeated_when_its_answer_is_lost(opened: Opened) -> None:
    with FaultServer([Close("request"), Answer(200, b"here")]) as server, opened() as session:
        assert session.get(server.url()).content == b"here"
        assert server.complete == 2


def a_post_is_not(opened: Opened, watched: bool) -> None:
    with FaultServer([Close("request"), Answer(200)]) as server, opened() as session:
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(server.url(), data=b"pay")
        assert server.complete == 1
    found = told(caught.value)
    assert (found.effect, found.reason) == (Effect.UNKNOWN, Reason.UNSAFE)
    assert found.stage is (Stage.SENT if watched else Stage.UNOBSERVED)


def a_post_of_which_nothing_was_sent_is_repeated_if_that_is_seen(opened: Opened, watched: bool) -> None:
    with FaultServer([Reset("hello"), Answer(200)], tls=True) as server, opened() as session:
        if watched:
            assert session.post(server.url(), data=b"pay", verify=server.ca).status_code == 200
            assert server.complete == 1
            return
        with pytest.raises(requests.RequestException) as caught:
            session.post(server.url(), data=b"pay", verify=server.ca)
        assert server.complete == 0
    assert told(caught.value).effect is Effect.UNKNOWN


def a_key_remembers(opened: Opened) -> None:
    ledger = MemoryLedger()
    with FaultServer([BUSY, Close("request"), Answer(200)]) as server, opened(ledger=ledger) as session:
        with pytest.raises(requests.ConnectionError), operation(key="k"):
            session.post(server.url(), data=b"pay")
        with pytest.raises(SendHeld), operation(key="k"):
            session.post(server.url(), data=b"pay")
        assert server.complete == 2
        with operation(key="another"):
            session.post(server.url(), data=b"pay")
        assert server.complete == 3
    assert sorted(record.phase for record in ledger.records()) == sorted([Phase.HELD, Phase.DONE])


def a_key_of_which_nothing_was_sent_is_let_go(opened: Opened, watched: bool) -> None:
    once = AT_ONCE.with_(max_attempts=1)
    script = [Reset("hello"), Answer(200)]
    with FaultServer(script, tls=True) as server, opened(ledger=MemoryLedger()) as session:
        with pytest.raises(requests.RequestException), operation(key="k", policy=once):
            session.post(server.url(), data=b"pay", verify=server.ca)
        assert server.complete == 0
        if watched:
            with operation(key="k"):
                assert session.post(server.url(), data=b"pay", verify=server.ca).status_code == 200
        else:
            with pytest.raises(SendHeld), operation(key="k"):
                session.post(server.url(), data=b"pay", verify=server.ca)
        assert server.complete == (1 if watched else 0)


def told(of: object) -> Report:
    found = report(of)
    assert found is not None
    return found
