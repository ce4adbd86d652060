"""Managers for the tests, and a call through one that meets a fault: what came of it, and what the server knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import urllib3

from retrypolicy import Constant, RetryPolicy, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.testing import Answer, FaultServer
from retrypolicy.urllib3 import RetryPoolManager, RetryProxyManager
from tests.requests.soundness import POLICY, Cell, limit_for

AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))
BUSY = Answer(503, headers={"Retry-After": "0"})
TIMED = RetryPolicy(total_timeout=0.4, backoff=Constant(seconds=0))
LATE = 2.0
"""Seconds that a call under TIMED takes at the very most, on however slow a machine."""


def moved(status: int, to: str = "/elsewhere") -> Answer:
    """A redirect."""
    return Answer(status, b"over there", headers={"Location": to})


def honouring(**more: Any) -> Provider:
    """An API on this host that takes keys."""
    placement = KeyPlacement(header="X-Key", window=60.0, margin=5.0)
    return Provider(name="made-up", hosts=("127.0.0.1",), key=placement, **more)


def manager_for(server: FaultServer, kind: str, policy: RetryPolicy, **options: Any) -> tuple[RetryPoolManager, str]:
    """A manager for one of `KINDS` of ways, and the URL that it reaches the server by."""
    if kind in ("plain", "tls"):
        return RetryPoolManager(policy, ca_certs=server.ca, **options), server.url()
    if kind.endswith("-tls"):
        options["proxy_ssl_context"] = server.client_context()
    url = "https://origin.test/" if kind.startswith("tunnel") else "http://origin.test/"
    return RetryProxyManager(server.proxy_url, policy, ca_certs=server.ca, **options), url


def meet(
    script: Sequence[Any],
    *,
    name: str,
    kind: str = "plain",
    method: str = "POST",
    size: int | None = 10,
    reused: bool = False,
) -> Cell:
    """Make one call against a server that plays this script; the fault's name says how long it may take."""
    limit = limit_for(name)
    policy = POLICY.with_(attempt_timeout=limit)
    tls = kind == "tls" or kind.endswith("-tls")
    with FaultServer([Answer(200)] * reused + list(script), tls=tls) as server:
        manager, url = manager_for(server, kind, policy, clock=VirtualClock(), timeout=limit)
        with manager:
            if reused:
                with operation(policy=RetryPolicy()):  # in its own time, however slow the machine is
                    assert manager.request("GET", url, timeout=5).status == 200
                server.settle()
            try:
                found = report(manager.request(method, url, body=None if size is None else b"x" * size))
            except urllib3.exceptions.HTTPError as error:
                found = report(error)
            assert found is not None
            server.settle()
        seen = [r for r in server.requests[int(reused) :] if r.method != "CONNECT"]
        return Cell(found, None, tuple(seen), server.applied - int(reused))
