"""decide(): the safety rule, case by case as design and RFC 9110 have it, and as laws."""

from __future__ import annotations

import inspect

import pytest
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

import retrypolicy.decision
from retrypolicy import (
    Answered,
    Constant,
    Decorrelated,
    Effect,
    Exponential,
    Failed,
    History,
    Limits,
    Reason,
    RetryPolicy,
    Rule,
    Stage,
    decide,
)
from retrypolicy.decision import Defer, Retry, Stop, kind_of, raises, understand
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.outcome import NOTHING_SENT
from retrypolicy.rules import meaning

NOW = 1_800_000_000.0
POLICY = RetryPolicy(backoff=Constant(seconds=1.0))
UNSAFE = ["POST", "PATCH", "CONNECT", "MADEUP"]


def after(outcome: Answered | Failed, policy: RetryPolicy = POLICY, **history: object) -> Retry | Defer | Stop:
    return decide(policy, History(**history), outcome, now=NOW, random=0.5)  # type: ignore[arg-type]


def failed(stage: Stage, **more: object) -> Failed:
    return Failed(error=ConnectionError(), stage=stage, **more)  # type: ignore[arg-type]


# -- the table of answers (design, section 3) --------------------------------------------------------------

ANSWERS = [
    (200, {}, Effect.APPLIED, Reason.SUCCESS),
    (204, {}, Effect.APPLIED, Reason.SUCCESS),
    (303, {}, Effect.APPLIED, Reason.SUCCESS),
    (408, {}, Effect.NOT_APPLIED, None),
    (421, {}, Effect.NOT_APPLIED, None),
    (425, {}, Effect.NOT_APPLIED, None),
    (429, {}, Effect.NOT_APPLIED, None),
    (503, {"Retry-After": "1"}, Effect.NOT_APPLIED, None),
    (503, {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, Effect.NOT_APPLIED, None),
    (503, {"Retry-After": "Fri, 15 Jan 2027 08:00:01 GMT"}, Effect.NOT_APPLIED, None),
    (503, {"Retry-After": "soon"}, Effect.UNKNOWN, Reason.UNSAFE),
    (503, {}, Effect.UNKNOWN, Reason.UNSAFE),
    (400, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (401, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (404, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (409, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (422, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (307, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (308, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (501, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (505, {}, Effect.NOT_APPLIED, Reason.NOT_RETRYABLE),
    (301, {}, Effect.UNKNOWN, Reason.NOT_RETRYABLE),
    (302, {}, Effect.UNKNOWN, Reason.NOT_RETRYABLE),
    (500, {}, Effect.UNKNOWN, Reason.UNSAFE),
    (502, {}, Effect.UNKNOWN, Reason.UNSAFE),
    (504, {}, Effect.UNKNOWN, Reason.UNSAFE),
    (599, {}, Effect.UNKNOWN, Reason.NOT_RETRYABLE),
]


@pytest.mark.parametrize(("status", "headers", "effect", "stop"), ANSWERS)
def test_what_an_answer_to_a_post_means(
    status: int, headers: dict[str, str], effect: Effect, stop: Reason | None
) -> None:
    outcome = Answered(status=status, headers=headers)
    assert meaning(outcome).effect is effect
    decision = after(outcome, method="POST")
    if stop is None:
        assert decision == Retry(delay=1.0, reason=Reason.NOT_APPLIED)
    else:
        assert decision == Stop(reason=stop)


def test_a_date_decades_away_says_nothing() -> None:
    """Seen from `now`: a clock is not needed for it, but a time is."""
    far = Answered(status=503, headers={"Retry-After": "Sun, 06 Nov 2061 08:49:37 GMT"})
    for policy in (POLICY, POLICY.with_(rules=[Rule(status=599, retry=False)])):
        assert after(far, policy, method="POST") == Stop(reason=Reason.UNSAFE)


STAGES = [
    (Stage.NOT_CONNECTED, Effect.NOT_APPLIED, Retry(delay=1.0, reason=Reason.NOT_SENT)),
    (Stage.NOT_SENT, Effect.NOT_APPLIED, Retry(delay=1.0, reason=Reason.NOT_SENT)),
    (Stage.HEAD_UNFINISHED, Effect.NOT_APPLIED, Retry(delay=1.0, reason=Reason.NOT_SENT)),
    (Stage.BODY_UNFINISHED, Effect.UNKNOWN, Stop(reason=Reason.UNSAFE)),
    (Stage.SENT, Effect.UNKNOWN, Stop(reason=Reason.UNSAFE)),
    (Stage.ANSWERING, Effect.UNKNOWN, Stop(reason=Reason.UNSAFE)),
    (Stage.UNOBSERVED, Effect.UNKNOWN, Stop(reason=Reason.UNSAFE)),
]


@pytest.mark.parametrize(("stage", "effect", "decision"), STAGES)
def test_what_a_failed_post_means(stage: Stage, effect: Effect, decision: Retry | Stop) -> None:
    assert meaning(failed(stage)).effect is effect
    assert after(failed(stage), method="POST") == decision


def test_a_provider_that_never_acts_on_half_a_body_lets_it_be_sent_again() -> None:
    rule = Rule(stage=Stage.BODY_UNFINISHED, effect=Effect.NOT_APPLIED)
    decision = after(failed(Stage.BODY_UNFINISHED), POLICY.with_(rules=[rule]), method="POST")
    assert decision == Retry(delay=1.0, reason=Reason.NOT_APPLIED)


@pytest.mark.parametrize("method", sorted(IDEMPOTENT))
def test_idempotent_methods_are_repeated_on_unknown(method: str) -> None:
    """RFC 9110 9.2.2: idempotent methods can be repeated automatically."""
    assert after(failed(Stage.SENT), method=method) == Retry(delay=1.0, reason=Reason.IDEMPOTENT)
    assert after(Answered(status=502), method=method) == Retry(delay=1.0, reason=Reason.IDEMPOTENT)


def test_post_among_the_idempotent_methods_is_named_for_what_it_is() -> None:
    policy = POLICY.with_(idempotent_methods={"POST"})
    assert after(failed(Stage.SENT), policy, method="POST") == Retry(delay=1.0, reason=Reason.ACCEPTED_RISK)


def test_allowed_methods_gate_what_was_sent_but_not_what_was_not() -> None:
    nothing = POLICY.with_(allowed_methods=())
    assert after(Answered(status=429), nothing) == Stop(reason=Reason.METHOD_NOT_ALLOWED)
    assert after(failed(Stage.SENT), nothing) == Stop(reason=Reason.METHOD_NOT_ALLOWED)
    assert after(failed(Stage.NOT_CONNECTED), nothing) == Retry(delay=1.0, reason=Reason.NOT_SENT)


def test_a_key_that_is_honoured_lets_an_unknown_post_go_again_inside_its_window() -> None:
    assert after(failed(Stage.SENT), method="POST", key_until=NOW + 60) == Retry(delay=1.0, reason=Reason.KEYED)
    assert after(failed(Stage.SENT), method="POST", key_until=NOW + 1.0) == Stop(reason=Reason.UNSAFE)
    assert after(failed(Stage.SENT), method="POST", key_until=NOW - 1) == Stop(reason=Reason.UNSAFE)


def test_a_refusal_after_an_unknown_attempt_proves_nothing() -> None:
    """Design, section 3: a call's effect is that of its worst attempt."""
    assert after(Answered(status=429), method="POST", tainted=True) == Stop(reason=Reason.UNSAFE)
    assert after(failed(Stage.NOT_CONNECTED), method="POST", tainted=True) == Stop(reason=Reason.UNSAFE)
    sure = POLICY.with_(rules=[Rule(status=429, effect=Effect.NOT_APPLIED, from_key_layer=True)])
    assert isinstance(after(Answered(status=429), sure, method="POST", tainted=True), Retry)


def test_errors_that_would_come_again_are_not_repeated() -> None:
    assert after(failed(Stage.NOT_CONNECTED, retry_limit=0)) == Stop(reason=Reason.PERMANENT)
    once = failed(Stage.NOT_CONNECTED, retry_limit=1)
    assert isinstance(after(once), Retry)
    assert after(once, attempts=2, streak=1) == Stop(reason=Reason.PERMANENT)


def test_an_interrupt_is_never_retried() -> None:
    for error in (KeyboardInterrupt(), SystemExit(), GeneratorExit()):
        outcome = Failed(error=error, stage=Stage.NOT_CONNECTED)
        assert after(outcome) == Stop(reason=Reason.INTERRUPTED)
        assert after(Answered(status=200, body_error=error)) == Stop(reason=Reason.INTERRUPTED)


def test_a_lost_body_is_fetched_again_only_where_a_repeat_is_safe() -> None:
    lost = Answered(status=200, body_error=OSError())
    assert after(lost, method="GET") == Retry(delay=1.0, reason=Reason.IDEMPOTENT)
    assert after(lost, method="POST") == Stop(reason=Reason.UNSAFE)
    assert after(lost, method="POST", key_until=NOW + 60) == Retry(delay=1.0, reason=Reason.KEYED)


def test_a_body_that_cannot_be_replayed_stops_the_call() -> None:
    assert after(Answered(status=429), replayable=False) == Stop(reason=Reason.BODY_NOT_REPLAYABLE)


def test_attempts_count_the_first() -> None:
    policy = POLICY.with_(max_attempts=3)
    assert isinstance(after(Answered(status=429), policy, attempts=2), Retry)
    assert after(Answered(status=429), policy, attempts=3) == Stop(reason=Reason.ATTEMPTS_EXHAUSTED)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(failed(Stage.NOT_CONNECTED), "connect"), (failed(Stage.SENT), "read"), (Answered(status=500), "status")],
)
def test_limits_count_each_kind_of_failure(outcome: Answered | Failed, kind: str) -> None:
    policy = POLICY.with_(limits=Limits(**{kind: 1}))
    assert isinstance(after(outcome, policy), Retry)
    assert after(outcome, policy, spent={kind: 1}) == Stop(reason=Reason.LIMIT_EXHAUSTED)
    assert isinstance(after(outcome, policy, spent={"other": 9}), Retry)


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (failed(Stage.NOT_CONNECTED), "connect"),
        (failed(Stage.NOT_SENT), "connect"),
        (failed(Stage.SENT), "read"),
        (failed(Stage.SENT, counter="none"), "read"),
        (failed(Stage.NOT_CONNECTED, counter="none"), "connect"),
        (failed(Stage.NOT_CONNECTED, counter="read"), "read"),
        (failed(Stage.SENT, counter="other"), "other"),
        (Answered(status=500), "status"),
        (Answered(status=200, body_error=OSError()), "read"),
    ],
)
def test_the_transport_may_say_which_kind_a_failure_is(outcome: Answered | Failed, kind: str) -> None:
    assert kind_of(outcome) == kind


COUNTING = POLICY.with_(limits=Limits(hint=30.0))


def test_with_limits_the_kind_alone_says_what_is_repeated() -> None:
    assert after(failed(Stage.NOT_CONNECTED, counter="connect", retry_limit=0), COUNTING).reason is Reason.NOT_SENT
    assert after(failed(Stage.NOT_CONNECTED, counter="none"), COUNTING) == Stop(reason=Reason.NOT_RETRYABLE)
    assert after(failed(Stage.NOT_CONNECTED, counter="none")).reason is Reason.NOT_SENT
    assert after(failed(Stage.NOT_CONNECTED, retry_limit=0), COUNTING) == Stop(reason=Reason.PERMANENT)


def test_with_limits_methods_count_for_reads_and_answers_sent_or_not() -> None:
    policy = COUNTING.with_(allowed_methods={"GET"})
    not_allowed = Stop(reason=Reason.METHOD_NOT_ALLOWED)
    assert after(failed(Stage.NOT_CONNECTED), policy, method="POST").reason is Reason.NOT_SENT
    assert after(failed(Stage.NOT_CONNECTED, counter="read"), policy, method="POST") == not_allowed
    assert after(Answered(status=429), policy, method="POST") == not_allowed
    assert after(failed(Stage.SENT, counter="other"), policy, method="PUT").reason is Reason.IDEMPOTENT
    for outcome in failed(Stage.SENT), Answered(status=429):
        assert isinstance(after(outcome, policy, method="GET"), Retry)


def test_without_limits_methods_count_for_what_was_sent_whatever_its_kind() -> None:
    policy = POLICY.with_(allowed_methods={"GET"})
    sent = failed(Stage.SENT, counter="other")
    assert after(sent, policy, method="PUT") == Stop(reason=Reason.METHOD_NOT_ALLOWED)
    assert after(failed(Stage.NOT_SENT, counter="read"), policy, method="PUT").reason is Reason.NOT_SENT


def test_with_limits_a_lost_body_is_not_fetched_again() -> None:
    assert after(Answered(status=200, body_error=OSError()), COUNTING) == Stop(reason=Reason.NOT_RETRYABLE)


def test_with_limits_retry_after_takes_the_place_of_the_backoff() -> None:
    policy = COUNTING.with_(backoff=Constant(seconds=10))
    for seconds, delay in [("5", 5.0), ("1", 1.0), ("0", 10.0), ("20", 20.0), ("40", 30.0)]:
        assert after(Answered(status=429, headers={"Retry-After": seconds}), policy).delay == delay  # type: ignore[union-attr]
    endless = policy.with_(limits=Limits())
    assert after(Answered(status=429, headers={"Retry-After": "40"}), endless).delay == 40  # type: ignore[union-attr]


def test_with_limits_no_other_header_is_read() -> None:
    headers = {"X-Should-Retry": "false", "RateLimit-Reset": "30", "RateLimit-Remaining": "0"}
    assert after(Answered(status=429, headers=headers), COUNTING) == Retry(delay=1.0, reason=Reason.NOT_APPLIED)
    assert after(Answered(status=429, headers=headers | {"Retry-After": "5"}), COUNTING).delay == 5  # type: ignore[union-attr]
    dated = {"Retry-After": "Sun, 06 Nov 1994 08:49:47 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert after(Answered(status=429, headers=dated), COUNTING).delay == 10  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("limits", "reason", "status", "raised"),
    [
        (None, Reason.ATTEMPTS_EXHAUSTED, 500, True),
        (None, Reason.ATTEMPTS_EXHAUSTED, 404, True),
        (None, Reason.UNSAFE, 500, False),
        (None, Reason.SUCCESS, 200, False),
        (Limits(), Reason.LIMIT_EXHAUSTED, 500, True),
        (Limits(), Reason.ATTEMPTS_EXHAUSTED, 500, True),
        (Limits(), Reason.UNSAFE, 500, True),
        (Limits(), Reason.UNSAFE, 404, False),
        (Limits(), Reason.METHOD_NOT_ALLOWED, 500, False),
        (Limits(), Reason.SUCCESS, 200, False),
    ],
)
def test_when_an_answer_is_raised_as_an_error(limits: Limits | None, reason: Reason, status: int, raised: bool) -> None:
    """`on_exhausted`: where retries were left out that the policy would have made."""
    policy, stop = POLICY.with_(on_exhausted="raise", limits=limits), Stop(reason=reason)
    assert raises(policy, Answered(status=status), stop) is raised
    assert not raises(policy.with_(on_exhausted="return"), Answered(status=status), stop)
    assert not raises(policy, Answered(status=status, body_error=OSError()), stop)  # which is raised itself
    assert not raises(policy, failed(Stage.SENT), stop)


# -- waits --------------------------------------------------------------


def answer(seconds: float) -> Answered:
    return Answered(status=429, headers={"Retry-After": str(seconds)})


@pytest.mark.parametrize(
    ("pushback", "decision"),
    [
        ("defer", Defer(until=NOW + 90, reason=Reason.WAIT_TOO_LONG)),
        ("cap", Retry(delay=60.0, reason=Reason.NOT_APPLIED)),
        ("stop", Stop(reason=Reason.PUSHBACK_TOO_LONG)),
        ("ignore", Retry(delay=1.0, reason=Reason.NOT_APPLIED)),
    ],
)
def test_a_hint_beyond_max_wait(pushback: str, decision: object) -> None:
    assert after(answer(90), POLICY.with_(pushback=pushback), method="POST") == decision


@pytest.mark.parametrize("pushback", ["defer", "cap", "stop"])
def test_a_hint_of_just_max_wait_is_waited(pushback: str) -> None:
    assert after(answer(60), POLICY.with_(pushback=pushback)) == Retry(delay=60.0, reason=Reason.NOT_APPLIED)


def test_a_hint_is_a_floor_under_the_delay() -> None:
    assert after(answer(5)) == Retry(delay=5.0, reason=Reason.NOT_APPLIED)
    assert after(answer(0)) == Retry(delay=1.0, reason=Reason.NOT_APPLIED)


def test_a_server_that_says_no_is_obeyed() -> None:
    assert after(Answered(status=503, headers={"X-Should-Retry": "false"})) == Stop(reason=Reason.SERVER_SAID_NO)
    said = Answered(status=409, headers={"X-Should-Retry": "true"})
    assert after(said, method="POST") == Retry(delay=1.0, reason=Reason.NOT_APPLIED)


def test_the_end_of_a_run_defers_and_the_end_of_a_call_stops() -> None:
    run = POLICY.with_(total_timeout=10.0)
    assert isinstance(after(answer(1), run, elapsed=8.9), Retry)
    assert after(answer(1), run, elapsed=9.0) == Defer(until=NOW + 1, reason=Reason.RUN_OVER)
    call = POLICY.with_(lifetime=100.0)
    assert after(answer(1), call, first_seen=NOW - 99) == Stop(reason=Reason.LIFETIME_OVER)
    assert isinstance(after(answer(1), call, first_seen=NOW - 98), Retry)
    assert after(answer(1), not_after=NOW + 1) == Stop(reason=Reason.LIFETIME_OVER)
    assert after(answer(90), call, first_seen=NOW - 50) == Stop(reason=Reason.LIFETIME_OVER)


def test_a_call_ends_at_the_earlier_of_its_two_ends() -> None:
    policy = POLICY.with_(lifetime=100.0)
    for first_seen, not_after, left in [
        (None, None, 100),
        (NOW - 40, None, 60),
        (NOW - 40, NOW + 50, 50),
        (None, NOW + 150, 100),
    ]:
        for seconds, reason in [(left - 1, Reason.WAIT_TOO_LONG), (left, Reason.LIFETIME_OVER)]:
            short = policy.with_(max_wait=seconds - 1)
            assert after(answer(seconds), short, first_seen=first_seen, not_after=not_after).reason is reason


def test_who_gives_the_hint() -> None:
    """A rule's own comes first, then the provider's header, then the common ones; an error has none but a rule's."""
    answered = Answered(status=429, headers={"Retry-After": "7"}, pushback=5.0)
    rule = POLICY.with_(rules=[Rule(status=429, pushback=3.0)])
    for policy, outcome, delay in [
        (rule, answered, 3.0),
        (POLICY, answered, 5.0),
        (POLICY, answer(7), 7.0),
        (POLICY, failed(Stage.NOT_CONNECTED), 1.0),
        (rule.with_(pushback="ignore"), answered, 1.0),
    ]:
        assert after(outcome, policy).delay == delay  # type: ignore[union-attr]


def test_a_repeat_that_would_come_too_late_for_the_key_is_not_made() -> None:
    lost = failed(Stage.SENT)
    assert after(lost, method="POST", key_until=NOW + 1.0) == Stop(reason=Reason.UNSAFE)
    assert after(lost, method="POST", key_until=NOW + 1.1) == Retry(delay=1.0, reason=Reason.KEYED)
    assert after(lost, method="POST", key_until=NOW) == Stop(reason=Reason.UNSAFE)
    assert after(lost, method="POST", key_until=NOW + 1.0, accepts_duplicates=True) == Stop(reason=Reason.UNSAFE)
    assert after(lost, method="POST", key_until=NOW, accepts_duplicates=True).reason is Reason.ACCEPTED_RISK
    assert after(lost, method="PUT", key_until=NOW).reason is Reason.IDEMPOTENT


def test_a_rule_may_ask_for_another_answer_where_a_repeat_is_safe() -> None:
    policy = POLICY.with_(rules=[Rule(status=200, retry=True)])
    assert after(Answered(status=200), policy, method="GET").reason is Reason.IDEMPOTENT
    assert after(Answered(status=200), policy, method="POST") == Stop(reason=Reason.SUCCESS)
    never = POLICY.with_(rules=[Rule(status=429, retry=False)])
    assert after(Answered(status=429), never) == Stop(reason=Reason.NOT_RETRYABLE)
    assert after(Answered(status=429, body_error=OSError()), never).reason is Reason.NOT_APPLIED  # the body is lost


def test_a_rule_may_speak_of_attempts_that_failed_and_of_what_was_before() -> None:
    for said, reason in [(False, Reason.NOT_RETRYABLE), (True, Reason.NOT_SENT), (None, Reason.NOT_SENT)]:
        policy = POLICY.with_(rules=[Rule(stage=Stage.NOT_CONNECTED, retry=said, pushback=4.0)])
        decision = after(failed(Stage.NOT_CONNECTED), policy, method="POST")
        assert decision.reason is reason
        assert isinstance(decision, Stop) or decision == Retry(delay=4.0, reason=reason)
    doubtful = POLICY.with_(rules=[Rule(status=404, tainted=True, retry=True)])
    assert isinstance(after(Answered(status=404), doubtful, tainted=True), Retry)
    assert isinstance(after(Answered(status=404), doubtful, tainted=False), Stop)


def test_a_backoff_may_build_on_the_wait_before() -> None:
    policy = POLICY.with_(backoff=Decorrelated(base=1.0, cap=30.0))
    assert after(Answered(status=429), policy, previous=5.0).delay == 8.0  # type: ignore[union-attr] # from 1 to 15
    assert after(Answered(status=429), policy).delay == 2.0  # type: ignore[union-attr] # from 1 to 3


def test_refusal_statuses_count_beside_rules() -> None:
    for rules in ([], [Rule(status=599, retry=False)]):
        policy = POLICY.with_(rules=rules, refusal_statuses={500})
        assert after(Answered(status=500), policy, method="POST").reason is Reason.NOT_APPLIED
        assert after(Answered(status=502), policy, method="POST").reason is Reason.UNSAFE


def test_a_rule_can_look_for_a_text_in_the_body() -> None:
    policy = POLICY.with_(rules=[Rule(status=200, body="no such \u20ac", effect=Effect.NOT_APPLIED, retry=False)])
    for body in ("Sorry, no such \u20ac.", "no such \u20ac"):
        answer = Answered(status=200, body=body.encode())
        assert after(answer, policy, method="POST").reason is Reason.NOT_RETRYABLE
        assert understand(policy, History(method="POST"), answer, NOW)[1] is Effect.NOT_APPLIED
    for other in (b"No such \xe2\x82\xac", b"no such \xe2", b"", None):  # None: nobody read it
        assert after(Answered(status=200, body=other), policy, method="POST").reason is Reason.SUCCESS
    assert after(Answered(status=500, body="no such \u20ac".encode()), policy, method="POST").reason is Reason.UNSAFE


def test_hints_of_whether_to_retry_can_be_ignored() -> None:
    no = Answered(status=503, headers={"X-Should-Retry": "false"})
    assert isinstance(after(no, POLICY.with_(pushback="ignore")), Retry)
    assert isinstance(after(Answered(status=503, headers={"X-Should-Retry": "maybe"})), Retry)


def test_a_redirect_is_harmless_only_for_a_request_that_was() -> None:
    """RFC 9110 15.4.2: a POST may be made anew as a GET."""
    for method in ("GET", "HEAD", "POST", "PUT"):
        for policy in (POLICY, POLICY.with_(rules=[Rule(status=599, retry=False)])):
            _, effect = understand(policy, History(method=method), Answered(status=302), NOW)
            assert (effect is Effect.UNKNOWN) == (method not in ("GET", "HEAD"))


def test_the_budget_is_asked_last() -> None:
    def without(outcome: Answered | Failed, **history: object) -> object:
        return decide(POLICY, History(**history), outcome, now=NOW, random=0.5, permit=False)  # type: ignore[arg-type]

    assert without(Answered(status=429)) == Stop(reason=Reason.BUDGET_EXHAUSTED)
    assert without(Answered(status=200)) == Stop(reason=Reason.SUCCESS)
    assert without(Answered(status=429), attempts=4) == Stop(reason=Reason.ATTEMPTS_EXHAUSTED)
    assert without(answer(90)) == Defer(until=NOW + 90, reason=Reason.WAIT_TOO_LONG)


# -- laws --------------------------------------------------------------

outcomes = st.one_of(
    st.builds(
        Answered,
        status=st.integers(100, 599) | st.sampled_from(sorted(POLICY.status_forcelist)),
        headers=st.dictionaries(st.sampled_from(["Retry-After", "X-Should-Retry", "Date"]), st.text(max_size=12))
        | st.builds(lambda seconds: {"Retry-After": str(seconds)}, st.integers(0, 120)),
        body_error=st.none() | st.just(OSError()),
    ),
    st.builds(
        Failed, error=st.just(OSError()), stage=st.sampled_from(Stage), retry_limit=st.none() | st.integers(0, 2)
    ),
)
histories = st.builds(
    History,
    method=st.sampled_from([*sorted(IDEMPOTENT), *UNSAFE]),
    attempts=st.integers(1, 12) | st.just(1),
    elapsed=st.floats(0, 1000) | st.just(0.0),
    first_seen=st.none() | st.floats(NOW - 1000, NOW),
    previous=st.none() | st.floats(0, 100),
    tainted=st.booleans(),
    replayable=st.booleans(),
    key_until=st.none() | st.floats(NOW - 100, NOW + 100),
    not_after=st.none() | st.floats(NOW - 100, NOW + 100),
    streak=st.integers(0, 3),
)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 10),
    max_wait=st.floats(0, 100),
    total_timeout=st.none() | st.floats(0.1, 1000),
    lifetime=st.none() | st.floats(0.1, 1000),
    allowed_methods=st.none() | st.frozensets(st.sampled_from(["GET", "POST", "PUT"])),
    status_forcelist=st.frozensets(st.integers(100, 599), max_size=4) | st.just(RetryPolicy().status_forcelist),
    backoff=st.builds(
        Exponential, base=st.floats(0, 10), cap=st.floats(10, 100), jitter=st.sampled_from(["none", "full"])
    ),
    pushback=st.sampled_from(["defer", "cap", "stop", "ignore"]),
)
randoms = st.floats(0, 1, exclude_max=True)


@given(policies, histories, st.sampled_from(UNSAFE), outcomes, randoms, st.booleans())
def test_an_unsafe_call_of_unknown_effect_is_never_repeated_without_an_open_key(
    policy: RetryPolicy, history: History, method: str, outcome: Answered | Failed, random: float, permit: bool
) -> None:
    """Design, section 3, rule 4."""
    history = evolve(history, method=method)
    assume(history.tainted or meaning(outcome).effect is not Effect.NOT_APPLIED)
    decision = decide(policy, history, outcome, now=NOW, random=random, permit=permit)
    if not isinstance(decision, Stop):
        due = NOW + decision.delay if isinstance(decision, Retry) else decision.until
        assert history.key_until is not None
        assert due < history.key_until


@given(policies, histories, outcomes, randoms, st.booleans())
def test_no_retry_sleeps_past_a_bound(
    policy: RetryPolicy, history: History, outcome: Answered | Failed, random: float, permit: bool
) -> None:
    """Design, section 4: nothing above max_wait is slept, and no sleep is planned past a deadline."""
    decision = decide(policy, history, outcome, now=NOW, random=random, permit=permit)
    if isinstance(decision, Retry):
        assert permit
        assert 0 <= decision.delay <= policy.max_wait
        assert history.attempts < policy.max_attempts
        if policy.total_timeout is not None:
            assert history.elapsed + decision.delay < policy.total_timeout
    if not isinstance(decision, Stop):
        due = NOW + decision.delay if isinstance(decision, Retry) else decision.until
        assert history.not_after is None or due < history.not_after
        if policy.lifetime is not None:
            assert due < (NOW if history.first_seen is None else history.first_seen) + policy.lifetime


@given(histories, st.sampled_from(sorted(NOTHING_SENT, key=lambda s: s.value)), randoms)
def test_what_was_not_sent_is_retried(history: History, stage: Stage, random: float) -> None:
    """Design, section 3, rule 1: any method, while attempts, time and the body allow it."""
    history = evolve(history, attempts=min(history.attempts, 3), replayable=True, tainted=False, not_after=None)
    assert isinstance(decide(POLICY, history, failed(stage), now=NOW, random=random), Retry)


@given(policies, histories, outcomes, randoms)
def test_decide_is_pure(policy: RetryPolicy, history: History, outcome: Answered | Failed, random: float) -> None:
    """The same arguments give the same decision."""
    first = decide(policy, history, outcome, now=NOW, random=random)
    assert decide(policy, history, outcome, now=NOW, random=random) == first


def test_decide_reads_no_clock_no_chance_and_no_environment() -> None:
    imported = {line.split()[1] for line in inspect.getsource(retrypolicy.decision).splitlines() if line[:5] == "from "}
    assert imported == {
        "__future__",
        "collections.abc",
        "attrs",
        "typing",
        "retrypolicy.http.methods",
        "retrypolicy.http.pushback",
        "retrypolicy.outcome",
        "retrypolicy.policy",
        "retrypolicy.rules",
    }
