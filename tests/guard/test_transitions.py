"""The protocol, sentence by sentence. The stores are compared with it by `LedgerMachine`, its safety is checked in
test_model."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import evolve

from retrypolicy.guard import transitions as t
from retrypolicy.guard.ledger import Filter, Phase, Record, Refused, Take, Taken

KEY, A, B, F, G = b"k" * 32, b"A" * 16, b"B" * 16, b"f" * 32, b"g" * 32
KEEP = 1000.0


def take(owner: bytes = A, token: bytes = b"1", **more: Any) -> Take:
    return Take(**{"key": KEY, "owner": owner, "token": token, "fingerprint": F, "lease": 10.0, **more})


def armed(now: float = 100.0, **more: Any) -> Record:
    record, answer = t.arm(None, take(**more), now, KEEP)
    assert isinstance(answer, Taken)
    assert record is not None
    return record


def held(now: float = 100.0) -> Record:
    record = t.unknown(armed(now), A, 1)
    assert record is not None
    assert record.phase is Phase.HELD
    return record


def failed(now: float = 100.0, **more: Any) -> Record:
    record = t.reject(armed(now), A, 1, now, KEEP, **more)
    assert record is not None
    assert record.phase is Phase.FAILED
    return record


def parked(now: float = 100.0, **more: Any) -> Record:
    record = t.park(armed(now), A, 1, now, KEEP, **{"lease": 10.0, **more})
    assert record is not None
    assert record.phase is Phase.CLAIMED
    return record


def done(now: float = 100.0) -> Record:
    return t.done(armed(now), KEY, {"status": 200}, now, KEEP)


def test_an_unseen_key_is_armed() -> None:
    record, answer = t.arm(None, take(label="order 42", provider="resend", attempts=3), 100.0, KEEP)
    assert answer == Taken(fence=1, attempts=3, first_seen=100.0, first_armed=100.0, tainted=False)
    assert record == Record(
        key=KEY, phase=Phase.ARMED, owner=A, token=b"1", lease=110.0, first_seen=100.0, first_armed=100.0,
        last_armed=100.0, attempts=3, fingerprint=F, label="order 42", provider="resend", expires=1100.0,
    )  # fmt: skip


def test_the_same_arm_again_changes_nothing() -> None:
    record = armed()
    again, answer = t.arm(record, take(), 105.0, KEEP)
    assert again is record
    assert isinstance(answer, Taken)
    assert answer.fence == 1


@pytest.mark.parametrize("owner", [A, B])
def test_nobody_else_arms_a_live_attempt_not_even_another_arm_of_the_same_call(owner: bytes) -> None:
    record = armed()
    after, answer = t.arm(record, take(owner, b"2", window=math.inf), 110.0, KEEP)
    assert after is record
    assert answer == Refused(record=record, now=110.0)


def test_a_dead_owner_leaves_a_held_key_never_a_free_one() -> None:
    after, answer = t.arm(armed(), take(B, b"2"), 110.1, KEEP)
    assert after is not None
    assert isinstance(answer, Refused)
    assert (after.phase, after.taint, after.fence, after.owner) == (Phase.HELD, True, 2, None)
    assert answer.record == after


def test_a_held_key_is_armed_again_only_inside_its_window() -> None:
    record = held(100.0)
    for window, now, taken in [(None, 101.0, False), (50.0, 149.9, True), (50.0, 150.0, False), (math.inf, 9e9, True)]:
        after, answer = t.arm(record, take(B, b"2", window=window), now, KEEP)
        assert isinstance(answer, Taken) is taken, (window, now)
        if isinstance(answer, Taken):
            assert answer.tainted
            assert answer.first_armed == 100.0
            assert (answer.fence, answer.attempts) == (2, 2)
        else:
            assert after is record


def test_a_clock_that_was_set_back_closes_the_window() -> None:
    """Nobody knows how long ago the first arm really was."""
    record = held(100.0)
    after, answer = t.arm(record, take(B, b"2", window=50.0), 99.9, KEEP)
    assert isinstance(answer, Refused)
    assert after is record
    _, answer = t.arm(record, take(B, b"2", window=math.inf), 99.9, KEEP)  # duplicates are accepted
    assert isinstance(answer, Taken)
    again, _ = t.arm(record, take(B, b"2", window=50.0), 120.0, KEEP)
    again = t.unknown(again, B, 2)
    _, answer = t.arm(again, take(A, b"3", window=50.0), 119.0, KEEP)  # since the last arm, too
    assert isinstance(answer, Refused)


@pytest.mark.parametrize("other", [{"fingerprint": G}, {"generation": 2}, {"fingerprint": G, "generation": 2}])
def test_a_held_key_is_never_armed_with_other_content_or_another_outgoing_key(other: dict[str, Any]) -> None:
    _, answer = t.arm(held(), take(B, b"2", window=math.inf, **other), 101.0, KEEP)
    assert isinstance(answer, Refused)


def test_a_held_key_cannot_be_claimed() -> None:
    assert isinstance(t.claim(held(), take(B, b"2", window=math.inf), 101.0, KEEP)[1], Refused)


def test_what_is_done_stays_done() -> None:
    record = done()
    assert isinstance(t.arm(record, take(B, b"2", window=math.inf), 101.0, KEEP)[1], Refused)
    assert isinstance(t.claim(record, take(B, b"2"), 101.0, KEEP)[1], Refused)
    assert t.done(record, KEY, {"status": 202}, 101.0, KEEP) is record
    for after in (
        t.park(record, A, 1, 101.0, KEEP),
        t.reject(record, A, 1, 101.0, KEEP, sure=True),
        t.unknown(record, A, 1),
        t.expire(record, 1, 1e9),
        t.resolve(record, 1, "not_applied", 101.0, KEEP),
    ):
        assert after is record


@pytest.mark.parametrize("before", [None, armed(), held(), failed(), parked()])
def test_good_news_is_believed_from_anyone(before: Record | None) -> None:
    after = t.done(before, KEY, {"status": 200}, 200.0, KEEP)
    assert (after.phase, after.taint, after.owner, after.result) == (Phase.DONE, False, None, {"status": 200})
    assert after.expires == 1200.0


def test_bad_news_and_permissions_only_under_the_current_fence() -> None:
    record = armed()
    for owner, fence in [(B, 1), (A, 0), (A, 2)]:
        assert t.park(record, owner, fence, 101.0, KEEP) is record
        assert t.reject(record, owner, fence, 101.0, KEEP, sure=True) is record
        assert t.unknown(record, owner, fence) is record


def test_a_late_copy_of_an_old_park_does_not_free_the_next_attempt() -> None:
    second, answer = t.arm(parked(), take(token=b"2"), 101.0, KEEP)
    assert isinstance(answer, Taken)
    assert answer.fence == 2
    assert t.park(second, A, 1, 102.0, KEEP) is second


def test_between_attempts_the_key_belongs_to_its_owner_while_the_lease_runs() -> None:
    record = parked(100.0)
    assert isinstance(t.arm(record, take(B, b"2"), 110.0, KEEP)[1], Refused)
    assert isinstance(t.arm(record, take(A, b"2"), 110.0, KEEP)[1], Taken)
    assert isinstance(t.arm(record, take(A, b"2"), 111.0, KEEP)[1], Taken)
    assert isinstance(t.arm(record, take(B, b"2"), 110.1, KEEP)[1], Taken)
    assert isinstance(t.arm(record, take(A, b"2", window=None), 105.0, KEEP)[1], Taken)


def test_a_deferred_key_is_free_but_not_before_its_time() -> None:
    record = parked(100.0, lease=0.0, not_before=500.0)
    assert isinstance(t.arm(record, take(B, b"2"), 499.0, KEEP)[1], Refused)
    assert isinstance(t.arm(record, take(B, b"2"), 500.0, KEEP)[1], Taken)
    assert isinstance(t.arm(record, take(A, b"2"), 101.0, KEEP)[1], Taken)


def test_a_refused_key_begins_a_new_call_and_keeps_the_time_of_its_first_byte() -> None:
    record = failed(100.0, not_before=150.0)
    assert isinstance(t.arm(record, take(B, b"2"), 149.0, KEEP)[1], Refused)
    after, answer = t.arm(record, take(B, b"2"), 150.0, KEEP)
    assert answer == Taken(fence=2, attempts=1, first_seen=150.0, first_armed=100.0, tainted=False)
    assert after is not None
    assert after.not_before == 0.0


@pytest.mark.parametrize("before", [failed(), parked()])
def test_other_content_needs_another_outgoing_key_once_one_went_out(before: Record) -> None:
    assert isinstance(t.arm(before, take(token=b"2", fingerprint=G), 101.0, KEEP)[1], Refused)
    assert isinstance(t.arm(before, take(token=b"2", fingerprint=G, generation=3), 101.0, KEEP)[1], Refused)
    after, answer = t.arm(before, take(token=b"2", fingerprint=G, generation=2), 101.0, KEEP)
    assert isinstance(answer, Taken)
    assert answer.first_armed == 101.0  # the provider's window starts anew
    assert after is not None
    assert (after.fingerprint, after.generation) == (G, 2)


def test_other_content_keeps_the_outgoing_key_if_none_went_out() -> None:
    record, _ = t.claim(None, take(lease=0.0), 100.0, KEEP)
    assert isinstance(t.arm(record, take(B, b"2", fingerprint=G), 101.0, KEEP)[1], Taken)
    assert isinstance(t.arm(record, take(B, b"2", fingerprint=G, generation=2), 101.0, KEEP)[1], Refused)


def test_a_refusal_on_a_tainted_key_proves_nothing_unless_it_is_sure() -> None:
    record, _ = t.arm(held(), take(B, b"2", window=50.0), 101.0, KEEP)
    doubtful = t.reject(record, B, 2, 102.0, KEEP, not_before=200.0)
    assert doubtful is not None
    assert (doubtful.phase, doubtful.taint, doubtful.not_before) == (Phase.HELD, True, 200.0)
    sure = t.reject(record, B, 2, 102.0, KEEP, sure=True)
    assert sure is not None
    assert (sure.phase, sure.taint) == (Phase.FAILED, False)
    again = t.park(record, B, 2, 102.0, KEEP, lease=10.0)
    assert again is not None
    assert (again.phase, again.taint) == (Phase.HELD, True)


def test_expire_needs_the_lease_to_be_over_and_the_fence_to_be_current() -> None:
    record = armed(100.0)
    assert t.expire(record, 1, 110.0) is record
    assert t.expire(record, 2, 200.0) is record
    after = t.expire(record, 1, 110.1)
    assert after is not None
    assert (after.phase, after.taint, after.fence) == (Phase.HELD, True, 2)


def test_evidence_resolves_a_held_key() -> None:
    record = held(100.0)
    applied = t.resolve(record, 1, "applied", 200.0, KEEP, result={"how": "by hand"})
    assert applied is not None
    assert (applied.phase, applied.result) == (Phase.DONE, {"how": "by hand"})
    free = t.resolve(record, 1, "not_applied", 200.0, KEEP, result={"how": "by hand"})
    assert free is not None
    assert (free.phase, free.taint, free.fence, free.result) == (Phase.FAILED, False, 2, {"how": "by hand"})
    assert t.resolve(record, 2, "not_applied", 200.0, KEEP) is record
    assert t.resolve(armed(), 1, "not_applied", 200.0, KEEP) == armed()


def test_not_found_counts_only_after_a_quiet_time() -> None:
    record = held(100.0)
    assert t.resolve(record, 1, "not_applied", 159.9, KEEP, quiet=60.0) is record
    assert t.resolve(record, 1, "applied", 101.0, KEEP, quiet=60.0) is not record
    assert t.resolve(record, 1, "not_applied", 160.0, KEEP, quiet=60.0) is not record


@pytest.mark.parametrize("before", [done(), failed(), parked()])
def test_an_expired_record_counts_as_never_seen(before: Record) -> None:
    now = before.expires
    assert t.live(before, now - 1) is before
    assert t.live(before, now) is None
    after, answer = t.arm(before, take(B, b"2", fingerprint=G), now, KEEP)
    assert answer == Taken(fence=1, attempts=1, first_seen=now, first_armed=now, tainted=False)
    assert after is not None
    assert after.generation == 1
    owner = before.owner or A
    assert t.park(before, owner, 1, now, KEEP) is before
    assert t.reject(before, owner, 1, now, KEEP) is before
    assert t.done(before, KEY, {"status": 202}, now, KEEP).result == {"status": 202}


@pytest.mark.parametrize("before", [armed(), held()])
def test_armed_and_held_records_never_expire(before: Record) -> None:
    assert t.live(before, 1e12) is before


def test_a_wait_longer_than_the_retention_is_not_forgotten() -> None:
    assert parked(100.0, not_before=5000.0).expires == 6000.0
    assert failed(100.0, not_before=5000.0).expires == 6000.0
    claimed, _ = t.claim(None, take(not_before=5000.0), 100.0, KEEP)
    assert claimed is not None
    assert claimed.expires == 6000.0


def test_listing() -> None:
    record = evolve(held(100.0), label="order 42", provider="resend")
    assert t.matches(record, Filter(), 200.0)
    assert t.matches(
        record, Filter(phases=frozenset({Phase.HELD}), provider="resend", label="42", older_than=100.0), 200.0
    )
    for where in (
        Filter(phases=frozenset({Phase.DONE})), Filter(provider="brevo"), Filter(label="43"), Filter(older_than=100.1),
    ):  # fmt: skip
        assert not t.matches(record, where, 200.0)
    assert not t.matches(done(), Filter(), 1e9)


def test_words_of_the_caller_show_in_no_repr() -> None:
    assert "kkkk" in repr(armed())
    assert "ffff" not in repr(armed())
    assert "AAAA" not in repr(take())
