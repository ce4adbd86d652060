"""What the strategies draw is valid, bounded and code; it shrinks to what matters; bad arguments are named."""

from __future__ import annotations

import math
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import find, given, settings
from hypothesis import strategies as hs
from hypothesis.errors import InvalidArgument
from hypothesis.vendor.pretty import pretty

from retrypolicy import (  # noqa: F401
    CircuitBreaker,
    Constant,
    Decorrelated,
    Effect,
    Exponential,
    Guard,
    Limits,
    Linear,
    RetryBudget,
    RetryPolicy,
    Rule,
    Stage,
    decide,
)
from retrypolicy.backoff import Backoff, Urllib3Backoff
from retrypolicy.decision import History
from retrypolicy.guard.key import check_key
from retrypolicy.outcome import NOTHING_SENT, Answered, Failed
from retrypolicy.testing import strategies as st
from retrypolicy.testing.faults.server import FaultServer
from retrypolicy.testing.faults.steps import (  # noqa: F401
    Answer,
    Blackhole,
    Close,
    Handshake,
    Interim,
    Raw,
    Refuse,
    Reset,
    Stall,
    Tunnel,
    as_script,
)
from retrypolicy.testing.hypothesis_plugin import register
from retrypolicy.testing.strategies.attempts import NOW
from retrypolicy.testing.turns import Turn

register()  # as hypothesis does by itself where the package is installed

NAMES = {name: value for name, value in globals().items() if not name.startswith("_")}
VALUES = ["policies", "backoffs", "budgets", "breakers", "guards", "limits", "rules", "faults", "schedules", "requests"]


def simplest(strategy: hs.SearchStrategy[Any], wanted: Callable[[Any], bool] = lambda _: True) -> Any:
    options = settings(database=None, derandomize=False, max_examples=20_000)
    return find(strategy, wanted, settings=options, random=Random(1))  # what can be found must not be luck


@pytest.mark.parametrize("name", [*VALUES, "keys", "histories"])
@given(data=hs.data())
def test_what_is_drawn_is_code(name: str, data: hs.DataObject) -> None:
    value = data.draw(getattr(st, name)())
    assert eval(repr(value), NAMES) == value


@pytest.mark.parametrize("name", [*VALUES, "histories", "responses"])
@given(data=hs.data())
def test_what_a_failing_example_shows_is_code(name: str, data: hs.DataObject) -> None:
    value = data.draw(getattr(st, name)())
    again = eval(pretty(value), NAMES)
    if isinstance(value, Answered) and value.body_error is not None:
        assert type(again.body_error) is type(value.body_error)
        again, value = (
            each.__class__(status=each.status, headers=each.headers, body=each.body) for each in (again, value)
        )
    assert again == value


@given(st.failures())
def test_failures_are_shown_as_code(failed: Failed) -> None:
    again = eval(
        pretty(failed), {**NAMES, "gaierror": socket.gaierror, "SSLCertVerificationError": ssl.SSLCertVerificationError}
    )
    assert (type(again.error), again.stage, again.retry_limit) == (type(failed.error), failed.stage, failed.retry_limit)


@pytest.mark.slow
def test_only_what_matters_is_left() -> None:
    """A failing example is short: every field that plays no part is at its default."""
    assert simplest(st.policies()) == RetryPolicy()
    found = simplest(st.policies(), lambda policy: policy.max_attempts > 6 and "POST" in policy.idempotent_methods)
    assert found == RetryPolicy(max_attempts=7, idempotent_methods={"POST"})
    assert pretty(found) == "RetryPolicy(max_attempts=7, idempotent_methods=frozenset({'POST'}))"
    found = simplest(st.policies(), lambda policy: policy.guard.on_unknown == "resend")
    assert found == RetryPolicy(guard=Guard(on_unknown="resend"))
    assert simplest(st.responses(), lambda answered: "Retry-After" in answered.headers) == Answered(
        status=200, headers={"Retry-After": "0"}
    )
    assert simplest(st.faults(), lambda script: len(script) > 2) == [Answer(503), Answer(503), Answer(200)]
    assert simplest(st.schedules(), lambda turns: any(turn.crash for turn in turns)) == (Turn(crash=True),)
    assert simplest(st.keys()) == "0"
    assert simplest(st.requests()) == {"method": "GET", "url": "https://api.example.com/"}
    assert simplest(st.histories(), lambda history: history.tainted) == History(attempts=2, tainted=True)


def test_fields_are_as_the_caller_says() -> None:
    strategy = st.policies(max_attempts=hs.integers(1, 3), backoff=Constant(seconds=1), breaker=None, name="receipts")

    @settings(database=None)
    @given(strategy)
    def check(policy: RetryPolicy) -> None:
        assert policy.max_attempts <= 3
        assert policy.backoff == Constant(seconds=1)
        assert policy.breaker is None
        assert policy.name == "receipts"

    check()
    assert simplest(st.responses(status=418)) == Answered(status=418)
    assert simplest(st.histories(method="POST")).method == "POST"


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: st.policies(max_atempts=3), "max_atempts"),
        (lambda: st.policies(max_attempts=0), "max_attempts"),
        (lambda: st.policies(backoff="fast"), "backoff"),
        (lambda: st.backoffs(max_seconds=-1), "max_seconds"),
        (lambda: st.backoffs(max_seconds=math.inf), "max_seconds"),
        (lambda: st.backoffs(max_seconds=math.nan), "max_seconds"),
        (lambda: st.backoffs(kinds=[int]), "kinds"),
        (lambda: st.backoffs(kinds=[]), "kinds"),
        (lambda: st.budgets(max_tokens=0), "max_tokens"),
        (lambda: st.budgets(shared="yes"), "shared"),
        (lambda: st.breakers(minimum=0), "minimum"),
        (lambda: st.guards(lease=0), "lease"),
        (lambda: st.limits(connect=-1), "connect"),
        (lambda: st.failures(stages=["sent"]), "stages"),
        (lambda: st.histories(max_attempts=True), "max_attempts"),
        (lambda: st.histories(now=-1), "now"),
        (lambda: st.histories(method=3), "method"),  # type: ignore[arg-type]  # on purpose
        (lambda: st.keys(max_size=0), "max_size"),
        (lambda: st.keys(max_size=1025), "max_size"),
        (lambda: st.requests(methods="POST"), "methods"),
        (lambda: st.requests(max_body=-1), "max_body"),
        (lambda: st.requests(url=3), "url"),  # type: ignore[arg-type]  # on purpose
        (lambda: st.requests(url="example.com"), "url"),
        (lambda: st.faults(min_size=-1), "min_size"),
        (lambda: st.faults(min_size=0, recovers=False), "min_size"),
        (lambda: st.faults(min_size=3, max_size=2), "max_size"),
        (lambda: st.faults(slow=1), "slow"),
        (lambda: st.schedules(callers=0), "callers"),
        (lambda: st.schedules(max_size=0), "max_size"),
        (lambda: st.schedules(max_wait="1s"), "max_wait"),
        (lambda: st.schedules(crashes=None), "crashes"),
    ],
)
def test_a_bad_argument_is_named(make: Callable[[], object], argument: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{argument}: "):
        make()


@pytest.mark.parametrize("name", [name for name in st.__all__ if name not in ("rules", "outcomes")])
def test_arguments_are_given_by_name(name: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        getattr(st, name)(3)


# -- bounds and meaning


@given(st.backoffs(max_seconds=7), hs.integers(1, 30), hs.floats(0, 1, exclude_max=True))
def test_no_wait_is_above_the_longest(backoff: Backoff, retry: int, random: float) -> None:
    previous = None
    for number in range(1, retry):
        previous = backoff.delay(number, previous, random)
    assert 0 <= backoff.delay(retry, previous, random) <= 7


@given(st.budgets(shared=True))
def test_shared_budgets_can_be_shared(budget: RetryBudget) -> None:
    assert budget.capacity is not None


@pytest.mark.parametrize("kind", ["capacity", "window", "failure"])
def test_there_are_budgets_of_every_kind(kind: str) -> None:
    assert simplest(st.budgets(), lambda b: b.charge == kind or getattr(b, kind, None) is not None)


@given(st.histories(max_attempts=5))
def test_histories_are_consistent(history: History) -> None:
    assert 1 <= history.attempts <= 5
    if history.attempts == 1:
        assert (history.tainted, history.previous, history.streak, history.spent) == (False, None, 0, {})
    assert history.streak < history.attempts
    assert sum(history.spent.values()) < history.attempts
    assert history.first_seen is None or history.first_seen <= NOW - history.elapsed


@given(st.histories(), st.outcomes(), st.policies(), hs.floats(0, 1, exclude_max=True))
def test_they_are_what_decide_takes(history: History, outcome: Any, policy: RetryPolicy, random: float) -> None:
    assert decide(policy, history, outcome, now=NOW, random=random) == decide(
        policy, history, outcome, now=NOW, random=random
    )


@given(st.failures(stages=NOTHING_SENT))
def test_stages_are_those_asked_for(failed: Failed) -> None:
    assert failed.stage in NOTHING_SENT


@given(st.keys(max_size=12))
def test_keys_can_be_keys(key: str) -> None:
    assert check_key(key) == key
    assert len(key) <= 12


@given(st.requests(methods=["POST", "PUT"], max_body=8))
def test_requests_can_be_sent(request: dict[str, Any]) -> None:
    prepared = requests.Request(**request).prepare()
    assert prepared.method in ("POST", "PUT")
    assert len(prepared.body or b"") <= 8


@given(st.schedules(callers=3, max_size=4, max_wait=10, crashes=False, jumps=False))
def test_schedules_are_bounded(turns: tuple[Turn, ...]) -> None:
    assert 1 <= len(turns) <= 4
    assert all(turn.caller < 3 and turn.wait <= 10 and turn.jump == 0 and not turn.crash for turn in turns)


@settings(max_examples=20)
@given(script=st.faults(max_size=2))
def test_a_client_that_tries_often_enough_gets_through(script: list[Any]) -> None:
    """Every script ends with a 200, and none makes a client wait."""
    with FaultServer(script) as server:
        url = urlsplit(server.url())
        place = (url.hostname, url.port)
        for _ in range(12):
            try:
                with socket.create_connection(place, timeout=5) as sock:
                    sock.sendall(b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    head = sock.recv(15)
            except OSError:
                continue
            if head == b"HTTP/1.1 200 OK" and server.played > len(script):
                return
        raise AssertionError(server.requests)


@given(st.faults(slow=True, tls=True, tunnels=True, recovers=False))
def test_scripts_are_scripts(script: list[Any]) -> None:
    assert 1 <= len(as_script(script)) <= 4


# -- found by type, and without hypothesis


@pytest.mark.parametrize(
    "kind", [RetryPolicy, RetryBudget, CircuitBreaker, Guard, Limits, Rule, Answered, Failed, History, Linear]
)
def test_from_type_knows_our_types(kind: type) -> None:
    assert type(simplest(hs.from_type(kind))) is kind


def test_from_type_knows_the_protocol_of_backoffs() -> None:
    assert isinstance(simplest(hs.from_type(Backoff), lambda b: isinstance(b, Urllib3Backoff)), Urllib3Backoff)


def run(code: str, *places: Path) -> str:
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join([*map(str, places), here]), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INSTALLED = """
import sys, hypothesis
mine = sorted(name for name in sys.modules if name.startswith("retrypolicy"))
print("retrypolicy.testing.hypothesis_plugin" in mine)
heavy = ("strategies", "requests", "urllib3", "guard", "engine", "config", "faults", "django", "providers")
print([name for name in mine if any(word in name for word in heavy)])
from hypothesis import strategies as hs
from retrypolicy import RetryPolicy
print(hypothesis.find(hs.from_type(RetryPolicy), lambda policy: True) == RetryPolicy())
"""


def test_the_entry_point_loads_little(tmp_path: Path) -> None:
    """An installed package is found by hypothesis: the values are there, and the rest comes with the first example."""
    info = tmp_path / "retrypolicy-0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: retrypolicy\nVersion: 0\n")
    project = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    [line] = [line for line in project.splitlines() if line.startswith("retrypolicy = ") and "hypothesis" in line]
    info.joinpath("entry_points.txt").write_text("[hypothesis]\n" + line.replace('"', "") + "\n")
    assert run(INSTALLED, tmp_path).splitlines() == ["True", "[]", "True"]


WITHOUT = """
import sys
sys.modules["hypothesis"] = None
from retrypolicy.testing import FaultServer, VirtualClock, deactivated, FAULTS
import retrypolicy.testing.pytest_plugin
with FaultServer([200]) as server:
    VirtualClock().sleep(3600)
try:
    from retrypolicy.testing import strategies
except ImportError as error:
    print(error)
"""


def test_without_hypothesis_the_rest_works_and_the_error_names_the_extra() -> None:
    said = run(WITHOUT)
    assert said.startswith("retrypolicy.testing.strategies needs hypothesis: pip install retrypolicy[hypothesis]")
