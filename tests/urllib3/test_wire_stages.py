"""The stage of a failed attempt, under every fault, against what the server really read."""

from __future__ import annotations

import select
from typing import Any

import pytest
import urllib3

from retrypolicy.outcome import NOTHING_SENT, Stage
from retrypolicy.testing import FAULTS, PORT_FAULTS, TLS_FAULTS, TUNNEL_FAULTS, Answer, FaultServer
from retrypolicy.urllib3.wire import Watch
from tests.urllib3.wireclient import KINDS, LARGE, SMALL, attempt, pool

N, S, A, B, H = Stage.NOT_CONNECTED, Stage.SENT, Stage.ANSWERING, Stage.BODY_UNFINISHED, Stage.HEAD_UNFINISHED

pytestmark = [pytest.mark.table, pytest.mark.usefixtures("leaks_of_others")]


BODIES = {"small": SMALL, "large": LARGE}
QUICK = urllib3.Timeout(connect=0.5, read=0.15)  # until a client gives up (sending is "connect" to urllib3)

SLOW = ("drip_head", "drip_body", "interim_endless", "late")


def cases(*, used: bool) -> list[Any]:
    """Every fault on every kind of connection; the large body where it is about the request and not the answer."""
    found = []
    for kind in ("plain", "tunnel") if used else KINDS:
        faults = dict(FAULTS)
        if used:
            faults = {name: fault for name, fault in faults.items() if name != "unasked_408" and "accept" not in name}
        elif kind in ("tls", "tunnel"):
            faults |= TLS_FAULTS
            faults |= TUNNEL_FAULTS if kind == "tunnel" else {}
        for name, fault in faults.items():
            if name in SLOW or name[:3].isdecimal():
                continue
            sizes = (
                BODIES if getattr(fault, "after", "accept") != "request" or name.startswith("request") else ["small"]
            )
            found += [pytest.param(kind, fault, size, id=f"{kind}-{name}-{size}") for size in sizes]
    return found


def check(server, result, before: int) -> None:
    """The law: what the watch claims, the server's own count must bear out."""
    server.settle()
    stage = result.watch.stage
    assert result.watch.observed
    requests = server.requests[before:]
    if result.watch.head_complete:
        assert stage is A
        return
    assert result.error is not None
    if stage in NOTHING_SENT:
        assert not any(r.target for r in requests), "a whole head arrived"
    if stage in NOTHING_SENT or stage is B:
        assert not any(r.complete for r in requests), "the whole request arrived"
        assert not result.watch.request_complete
    if stage is B:
        assert result.watch.body_begun
    if result.watch.request_complete:
        assert stage in (S, A)


@pytest.mark.parametrize(("kind", "fault", "size"), cases(used=False))
def test_no_claim_is_wrong_on_a_new_connection(kind, fault, size):
    with FaultServer([fault], tls=kind == "tls") as server, pool(server, kind) as target:
        result = attempt(target, body=BODIES[size], timeout=QUICK)
        assert not result.watch.reused
        check(server, result, 0)


@pytest.mark.parametrize(("kind", "fault", "size"), cases(used=True))
def test_no_claim_is_wrong_on_a_used_connection(kind, fault, size):
    with FaultServer([Answer(200), fault], tls=kind == "tls") as server, pool(server, kind) as target:
        assert attempt(target).response.status == 200
        result = attempt(target, body=BODIES[size], timeout=QUICK)
        assert result.watch.reused
        check(server, result, 1)


SHARP = {
    # fault: the stage with a small body (a reset may come between its two writes), and with a large one
    "accept_fin": ({S, B}, {B}),
    "accept_stall": ({S}, {B}),
    "arrival_fin": ({S, B}, {B}),
    "arrival_stall": ({S}, {B}),
    "part_of_head_rst": ({S, B}, {B}),
    "head_rst": ({S, B}, {B}),
    "head_stall": ({S}, {B}),
    "part_of_body_rst": ({S, B}, {B}),
    "request_fin": ({S}, {S}),
    "request_rst": ({S}, {S}),
    "request_half": ({S}, {S}),
    "request_stall": ({S}, {S}),
    "status_line_fin": ({A}, {A}),
    "status_line_stall": ({A}, {A}),
    "only_status_line_fin": ({A}, {A}),
    "headers_fin": ({A}, {A}),
    "headers_rst": ({A}, {A}),
    "headers_stall": ({A}, {A}),
    "garbage_status_line": ({A}, {A}),
    "wrong_version": ({A}, {A}),
    "long_header_line": ({A}, {A}),
    "too_many_headers": ({A}, {A}),
    "interim_many": ({A}, {A}),
}
"""How sharp the watch is. (Under TLS, what happens at "accept" meets the handshake.)"""


@pytest.mark.parametrize("size", BODIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHARP)
def test_the_stage_is_as_sharp_as_the_wire_allows(name, kind, size):
    with FaultServer([FAULTS[name]], tls=kind == "tls") as server, pool(server, kind) as target:
        patience = urllib3.Timeout(connect=1.0, read=0.5) if "stall" in name else 10.0
        result = attempt(target, body=BODIES[size], timeout=patience)
        assert result.error is not None
        expected = SHARP[name][size == "large"]
        if name.startswith("accept") and kind in ("tls", "tunnel"):
            expected = {N}
        assert result.watch.stage in expected


@pytest.mark.parametrize("name", [n for n in TLS_FAULTS if n.startswith(("hello", "certificate"))])
@pytest.mark.parametrize("kind", ["tls", "tunnel"])
def test_a_failed_handshake_is_not_connected(kind, name):
    with FaultServer([TLS_FAULTS[name]], tls=kind == "tls") as server, pool(server, kind) as target:
        result = attempt(target, timeout=QUICK)
        assert result.error is not None
        assert result.watch.stage is N
        assert not server.settle().requests


@pytest.mark.parametrize("name", TUNNEL_FAULTS)
def test_a_failed_tunnel_is_not_connected(name):
    with FaultServer([TUNNEL_FAULTS[name]]) as server, pool(server, "tunnel") as target:
        result = attempt(target, timeout=QUICK)
        assert result.error is not None
        assert result.watch.stage is N
        assert not server.settle().requests


@pytest.mark.parametrize("name", PORT_FAULTS)
def test_a_port_that_does_not_answer_is_not_connected(name):
    with FaultServer([PORT_FAULTS[name]]) as server, pool(server, "plain") as target:
        result = attempt(target, timeout=QUICK)
        assert result.error is not None
        assert result.watch.stage is N


def test_a_name_that_does_not_exist_is_not_connected():
    with urllib3.PoolManager() as manager:
        result = attempt(manager.connection_from_url("http://nowhere.invalid/"))
    assert result.watch.stage is N


def test_a_head_that_the_socket_refuses_is_unfinished(monkeypatch):
    """The idle-close race that ends in RST: the first write fails."""
    with FaultServer([Answer(200)]) as server, pool(server, "plain") as target:
        attempt(target)
        sock = target.pool.queue[-1].sock
        monkeypatch.setattr(urllib3.connection, "wait_for_read", lambda *args, **kwargs: False)  # urllib3 is blind

        def reset():
            server.drop_idle("rst")
            assert select.select([sock], [], [], 5)[0]

        result = attempt(target, watch=Watch(on_ready=reset))
        assert result.error is not None
        assert result.watch.stage is H
        assert server.settle().complete == 1
