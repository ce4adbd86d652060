"""Laws of the protocol: what holds after every statement, whoever says it and whatever was said before.

Each law speaks of one statement and the records before and after it, so a failure shows all that there is to know, and
needs no shorter example.
"""

from __future__ import annotations

import random

import pytest
from attrs import asdict
from hypothesis import settings

from retrypolicy.guard.ledger import COLLECTABLE, Phase, Record, Refused, Taken

from .walks import KEEP, KEY, A, B, Said, walk

NEWS = ("park", "done", "reject", "unknown", "expire", "resolve")
FACTS = ("key", "generation", "first_seen", "first_armed", "last_armed", "attempts", "fingerprint", "label", "provider")
"""Of a call's history: news does not change them."""


@pytest.fixture
def statements() -> list[Said]:
    """As many as the profile of hypothesis asks for, anew for each law: mutation testing runs only those tests that
    were seen to call what it changed, and would see the first one alone."""
    seed = random.randrange(2**32)
    print(f"the seed of these walks is {seed}")
    chance = random.Random(seed)
    return [said for _ in range(8 * settings.default.max_examples) for said in walk(chance)]


def test_only_a_key_that_somebody_has_names_an_owner(statements: list[Said]) -> None:
    """Armed and claimed keys are somebody's, until their lease is over; the others are nobody's."""
    for said in statements:
        record = said.after
        if record is None:
            continue
        if record.phase in (Phase.ARMED, Phase.CLAIMED):
            assert record.owner in (A, B)
            assert record.token is not None
        else:
            assert (record.owner, record.token, record.lease) == (None, None, 0.0)
        if isinstance(said.answer, Taken) and said.changed:
            assert said.take is not None
            assert (record.owner, record.token) == (said.take.owner, said.take.token)
            assert record.lease == said.now + said.take.lease
        if said.operation == "park" and said.changed and record.phase is Phase.CLAIMED:
            lease = said.options.get("lease", 0.0)
            assert record.lease == (said.now + lease if lease else 0.0)  # without one it is free at once


def test_doubt_is_what_is_held_and_what_is_armed_on_top_of_it(statements: list[Said]) -> None:
    """Invariant 5: taint comes with an unknown outcome, stays over new arms, and goes with evidence only."""
    for said in statements:
        if said.after is None:
            continue
        if said.after.phase is Phase.HELD:
            assert said.after.taint
        if said.after.phase in COLLECTABLE:
            assert not said.after.taint
        if isinstance(said.answer, Taken) and said.changed:
            overdue = said.known is not None and said.known.phase is Phase.ARMED  # else it would not have been taken
            assert said.after.taint == (said.known is not None and (said.known.taint or overdue))


def test_fences_rise_with_every_arm_and_takeover_and_never_fall(statements: list[Said]) -> None:
    for said in statements:
        if said.known is None:
            assert said.after is None or not said.changed or said.after.fence == 1
            continue
        assert said.after is not None
        assert said.after.fence >= said.known.fence
        if said.operation in ("park", "reject", "unknown", "done"):
            assert said.after.fence == said.known.fence
        elif said.changed and said.after.phase is not Phase.DONE:
            assert said.after.fence > said.known.fence


def test_news_changes_nothing_of_what_was(statements: list[Said]) -> None:
    for said in statements:
        if said.operation in NEWS and said.known is not None:
            assert said.after is not None
            for name in FACTS:
                assert getattr(said.after, name) == getattr(said.known, name), name


def test_an_arm_goes_on_with_the_call_or_begins_one_after_a_refusal(statements: list[Said]) -> None:
    for said in statements:
        if not isinstance(said.answer, Taken) or not said.changed:
            continue
        assert said.after is not None
        assert said.take is not None
        take, after = said.take, said.after
        earlier = None if said.known is None or said.known.phase is Phase.FAILED else said.known
        assert after.phase is (Phase.ARMED if said.operation == "arm" else Phase.CLAIMED)
        assert after.attempts == take.attempts + (0 if earlier is None else earlier.attempts)
        assert after.first_seen == (said.now if earlier is None else earlier.first_seen)
        assert (after.fingerprint, after.generation) == (take.fingerprint, take.generation)
        assert after.label == (take.label or (said.known.label if said.known is not None else ""))
        assert after.provider == (take.provider or (said.known.provider if said.known is not None else ""))
        assert after.result is None
        if said.operation == "arm":
            assert after.last_armed == said.now
        else:
            assert after.last_armed == (None if said.known is None else said.known.last_armed)
        same_key = said.known is not None and said.known.generation == after.generation
        if said.known is not None and same_key and said.known.first_armed is not None:
            assert after.first_armed == said.known.first_armed
        elif said.operation == "arm":
            assert after.first_armed == said.now  # the provider's window begins with the first use of its key
        else:
            assert after.first_armed is None


def test_the_answer_is_what_stands_in_the_record(statements: list[Said]) -> None:
    for said in statements:
        if isinstance(said.answer, Taken):
            record = said.after
            assert record is not None
            told_so = (record.fence, record.attempts, record.first_seen, record.first_armed, record.taint)
            assert tuple(asdict(said.answer).values()) == told_so
        elif isinstance(said.answer, Refused):
            assert said.answer == Refused(record=said.answer.record, now=said.now)
            assert said.answer.record is said.after


def test_a_wait_is_kept_until_something_else_is_known(statements: list[Said]) -> None:
    """Whatever an attempt's end makes of the key, the wait that was asked for stands in it; an arm ends it."""
    for said in statements:
        if not said.changed or isinstance(said.answer, Refused):
            continue
        assert said.after is not None
        kept = said.operation in ("claim", "park", "reject", "unknown")
        waiting = said.options.get("not_before", 0.0) if kept else 0.0
        if said.operation == "expire":
            assert said.known is not None
            waiting = said.known.not_before
        assert said.after.not_before == waiting


def test_nothing_shortens_how_long_a_record_is_kept(statements: list[Said]) -> None:
    """Invariant 10. It is kept beyond the time at which it is due."""
    for said in statements:
        if said.after is None or not said.changed:
            continue
        if said.known is not None:
            assert said.after.expires >= said.known.expires
        if said.after.phase is Phase.DONE or isinstance(said.answer, Taken) or said.operation == "resolve":
            assert said.after.expires >= said.now + KEEP
        if said.operation in ("claim", "park", "reject") and said.after.phase in COLLECTABLE:
            assert said.after.expires >= said.after.not_before + KEEP


def test_a_statement_that_is_said_again_changes_nothing(statements: list[Said]) -> None:
    """Invariant 9: a reply may get lost at any time."""
    for said in statements:
        if isinstance(said.answer, Taken):
            assert said.again is said.after
            assert said.answer_again == said.answer
        else:
            assert said.again == said.after


def test_what_became_of_it_is_kept_with_it(statements: list[Said]) -> None:
    for said in statements:
        if said.operation in ("done", "resolve") and said.changed:
            assert said.after is not None
            given = said.options.get("result")
            assert said.after.result == (given or {} if said.after.phase is Phase.DONE else given or None)
        elif said.operation in NEWS and said.known is not None:
            assert said.after is not None
            assert said.after.result == said.known.result


def test_good_news_of_a_key_that_is_not_known_makes_a_record_of_it(statements: list[Said]) -> None:
    """Invariant 4: believed from anyone, and of whatever key; nothing else is known of it."""
    for said in statements:
        if said.operation == "done" and said.known is None:
            assert said.after is not None
            assert said.after == Record(
                key=KEY,
                phase=Phase.DONE,
                first_seen=said.now,
                provider=said.options.get("provider", ""),
                result=said.options["result"],
                expires=said.now + KEEP,
            )


def test_each_statement_leads_where_it_should(statements: list[Said]) -> None:
    """The diagram of docs/guard.md: where each statement leads from where, if it comes from the right one in time."""
    for said in statements:
        before, after = said.known, said.after
        if said.operation not in NEWS or said.operation == "done" or not said.options["fits"] or before is None:
            if said.operation in NEWS and said.operation != "done":
                assert not said.changed
            continue
        assert after is not None
        expected = before.phase
        match said.operation, before.phase:
            case "park", Phase.ARMED | Phase.CLAIMED:
                expected = Phase.HELD if before.taint else Phase.CLAIMED
            case "reject", Phase.ARMED | Phase.CLAIMED:
                doubtful = before.taint and not said.options.get("sure", False)
                expected = Phase.HELD if doubtful else Phase.FAILED
            case "unknown", Phase.ARMED:
                expected = Phase.HELD
            case "expire", Phase.ARMED:
                expected = Phase.HELD if before.lease < said.now else Phase.ARMED
            case "resolve", Phase.HELD:
                assert before.last_armed is not None
                if said.options["verdict"] == "applied":
                    expected = Phase.DONE
                elif said.now >= before.last_armed + said.options.get("quiet", 0.0):
                    expected = Phase.FAILED
        assert after.phase is expected
        assert said.changed or after.phase is before.phase
        if said.operation in ("park", "reject") and before.phase in (Phase.ARMED, Phase.CLAIMED):
            assert said.changed
