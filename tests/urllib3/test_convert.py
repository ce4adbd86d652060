"""from_urllib3 against urllib3 itself: random settings, random scripts of failures, no sockets."""

from __future__ import annotations

import email.utils
import ssl
import warnings
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st
from urllib3 import exceptions as errors
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import HTTPResponse
from urllib3.util import Retry

from retrypolicy import Answered, Failed, History, Reason, RetryPolicy, Stage, decide
from retrypolicy.decision import Stop, kind_of, raises
from retrypolicy.errors import ConfigurationError, DuplicateRisk
from retrypolicy.outcome import Retry as Again
from retrypolicy.requests import from_urllib3
from retrypolicy.urllib3.failures import failure_of

NOW = 1_800_000_000.0
POOL: Any = SimpleNamespace(host="api.example.com", port=443)
CONNECTION = HTTPConnection("api.example.com")

ERRORS = {
    "connect": [
        errors.ConnectTimeoutError(CONNECTION, "timed out"),
        errors.NewConnectionError(CONNECTION, "refused"),
        errors.NameResolutionError("api.example.com", CONNECTION, OSError(-2, "unknown name")),  # type: ignore[arg-type]
        errors.ProxyError("no proxy", errors.NewConnectionError(CONNECTION, "refused")),
    ],
    "read": [
        errors.ReadTimeoutError(POOL, "/", "timed out"),
        errors.ProtocolError("Connection aborted.", ConnectionResetError(104)),
    ],
    "other": [
        errors.SSLError(ssl.SSLError(1, "bad record")),
        errors.SSLError(ssl.SSLCertVerificationError(1, "self-signed")),
        errors.ProxyError("cut", OSError("tunnel")),
    ],
}
METHODS = ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "QUERY", "REPORT"]
STATUSES = [200, 202, 204, 301, 303, 304, 307, 400, 404, 408, 409, 413, 425, 429, 500, 501, 502, 503, 504, 505, 599]
HINTS = [None, "0", "1", "7", " 30 ", "999999", "86400", email.utils.formatdate(NOW + 40, usegmt=True)]
HINTS += [email.utils.formatdate(NOW - 40, usegmt=True), "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]

counters = st.none() | st.just(False) | st.integers(0, 4)
settings_ = st.fixed_dictionaries(
    {
        "total": st.none() | st.just(False) | st.integers(0, 6),
        "connect": counters,
        "read": counters,
        "status": st.none() | st.integers(0, 4),
        "other": st.none() | st.integers(0, 4),
        "allowed_methods": st.none()
        | st.just(Retry.DEFAULT_ALLOWED_METHODS)
        | st.frozensets(st.sampled_from([*METHODS, "post"]), min_size=1),
        "status_forcelist": st.none() | st.frozensets(st.sampled_from(STATUSES)) | st.just(range(500, 700)),
        "backoff_factor": st.sampled_from([0, 0.1, 1, 30]),
        "backoff_max": st.sampled_from([0, 5, 120, 50_000]),
        "backoff_jitter": st.sampled_from([0.0, 0.5, 3]),
        "raise_on_status": st.booleans(),
        "respect_retry_after_header": st.booleans(),
        "retry_after_max": st.sampled_from([10, 21600]),
    }
)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Exception | int, Any]:
    """An error and how far the attempt got, or a status and a Retry-After."""
    kind = draw(st.sampled_from(["connect", "read", "other", "status", "status", "status"]))
    if kind == "status":
        return draw(st.sampled_from(STATUSES)), draw(st.sampled_from(HINTS))
    stage = Stage.NOT_CONNECTED if kind == "connect" else draw(st.sampled_from(sorted(Stage, key=str)))
    return draw(st.sampled_from(ERRORS[kind])), stage


def ours(policy: RetryPolicy, method: str, script: list[Any], random: float) -> list[Any]:
    """The waits, and how it ended: answered, raised (an error), exhausted (RetryError), or stopped for safety."""
    waits: list[Any] = []
    spent: dict[str, int] = {}
    tainted, previous = False, None
    for at, (what, more) in enumerate(script):
        outcome: Answered | Failed
        if isinstance(what, int):
            outcome = Answered(status=what, headers={} if more is None else {"Retry-After": more})
        else:
            watch: Any = SimpleNamespace(observed=True, stage=more, reused=False)
            outcome = failure_of(what, watch)
        history = History(method=method, attempts=at + 1, previous=previous, tainted=tainted, spent=spent)
        decision = decide(policy, history, outcome, now=NOW, random=random)
        if isinstance(decision, Again):
            waits.append(pytest.approx(decision.delay))
            spent = {**spent, kind_of(outcome): spent.get(kind_of(outcome), 0) + 1}
            previous = decision.delay
            tainted = decision.reason not in (Reason.NOT_SENT, Reason.NOT_APPLIED)
            continue
        assert isinstance(decision, Stop)  # never a Defer: urllib3 has none
        allowed = policy.allowed_methods is None or method in policy.allowed_methods
        done = allowed and decision.reason is Reason.SUCCESS and what in policy.status_forcelist
        if decision.reason is Reason.UNSAFE or done:  # a success that a list asks to repeat stays one
            return [*waits, "unsafe", outcome]
        if raises(policy, outcome, decision):
            return [*waits, "exhausted"]
        return [*waits, "raised" if isinstance(outcome, Failed) else "answered"]
    return [*waits, "went on"]


def theirs(retry: Retry, method: str, script: list[Any], random: float) -> list[Any]:
    """The loop of urllib3's `HTTPConnectionPool.urlopen`, with urllib3's own decisions."""
    waits: list[Any] = []
    with (
        mock.patch("urllib3.util.retry.time.sleep", side_effect=waits.append),
        mock.patch("urllib3.util.retry.time.time", return_value=NOW),
        mock.patch("urllib3.util.retry.random.random", return_value=random),
    ):
        for at, (what, more) in enumerate(script):
            response = None
            if isinstance(what, int):
                response = HTTPResponse(status=what, headers={} if more is None else {"Retry-After": more})
                if not retry.is_retry(method, what, bool(response.headers.get("Retry-After"))):
                    return [*waits, "answered"]
            try:
                retry = retry.increment(method, "/", response=response, error=None if response else what, _pool=POOL)
            except errors.MaxRetryError:
                if response is None:
                    return [*waits, "raised"]
                return [*waits, "exhausted" if retry.raise_on_status else "answered"]
            except errors.HTTPError:
                return [*waits, "raised"]
            retry.sleep(response)
            if len(waits) == at:  # no sleep is a wait of nothing
                waits.append(0)
    return [*waits, "went on"]


def converted(settings: dict[str, Any]) -> tuple[RetryPolicy, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy = from_urllib3(Retry(**settings))
    assert {w.category for w in caught} <= {DuplicateRisk}
    return policy, [str(w.message) for w in caught]


@given(
    settings_, st.sampled_from(METHODS), st.lists(steps(), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 0.99])
)
@example({"total": 5, "status": 0}, "GET", [(429, "1")], 0.0)
@example({"total": 1, "allowed_methods": None}, "POST", [(503, "1"), (503, "1")], 0.0)
@example({"total": 3, "status_forcelist": [202]}, "GET", [(202, None), (202, "2"), (200, None)], 0.0)
@example({"total": 3, "allowed_methods": None}, "POST", [(ERRORS["other"][0], Stage.ANSWERING)] * 2, 0.0)
def test_the_same_decisions_but_where_urllib3_may_send_twice(
    settings: dict[str, Any], method: str, script: list[Any], random: float
) -> None:
    policy, said = converted(settings)
    mine, other = ours(policy, method, script, random), theirs(Retry(**settings), method, script, random)
    if len(mine) < 2 or mine[-2] != "unsafe":
        event("the same")
        assert other == mine
        return
    *before, _, outcome = mine
    at = len(before)
    assert other[:at] == before
    if not isinstance(other[at], (int, float)):  # urllib3 ends here, too
        event("both stop")
        done = isinstance(outcome, Answered) and outcome.status < 400  # then it is returned as what it is
        over = not done and raises(policy, outcome, Stop(reason=Reason.UNSAFE))
        assert done or other[at] == ("raised" if isinstance(outcome, Failed) else "exhausted" if over else "answered")
        return
    event("urllib3 sends again")
    kind = kind_of(outcome)
    reason = {
        "read": "breaks or times out",
        "status": "do not say that nothing was done",
        "other": "TLS and proxy errors",
    }
    assert any(reason[kind] in text for text in said)
    assert method not in Retry.DEFAULT_ALLOWED_METHODS


def test_urlopen_is_what_the_script_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop above is urllib3's: the same waits come out of its pool, for the answers of a server that is none."""
    slept: list[float] = []
    answers = iter([500, 429, 503, 200])

    def answer(self: Any, conn: Any, method: str, url: str, **kwargs: Any) -> HTTPResponse:
        status = next(answers)
        return HTTPResponse(status=status, headers={"Retry-After": "3"} if status == 429 else {})

    monkeypatch.setattr("urllib3.connectionpool.HTTPConnectionPool._make_request", answer)
    monkeypatch.setattr("urllib3.util.retry.time.sleep", slept.append)
    settings = {"total": 5, "status_forcelist": [500, 503], "backoff_factor": 1}
    pool = HTTPConnectionPool("api.example.com")
    last = pool.urlopen("GET", "/", retries=Retry(**settings), redirect=False, preload_content=False)
    assert last.status == 200
    script = [(500, None), (429, "3"), (503, None), (200, None)]
    assert theirs(Retry(**settings), "GET", script, 0.0) == [0, 3, 4, "answered"]
    assert slept == [3, 4]
    with pytest.warns(DuplicateRisk):
        assert ours(from_urllib3(Retry(**settings)), "GET", script, 0.0) == [0, 3, 4, "answered"]


def risks(**settings: Any) -> list[str]:
    return [text.partition(": ")[2].partition(". The policy")[0] for text in converted(settings)[1]]


def test_each_way_of_sending_twice_is_told_once_with_its_reason() -> None:
    told = risks(total=3, allowed_methods={"GET", "POST", "PATCH"}, status_forcelist=[429, 500, 504])
    assert told == [
        "it repeats PATCH, POST when the connection breaks or times out before the answer",
        "it repeats PATCH, POST after 500, 504, which do not say that nothing was done",
        "it repeats every method after TLS and proxy errors, even when the server has read the request",
    ]
    assert len(risks(total=3, allowed_methods=None, read=0, other=0, status_forcelist=[500])) == 1
    assert len(risks(total=3, allowed_methods=None, read=False, other=0, status_forcelist=[429])) == 0
    assert risks(total=3, other=0) == []
    assert risks(total=0, allowed_methods=None) == []
    assert risks(total=False) == []
    assert len(risks(total=None)) == 1


def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(DuplicateRisk) as caught:
        from_urllib3(3)
    assert [w.filename for w in caught] == [__file__]


def test_numbers_are_what_httpadapter_takes() -> None:
    assert from_urllib3(0).max_attempts == 1
    assert from_urllib3(False).max_attempts == 1
    with pytest.warns(DuplicateRisk):
        assert from_urllib3(3) == from_urllib3(Retry(3))
    with pytest.warns(DuplicateRisk):
        assert from_urllib3(None).max_attempts == 4  # Retry.DEFAULT
    for bad in (-1, 1.5, "3", object()):
        with pytest.raises(ConfigurationError, match="max_retries"):
            from_urllib3(bad)  # type: ignore[arg-type]


def test_a_hint_that_cannot_be_read_is_no_hint() -> None:
    with pytest.warns(DuplicateRisk):
        policy = from_urllib3(Retry(total=2, status_forcelist=[500], backoff_factor=1))
    for junk in ("soon", "-5", "1, 2", "9" * 5000):
        history = History(method="GET", attempts=2)
        decision = decide(policy, history, Answered(status=500, headers={"Retry-After": junk}), now=NOW, random=0.0)
        assert decision == Again(delay=2.0, reason=Reason.IDEMPOTENT)
