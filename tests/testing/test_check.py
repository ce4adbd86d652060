"""check_policy: good policies are clean, bad ones are found with the shortest story and the change that mends them."""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis.errors import InvalidArgument
from urllib3.util import Retry

from retrypolicy import (
    WEB,
    WORKER,
    CircuitBreaker,
    Effect,
    Guard,
    RetryBudget,
    RetryPolicy,
    Rule,
    Stage,
)
from retrypolicy.backoff import Urllib3Backoff
from retrypolicy.errors import ConfigurationError, DuplicateRisk
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.providers import load, names
from retrypolicy.requests import from_urllib3
from retrypolicy.testing import PolicyFindings, check_policy
from retrypolicy.testing.check import Finding
from retrypolicy.testing.check.checking import NAMES
from retrypolicy.testing.check.engine import Space
from retrypolicy.testing.check.faults import DROPPED, FINE, REFUSED, TIMEOUT, UNREACHABLE, Fault, answer, catalogue
from retrypolicy.testing.check.laws import LAWS
from retrypolicy.testing.check.scenario import Caller, Jump, Scenario
from retrypolicy.testing.check.world import DAY, World

pytestmark = pytest.mark.slow  # a whole model, again and again; test_check_command.py runs it on the oldest, too

PRESETS = {"default": RetryPolicy(), "web": WEB, "worker": WORKER}
RECIPE = RetryPolicy(
    max_attempts=4,
    idempotent_methods=IDEMPOTENT | {"POST"},
    status_forcelist={429, 500, 502, 503, 504},
    backoff=Urllib3Backoff(factor=0.5),
)


def found(policy: RetryPolicy, law: str, **options: Any) -> Finding:
    """The only finding of a search for one law."""
    options = {"examples": 50, **options}
    [finding] = check_policy(policy, ignore=set(NAMES) - {law}, raises=False, **options).findings
    assert finding.law == law
    return finding


# -- good policies


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("provider", [None, "resend"])
def test_the_presets_are_clean(name: str, provider: str | None) -> None:
    report = check_policy(PRESETS[name], provider, examples=100)
    assert report.clean
    assert report.plays > 500
    assert report.attempts_per_call == PRESETS[name].max_attempts or name == "worker"  # which puts some off


@pytest.mark.slow
@pytest.mark.parametrize("provider", names())
@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_are_clean_with_every_provider(name: str, provider: str) -> None:
    check_policy(PRESETS[name], provider, examples=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy(guard=Guard(on_unknown="reconcile")),
        RetryPolicy(guard=Guard(unkeyed="refuse", join=30)),
        RetryPolicy(idempotent_methods={"PUT", "GET"}),
        RetryPolicy(pushback="cap", max_wait=3),
        RetryPolicy(pushback="stop", max_wait=3, total_timeout=20, attempt_timeout=5, lifetime=100),
        RetryPolicy(budget=RetryBudget(capacity=5), breaker=CircuitBreaker(minimum=2)),
        RetryPolicy(budget=RetryBudget.aws()),
        RetryPolicy(budget=RetryBudget.grpc()),
        RetryPolicy(budget=RetryBudget.finagle()),
    ],
    ids=["reconcile", "refuse", "put", "cap", "stop", "budget", "aws", "grpc", "finagle"],
)
def test_others_are_clean(policy: RetryPolicy) -> None:
    check_policy(policy, examples=100)


# -- the recipe of Anymail's documentation


def test_the_recipe_taken_literally_accepts_duplicates_in_two_attempts() -> None:
    with pytest.raises(PolicyFindings) as raised:
        check_policy(RECIPE)
    [finding] = raised.value.report.findings
    assert (finding.law, finding.cause, finding.attempts) == ("duplicate", "accepts duplicates", 2)
    story = "\n".join(finding.story)
    assert "answered  nothing: the connection broke before the answer" in story
    assert "decided   retry: duplicates are accepted" in story
    assert finding.verdict == "the server acted on the call 2 times"
    assert "take POST out of idempotent_methods" in finding.fix
    assert str(finding) in str(raised.value)
    page = Path(__file__).parents[2] / "docs" / "check.md"
    assert str(finding) in page.read_text()
    assert isinstance(raised.value, AssertionError)


def test_the_recipe_through_from_urllib3_is_clean() -> None:
    retry = Retry(total=3, allowed_methods=None, status_forcelist=[429, 500, 502, 503, 504], backoff_factor=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DuplicateRisk)
        policy = from_urllib3(retry)
    check_policy(policy, examples=100)
    check_policy(policy, "resend", examples=100)


# -- bad policies, law by law


def test_resend_accepts_duplicates() -> None:
    finding = found(RetryPolicy(guard=Guard(on_unknown="resend")), "duplicate")
    assert finding.cause == "accepts duplicates"
    assert "on_unknown" in finding.fix


def test_without_a_record_a_queue_sends_again_after_the_provider_forgot_the_key() -> None:
    space = Space(RetryPolicy(guard=Guard(on_ledger_down="open")), load("resend"))
    late = (Caller(), Caller(starts=2 * DAY))
    world = World(
        space, Scenario(mode="guarded", faults=(DROPPED, FINE), callers=late, trouble=((0, "away"), (1, "away")))
    ).play()
    assert LAWS["duplicate"].check(world)


@pytest.mark.parametrize("law", ["duplicate", "false-report"])
def test_a_bare_status_is_no_evidence(law: str) -> None:
    assert "take 500 out of refusal_statuses" in found(RetryPolicy(refusal_statuses={429, 500}), law).fix
    rule = Rule(status=500, effect=Effect.NOT_APPLIED)
    assert "take out rules[0]" in found(RetryPolicy(rules=[rule]), law).fix
    told = evolve(rule, json={"/type": "not_done"})
    check_policy(RetryPolicy(rules=[told]), examples=50)
    check_policy(RetryPolicy(refusal_statuses={429, 409}), examples=50)


def test_a_server_that_asks_for_time() -> None:
    finding = found(RetryPolicy(pushback="ignore"), "pushback")
    assert finding.fix == 'set pushback to "defer"'
    assert finding.attempts == 2


@pytest.mark.parametrize("policy", [RetryPolicy(max_attempts=10**6), from_urllib3(Retry(total=None, other=0))])
def test_for_ever(policy: RetryPolicy) -> None:
    finding = found(policy, "endless")
    assert finding.verdict == "after 100 attempts the call still goes on"
    assert "max_attempts" in finding.fix
    assert len(finding.story) < 60  # the middle is left out


def test_a_key_that_stays_in_flight() -> None:
    assert "guard.lease" in found(RetryPolicy(guard=Guard(lease=30 * DAY)), "in-flight").fix
    assert "attempt_timeout" in found(RetryPolicy(total_timeout=3 * DAY), "in-flight").fix


@pytest.mark.parametrize(
    ("policy", "fix"),
    [
        (RetryPolicy(max_attempts=1), "max_attempts"),
        (RetryPolicy(budget=RetryBudget(capacity=0.5, per_second=0)), "budget"),
        (
            RetryPolicy(rules=[Rule(status="5xx", retry=False), Rule(status=429, retry=False)], max_attempts=1),
            "max_att",
        ),
    ],
)
def test_a_policy_that_never_retries(policy: RetryPolicy, fix: str) -> None:
    assert fix in found(policy, "never-retries").fix


def test_one_that_puts_everything_off_does_retry() -> None:
    check_policy(RetryPolicy(max_wait=0, backoff=Urllib3Backoff(factor=9)), examples=10, ignore=["endless"])


@frozen
class Odd:
    """A user's backoff."""

    seconds: float

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        return 1 / 0 if self.seconds < 0 else self.seconds


def test_backoffs_of_users_are_tried_too() -> None:
    finding = found(RetryPolicy(backoff=Odd(math.inf)), "long-wait")
    assert (finding.verdict, finding.fix) == ("a wait of inf s", "use another backoff than Odd")
    finding = found(RetryPolicy(backoff=Odd(-1)), "broken")
    assert finding.verdict == "ZeroDivisionError was raised in the middle of the call"
    assert "Odd" in finding.fix


def test_the_change_that_is_named_mends_the_policy() -> None:
    bad = RECIPE.with_(pushback="ignore", refusal_statuses={429, 500}, guard=Guard(lease=30 * DAY))
    laws = {finding.law for finding in check_policy(bad, raises=False, examples=50).findings}
    assert laws == {"duplicate", "false-report", "pushback", "in-flight"}
    good = bad.with_(pushback="defer", refusal_statuses={429}, guard=Guard(), idempotent_methods=IDEMPOTENT)
    check_policy(good, examples=50)


# -- the model


def test_a_key_counts_inside_its_window_only() -> None:
    space = Space(RetryPolicy(), load("resend"))
    for starts, effects in ((4000.0, 1), (2 * DAY, 1)):
        world = World(
            space, Scenario(mode="guarded", faults=(DROPPED,), callers=(Caller(dies=5), Caller(starts=starts)))
        ).play()
        assert len(world.server.effects) == effects
    assert any("refused: SendHeld" in moment.text for moment in world.moments if hasattr(moment, "text"))
    server = world.server
    for now, times in ((10.0, 1), (20.0, 1), (86_420.0, 2)):
        server.receive(FINE, call=9, attempt=None, key="k", now=now)
        assert len(server.of(9, now)) == times


def test_what_is_done_late_is_done() -> None:
    world = World(Space(RetryPolicy(), None), Scenario(faults=(evolve(TIMEOUT, late=45.0),))).play()
    assert (len(world.server.of(0, 30.0)), len(world.server.of(0, 60.0))) == (0, 1)


def test_servers_are_honest() -> None:
    kinds = {(fault.name, fault.applies) for fault in catalogue(RetryPolicy(), None)}
    assert {("500", True), ("500", False), ("dropped", True), ("dropped", False), ("body-unfinished", True)} <= kinds
    assert not {("429", True), ("fine", False), ("503-20", True), ("refused", True), ("400", True)} & kinds
    # A profile's word about incomplete bodies, and about its own answers, is believed.
    whole = Rule(stage=Stage.BODY_UNFINISHED, effect=Effect.NOT_APPLIED)
    kinds = {(fault.name, fault.applies) for fault in catalogue(RetryPolicy(rules=[whole]), None)}
    assert ("body-unfinished", True) not in kinds
    told = {fault.answered: fault.applies for fault in catalogue(RetryPolicy(), load("mailjet"))}
    assert told['400 {"Messages": [{"Status": "success"}]}'] is True
    assert told['400 {"Messages": [{"Status": "error"}]}'] is False


@pytest.mark.parametrize("provider", ["mailersend", "sendgrid", "brevo"])
def test_a_provider_asks_for_time_in_its_own_header(provider: str) -> None:
    profile = load(provider)
    asked = answer(429, hint=20.0, form=profile.hints[0])
    space = Space(RetryPolicy(), profile)
    world = World(space, Scenario(faults=(asked,))).play()
    first, second = (attempt for run in world.runs for attempt in run.attempts)
    assert second.at - (first.ended or 0) == pytest.approx(20, abs=1.1)


# -- what it found in this library


@pytest.mark.parametrize(
    "faults",
    [
        (UNREACHABLE,),  # put off before any arm
        (answer(429), UNREACHABLE),  # between two arms
        (DROPPED, UNREACHABLE),  # held
    ],
)
def test_attempts_and_lifetime_hold_over_runs_that_get_nowhere(faults: tuple[Fault, ...]) -> None:
    """Runs that never came as far as an arm put the call off for ever: nothing of them was counted."""
    scenario = Scenario(method="PUT", mode="guarded", faults=faults, lasting=True)
    world = World(Space(WEB, None), scenario).play()
    assert sum(len(run.attempts) for run in world.runs) == WEB.max_attempts
    assert len(world.runs) > 1
    policy = WEB.with_(max_attempts=1000, lifetime=100)
    world = World(Space(policy, None), scenario).play()
    assert len(world.runs) > 1
    assert LAWS["deadline"].check(world) is None


def test_a_key_whose_owner_died_is_held_though_no_attempt_gets_through() -> None:
    """Another caller put the call off for ever, because only an arm looked at the lease."""
    callers = (Caller(dies=5), Caller(starts=10.0))
    scenario = Scenario(mode="guarded", faults=(DROPPED, UNREACHABLE), lasting=True, callers=callers, dice=0.5)
    world = World(Space(RetryPolicy(max_wait=0), None), scenario).play()
    assert [type(run.refusal).__name__ for run in world.runs[1:]] == ["SendInProgress", "SendHeld"]


@pytest.mark.parametrize("fault", [UNREACHABLE, REFUSED, answer(429)], ids=lambda fault: str(fault.name))
@pytest.mark.parametrize("provider", [None, "resend"])
@pytest.mark.parametrize("back", [0.05, 0.3])
def test_a_clock_that_was_set_back_does_not_put_a_call_off_for_ever(
    fault: Fault, provider: str | None, back: float
) -> None:
    """A run that came before its time by the clock of now, and that got nowhere, was put off again uncounted."""
    space = Space(RetryPolicy(max_wait=0), None if provider is None else load(provider))
    for first, starts in itertools.product([(fault,), (DROPPED, fault)], [(), (0.0,), (0.5,), (0.5, 0.5)]):
        scenario = Scenario(
            mode="guarded",
            faults=first,
            lasting=True,
            callers=(Caller(), *(Caller(starts=at) for at in starts)),
            jumps=(Jump(at=back, seconds=-DAY),),
            dice=0.5,
        )
        world = World(space, scenario).play()
        assert LAWS["endless"].check(world) is None
        assert not world.cut_off


# -- manners


def test_the_same_seed_finds_the_same() -> None:
    first, second = (check_policy(RECIPE, seed=5, examples=50, raises=False) for _ in range(2))
    assert evolve(first, seconds=0) == evolve(second, seconds=0)
    assert pickle.loads(pickle.dumps(PolicyFindings(first))).report == first


def test_what_is_ignored_is_not_looked_for() -> None:
    assert check_policy(RECIPE, ignore=["duplicate"], examples=50).clean


@pytest.mark.parametrize(
    ("name", "value"),
    [("examples", 0), ("examples", 1.5), ("seed", "x"), ("ignore", ["no-such-law"]), ("ignore", "duplicate")],
)
def test_arguments_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=name):
        check_policy(RetryPolicy(), **{name: value})
    with pytest.raises(InvalidArgument, match="policy="):
        check_policy("policy")  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(ConfigurationError, match="no provider is called 'nobody'"):
        check_policy(RetryPolicy(), "nobody")


def test_the_environment_and_the_log_have_no_part_in_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETRYPOLICY_LEDGER", f"sqlite:///{tmp_path / 'sends.db'}")
    monkeypatch.setenv("RETRYPOLICY_MODE", "off")
    with caplog.at_level(logging.DEBUG):
        report = check_policy(RECIPE, raises=False, examples=20)
    assert [finding.law for finding in report.findings] == ["duplicate"]
    assert not caplog.records
    assert not list(tmp_path.iterdir())


def test_without_hypothesis_the_extra_is_named() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; from retrypolicy.testing import check_policy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'retrypolicy[hypothesis]'" in done.stderr.splitlines()[-1]
