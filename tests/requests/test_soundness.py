"""Never "not sent" when the server could have it; never sent twice when it could have taken effect."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter

from retrypolicy import Constant, Effect, Reason, RetryPolicy, Stage, report
from retrypolicy.requests import RetryAdapter, mount
from retrypolicy.testing import (
    FAULTS,
    PORT_FAULTS,
    TLS_FAULTS,
    TUNNEL_FAULTS,
    Answer,
    Close,
    FaultServer,
    Handshake,
    Reset,
    Stall,
    Tunnel,
)
from tests.requests.soundness import (
    ATTEMPTS,
    KINDS,
    METHODS,
    POLICY,
    SIZES,
    check,
    faults_of,
    limit_for,
    make_call,
    row,
)

# A tunnel that is reset at once leaves a TLS socket behind in CPython, with or without us.
pytestmark = [
    pytest.mark.table,
    pytest.mark.filterwarnings("ignore:.*unclosed <ssl", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("leaks_of_others"),
]

TABLE = Path(__file__).with_name("soundness.txt")
LINES = [line.split() for line in TABLE.read_text().splitlines() if line and line[0] != "#"][1:]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0])
def test_the_table(line: list[str]) -> None:
    name, *expected = line
    kind = "tls" if name in TLS_FAULTS else "tunnel" if name in TUNNEL_FAULTS else "plain"
    cell = row(kind, name, "POST", "small")
    check(cell, "POST")
    first = cell.report.attempts[0]
    came_to = (
        "+".join(str(part) for part in (first.status, first.error) if part)
        if first.stage is None
        else first.stage.value
    )
    found = (came_to, first.effect.value, first.reason.value, str(cell.complete))
    for seen, allowed in zip(found, expected, strict=True):
        assert seen in allowed.split("/"), found


def test_the_table_is_whole() -> None:
    assert {line[0] for line in LINES} == {*FAULTS, *TLS_FAULTS, *TUNNEL_FAULTS}


COMBINATIONS = [
    (method, size, reused)
    for method, size, reused in itertools.product(METHODS, SIZES, (False, True))
    if (method == "GET") == (size == "empty")
]


EVERY_CELL = "EVERY_CELL" in os.environ
FAULTS_OF = {kind: faults_of(kind) for kind in KINDS}


def meetings() -> Iterator[tuple[str, str, list[Any], list[Any]]]:
    """A way, a fault, what they meet in first, and what they meet in as well.

    Every fault meets every combination, on one of its ways; every way every fault and every combination. With
    EVERY_CELL (`nox -s deep`) it is every fault on every way in every combination.
    """
    for number, name in enumerate(dict.fromkeys(itertools.chain(*FAULTS_OF.values()))):
        ways = [kind for kind in KINDS if name in FAULTS_OF[kind]]
        for place, kind in enumerate(ways):
            met = [c for turn, c in enumerate(COMBINATIONS) if (turn + number) % len(ways) == place]
            first = met[number // len(ways) % len(met)]
            yield kind, name, [first], [c for c in (COMBINATIONS if EVERY_CELL else met) if c != first]


MEETINGS = list(meetings())


def test_every_pair_of_fault_and_way_and_combination_occurs() -> None:
    cells = [(kind, name, c) for kind, name, first, others in MEETINGS for c in first + others]
    assert {(name, c) for _, name, c in cells} == set(
        itertools.product(FAULTS | TLS_FAULTS | TUNNEL_FAULTS, COMBINATIONS)
    )
    assert {(kind, name) for kind, name, _ in cells} == {(kind, name) for kind in KINDS for name in FAULTS_OF[kind]}
    assert {(kind, c) for kind, _, c in cells} == set(itertools.product(KINDS, COMBINATIONS))


@pytest.mark.parametrize(
    ("kind", "name", "combination"), [(kind, name, c) for kind, name, [c], _ in MEETINGS if kind in KINDS[:4]], ids=str
)
def test_no_claim_is_wrong_and_nothing_is_sent_twice(kind: str, name: str, combination: tuple[str, str, bool]) -> None:
    check(row(kind, name, *combination), combination[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "combinations"),
    [
        pytest.param(kind, name, others if kind in KINDS[:4] else first + others, id=f"{kind}-{name}")
        for kind, name, first, others in MEETINGS
    ],
)
def test_nor_in_any_other_cell(kind: str, name: str, combinations: list[tuple[str, str, bool]]) -> None:
    for combination in combinations:
        check(row(kind, name, *combination), combination[0])


@settings(max_examples=30)
@given(data=st.data())
def test_no_script_gets_a_request_applied_twice(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    faults = faults_of(kind)
    names = data.draw(st.lists(st.sampled_from(sorted(faults)), min_size=1, max_size=ATTEMPTS))
    method = data.draw(st.sampled_from(METHODS))
    size = data.draw(st.sampled_from([None, 1, 100_000]))
    reused = data.draw(st.booleans())
    limit = min(map(limit_for, names))
    cell = make_call(
        [faults[name] for name in names],
        kind=kind,
        method=method,
        size=size,
        reused=reused,
        limit=limit,
        policy=POLICY.with_(attempt_timeout=limit),
    )
    check(cell, method)


@pytest.mark.parametrize("name", PORT_FAULTS)
def test_a_port_that_does_not_answer_is_tried_again(name: str) -> None:
    with FaultServer([PORT_FAULTS[name]]) as server, requests.Session() as session:
        mount(session, POLICY.with_(backoff=Constant(seconds=0)))
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(server.url(), data=b"x", timeout=0.1)
    found = report(caught.value)
    assert found is not None
    assert [a.stage for a in found.attempts] == [Stage.NOT_CONNECTED] * ATTEMPTS
    assert (found.effect, found.reason) == (Effect.NOT_APPLIED, Reason.ATTEMPTS_EXHAUSTED)


# -- where urllib3 is wrong, either way --------------------------------------------------------------------------


def with_urllib3(script: list[Any], kind: str, limit: float = 5.0) -> int:
    """How many complete POSTs the server reads under urllib3's own Retry."""
    with FaultServer(script, tls=kind == "tls") as server, requests.Session() as session:
        session.trust_env, session.verify = False, server.ca
        session.proxies = {"http": server.proxy_url, "https": server.proxy_url} if kind in ("forward", "tunnel") else {}
        adapter = HTTPAdapter(max_retries=urllib3.Retry(total=2, backoff_factor=0))
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        url = {"forward": "http://origin.test/", "tunnel": "https://origin.test/"}.get(kind, server.url())
        with contextlib.suppress(requests.RequestException):
            session.post(url, data=b"x" * 10, timeout=limit)
        return server.settle().complete


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("tls", Close("request", how="garbage")),
        ("forward", Close("request")),
        ("forward", Reset("request")),
        ("tunnel", Close("request")),
        ("tunnel", Reset("request")),
    ],
)
def test_urllib3_sends_it_again_and_we_do_not(kind: str, fault: Any) -> None:
    assert with_urllib3([fault], kind) == 3
    cell = make_call([fault], kind=kind)
    assert (cell.complete, cell.report.effect, cell.report.reason) == (1, Effect.UNKNOWN, Reason.UNSAFE)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("tls", Reset("hello")),
        ("tls", Stall("hello")),
        ("tunnel", Tunnel(Close("request"))),
        ("tunnel", Tunnel(Reset("request"))),
        ("tunnel", Tunnel(Stall("request"))),
    ],
)
def test_urllib3_gives_up_what_was_never_sent_and_we_do_not(kind: str, fault: Any) -> None:
    assert with_urllib3([fault, Answer(200)], kind, limit=0.2) == 0
    policy = RetryPolicy(backoff=Constant(seconds=0), attempt_timeout=0.2)
    cell = make_call([fault, Answer(200)], kind=kind, policy=policy)
    assert (cell.complete, cell.report.effect) == (1, Effect.APPLIED)


def test_a_certificate_that_nobody_trusts_is_not_tried_again() -> None:
    with FaultServer([Handshake("untrusted")], tls=True) as server, requests.Session() as session:
        session.verify = server.ca
        session.mount("https://", RetryAdapter(POLICY))
        with pytest.raises(requests.exceptions.SSLError) as caught:
            session.post(server.url(), data=b"x")
        found = report(caught.value)
        assert found is not None
        assert (found.total_attempts, found.reason, server.connections) == (1, Reason.PERMANENT, 1)
