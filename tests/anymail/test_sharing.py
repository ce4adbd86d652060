"""Django makes a backend for each message; what costs time is made once for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from retrypolicy import WORKER, Constant, RetryPolicy
from retrypolicy.anymail import sharing
from retrypolicy.guard import MemoryLedger
from retrypolicy.testing import FaultServer

from .sending import backend, mail, ok

NAME = "resend"


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_shared", {})


def connections(server: FaultServer) -> int:
    return len({request.connection for request in server.requests})


def test_messages_share_a_connection_and_sessions_do_not_end_it(project: dict[str, Any]) -> None:
    with FaultServer([ok(NAME)]) as server:
        for _ in range(3):
            one = backend(NAME, server)
            assert one.send_messages([mail()]) == 1
            assert one.session is None
        assert (server.complete, connections(server)) == (3, 1)


@pytest.mark.parametrize(
    "other",
    [
        lambda: {"retry_policy": RetryPolicy(backoff=Constant(seconds=0))},
        lambda: {"retry_ledger": MemoryLedger()},
        lambda: {"retry_provider": "postmark"},
        lambda: {"api_url": "http://localhost:1/"},
    ],
    ids=["policy", "ledger", "provider", "host"],
)
def test_what_is_configured_otherwise_is_not_shared(project: dict[str, Any], other: Callable[[], Any]) -> None:
    with FaultServer([ok(NAME)]) as server:
        one, two, three = backend(NAME, server), backend(NAME, server), backend(NAME, server, **other())
    assert one.retry_engine is two.retry_engine
    assert one.retry_engine is not three.retry_engine


def test_the_secret_and_the_mode_make_a_difference(project: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer([ok(NAME)]) as server:
        engines = [backend(NAME, server).retry_engine]
        project["SECRET"] = "another"
        engines.append(backend(NAME, server).retry_engine)
        monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
        engines.append(backend(NAME, server).retry_engine)
    assert len(set(map(id, engines))) == 3
    assert [engine.mode for engine in engines] == ["enforce", "enforce", "observe"]


def test_policies_as_data_are_made_once(project: dict[str, Any]) -> None:
    project["POLICIES"] = {"mail": {"max_attempts": 2}}
    with FaultServer([ok(NAME)]) as server:
        one, two = (backend(NAME, server, retry_policy="mail").retry_engine for _ in range(2))
        assert one is two
        assert one.policy.max_attempts == 2
        project["POLICIES"] = {"mail": {"max_attempts": 3}}
        assert backend(NAME, server, retry_policy="mail").retry_engine.policy.max_attempts == 3


def test_configurations_that_are_always_new_do_not_pile_up(project: dict[str, Any]) -> None:
    with FaultServer([ok(NAME)]) as server:
        for _ in range(2 * sharing._MOST):
            backend(NAME, server, retry_policy=WORKER.with_(name="new"))
    assert len(sharing._shared) <= sharing._MOST


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_has_connections_of_its_own(project: dict[str, Any]) -> None:
    with FaultServer([ok(NAME)]) as server:
        assert backend(NAME, server).send_messages([mail()]) == 1
        child = os.fork()
        if not child:
            os._exit(0 if not sharing._shared and backend(NAME, server).send_messages([mail()]) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert backend(NAME, server).send_messages([mail()]) == 1
        first, second, third = (request.connection for request in server.requests)
        assert first == third != second
