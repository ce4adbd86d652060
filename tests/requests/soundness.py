"""A call through `RetryAdapter` that meets a fault, what the server knows of it, and the laws that hold for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests
from attrs import frozen

from retrypolicy import Constant, Effect, Reason, Report, RetryPolicy, Stage, operation, report
from retrypolicy.clock import VirtualClock
from retrypolicy.outcome import NOTHING_SENT, AttemptReport
from retrypolicy.requests import mount
from retrypolicy.testing import FAULTS, TLS_FAULTS, TUNNEL_FAULTS, Answer, FaultServer, Request

KINDS = ("plain", "tls", "forward", "tunnel", "forward-tls", "tunnel-tls")
"""How the server is reached: directly, or through a proxy (which is reached by TLS in the last two)."""

METHODS = ("POST", "GET", "PUT")
SIZES = {"empty": None, "small": 10, "large": 12_000_000}  # large: more than two kernels' buffers hold
ATTEMPTS = 3
SLOW = ("stall", "drip", "endless", "late", "half", "early_413_read", "only_103")
"""What only ends by a time limit says so in its name."""

POLICY = RetryPolicy(max_attempts=ATTEMPTS, backoff=Constant(seconds=0), max_wait=1e9)


@frozen
class Cell:
    """What became of one call."""

    report: Report
    response: requests.Response | None
    requests: tuple[Request, ...]  # as the server saw them
    applied: int

    @property
    def complete(self) -> int:
        return sum(r.complete for r in self.requests)

    @property
    def refused(self) -> int:
        """Attempts that the server answered with a refusal."""
        return sum(a.status is not None and a.effect is Effect.NOT_APPLIED for a in self.report.attempts)


def faults_of(kind: str) -> dict[str, Any]:
    """The faults that can happen on this way."""
    faults = dict(FAULTS)
    if kind in ("tls", "tunnel"):
        faults |= TLS_FAULTS
    if kind.startswith("tunnel"):
        faults |= TUNNEL_FAULTS
    return faults


def make_call(
    script: Sequence[Any],
    *,
    kind: str = "plain",
    method: str = "POST",
    size: int | None = 10,
    reused: bool = False,
    limit: float = 5.0,
    policy: RetryPolicy = POLICY,
    **options: Any,
) -> Cell:
    """Make one call against a server that plays this script."""
    tls = kind == "tls" or kind.endswith("-tls")
    with FaultServer([Answer(200)] * reused + list(script), tls=tls) as server, requests.Session() as session:
        session.trust_env = False
        session.verify = server.ca
        url = server.url()
        if "forward" in kind or "tunnel" in kind:
            url = "https://origin.test/" if kind.startswith("tunnel") else "http://origin.test/"
            session.proxies = {"http": server.proxy_url, "https": server.proxy_url}
        adapter = mount(session, policy, clock=VirtualClock(), **options)
        if kind.endswith("-tls"):
            # requests has no option for the proxy's own authority.
            adapter.proxy_manager_for(server.proxy_url, proxy_ssl_context=server.client_context())
        if reused:
            with operation(policy=RetryPolicy()):  # in its own time, however slow the machine is
                assert session.get(url, timeout=5).status_code == 200
            server.settle()
        response, body = None, None if size is None else b"x" * size
        try:
            response = session.request(method, url, data=body, timeout=limit)
            found = report(response)
        except requests.RequestException as error:
            found = report(error)
        assert found is not None
        server.settle()
        # A fault may be played on a CONNECT, which carries nothing of the request.
        seen = [r for r in server.requests[int(reused) :] if r.method != "CONNECT"]
        return Cell(found, response, tuple(seen), server.applied - int(reused))


def check(cell: Cell, method: str) -> None:
    """The laws, of one call without a key and with a body that can be sent again."""
    attempts, last = cell.report.attempts, cell.report.attempts[-1]
    assert len(attempts) == cell.report.total_attempts <= ATTEMPTS
    # What is claimed of the wire is true: no more reached the server than the evidence admits.
    assert sum(bool(r.target) for r in cell.requests) <= sum(a.stage not in NOTHING_SENT for a in attempts)
    assert cell.complete <= sum(not _unfinished(a) for a in attempts)
    # Not applied, as reported: no application acted.
    if cell.report.effect is Effect.NOT_APPLIED:
        assert cell.applied == 0
    # A request that is not idempotent is read whole at most once, unless the server refused it.
    if method == "POST":
        assert cell.applied <= 1
        assert cell.complete <= 1 + cell.refused
    for attempt in attempts:
        # An attempt of which nothing was sent is repeated, unless it would fail the same way.
        if attempt.stage in NOTHING_SENT:
            assert attempt.effect is Effect.NOT_APPLIED
            # (After an attempt of unknown effect, what permits the repeat is the method.)
            again = {Reason.NOT_SENT} if method == "POST" else {Reason.NOT_SENT, Reason.IDEMPOTENT}
            assert attempt.reason in again | {Reason.PERMANENT, Reason.ATTEMPTS_EXHAUSTED}
        # So is every attempt that failed, of an idempotent request.
        elif attempt.stage is not None and method != "POST":
            assert attempt.reason in (Reason.IDEMPOTENT, Reason.PERMANENT, Reason.ATTEMPTS_EXHAUSTED)
        # Others are not.
        elif attempt.stage is not None:
            assert attempt.effect is Effect.UNKNOWN
            assert attempt.reason in (Reason.UNSAFE, Reason.PERMANENT)
    assert (last.reason is Reason.ATTEMPTS_EXHAUSTED) <= (len(attempts) == ATTEMPTS)


def _unfinished(attempt: AttemptReport) -> bool:
    return attempt.stage in NOTHING_SENT or attempt.stage is Stage.BODY_UNFINISHED


def limit_for(name: str, kind: str = "plain") -> float:
    """A timeout for this fault: short where nothing else ends an attempt."""
    if kind == "tunnel-tls" and name == "stale_answer":
        return 0.2  # urllib3's TLS within TLS never sees the handshake's end when more comes with it
    return 0.2 if any(word in name for word in SLOW) else 5.0


def row(kind: str, name: str, method: str, size: str, reused: bool = False) -> Cell:
    """The cell of this fault, which the server commits once."""
    limit = limit_for(name, kind)
    return make_call(
        [faults_of(kind)[name], Answer(200)],
        kind=kind,
        method=method,
        size=SIZES[size],
        reused=reused,
        limit=limit,
        policy=POLICY.with_(attempt_timeout=limit),
    )
