"""No schedule of the small world applies a key twice; and without any one rule, some schedule does.

How many states each search saw, and how long the shortest story of each broken rule is, stands in docs/guard.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import COLLECTABLE, Phase, Record, Take, Taken

from .model import Search, World

PAGE = (Path(__file__).parents[2] / "docs" / "guard.md").read_text(encoding="utf-8")

# -- safe worlds

WINDOW = World(window=2.0, server_window=4.0, travel=1.0, ticks=5, calls=2, arms=3)
RECONCILED = World(reconciler=True, travel=1.0, quiet=3.0, ticks=4, calls=2, arms=2)

SAFE = {
    "four calls, five arms": World(calls=4, arms=5),
    "calls that put themselves off": World(claims=2, calls=4, arms=3),
    "statements and answers lost, arms taken back, copies executed late": World(losses=2, late=1, calls=2, arms=3),
    "many late copies": World(late=3, calls=2, arms=3),
    "power losses": World(power_losses=2, calls=3, arms=4),
    "power loss, late copies, lost statements": World(power_losses=1, late=1, losses=1, calls=2, arms=3),
    "failovers": World(failovers=2, calls=3, arms=4),
    "failover, late copies, lost statements": World(failovers=1, late=1, losses=1, calls=2, arms=3),
    "sweeping, retention longer than redelivery": World(sweeps=True, retention=4.0, ticks=3, arms=4),
    "key honoured": WINDOW,
    "key honoured, power loss": evolve(WINDOW, power_losses=1, arms=2),
    "key honoured, failover": evolve(WINDOW, failovers=1, arms=2),
    "key honoured, late copies, lost statements": evolve(WINDOW, late=1, losses=1, arms=2),
    "key honoured, the clock jumps, and the margin covers it": evolve(WINDOW, jumps=1, arms=2),
    "a reconciler that waits": evolve(RECONCILED, calls=3, arms=3, ticks=6),
    "a reconciler, late copies, lost statements": evolve(RECONCILED, late=1, losses=1),
    "a reconciler, power loss": evolve(RECONCILED, power_losses=1, arms=3),
    "a reconciler, failover": evolve(RECONCILED, failovers=1),
    "a reconciler, the clock jumps, and the quiet time covers it": evolve(RECONCILED, jumps=1),
}


def _listed(name: str, number: int) -> None:
    row = f"| {name} | {number:,} |"
    assert row in PAGE, f"docs/guard.md should say: {row}"


@pytest.mark.parametrize("name", SAFE)
def test_nothing_is_applied_twice(name: str) -> None:
    search = Search(SAFE[name])
    story = search.broken()
    assert story is None, "\n".join(story)
    _laws(search)
    _listed(name, search.states)


def test_the_page_adds_them_up() -> None:
    rows = [re.search(rf"^\| {re.escape(name)} \| ([\d,]+) \|$", PAGE, re.MULTILINE) for name in SAFE]
    total = sum(int(row[1].replace(",", "")) for row in rows if row is not None)
    assert f"Together {total:,} states" in PAGE


def _laws(search: Search) -> None:
    """Of every statement that was executed in this search, on whatever record it met."""
    for (statement, before, now), (after, answer) in list(search.executed.items()):
        assert search.run(statement, after, now)[0] == after, f"{statement} said again changes something"
        was, is_ = search.records[before], search.records[after]
        if was is None or (was.phase in COLLECTABLE and was.expires <= now):
            continue
        assert is_ is not None, "a record vanished"
        assert is_.fence >= was.fence
        assert was.phase is not Phase.DONE or is_ == was
        assert (is_.owner is not None) == (is_.phase in (Phase.ARMED, Phase.CLAIMED))
        assert is_.first_armed == was.first_armed or was.first_armed is None
        assert is_.taint or not was.taint or statement[0] in ("done", "resolve")
        if isinstance(answer, Taken) and is_ != was:
            assert is_.fence > was.fence, "each arm has a fence of its own"


# -- and without one rule


def _rules(**changes: Callable[..., Any]) -> Any:
    real = {
        name: getattr(transitions, name)
        for name in ("arm", "claim", "park", "done", "reject", "unknown", "expire", "resolve", "live")
    }
    return SimpleNamespace(**{**real, **changes})


def _expired_lease_runs_again(record: Record | None, take: Take, now: float, keep: float) -> Any:
    if record is not None and record.phase is Phase.ARMED and record.lease < now:
        record = evolve(record, phase=Phase.CLAIMED)
    return transitions.arm(record, take, now, keep)


def _forgotten_on_error(record: Record | None, owner: bytes, fence: int) -> Record | None:
    after = transitions.unknown(record, owner, fence)
    return record if after is record else None


def _taken_without_looking(record: Record | None, take: Take, now: float, keep: float) -> Any:
    return transitions.arm(None, take, now, keep)


def _held_is_collected(record: Record | None, now: float) -> Record | None:
    return None if record is not None and record.expires <= now else record


def _held_taken_for_free_when_expired(record: Record | None, take: Take, now: float, keep: float) -> Any:
    return transitions.arm(_held_is_collected(record, now), take, now, keep)


def _unfenced_reject(record: Record | None, owner: bytes, fence: int, now: float, keep: float) -> Record | None:
    if record is None or record.phase not in (Phase.ARMED, Phase.HELD):
        return record
    return evolve(record, phase=Phase.FAILED, taint=False, owner=None)


def _refusal_believed_on_a_tainted_key(
    record: Record | None, owner: bytes, fence: int, now: float, keep: float
) -> Record | None:
    return transitions.reject(record, owner, fence, now, keep, sure=True)


def _park_clears_the_taint(
    record: Record | None, owner: bytes, fence: int, now: float, keep: float, *, lease: float
) -> Record | None:
    clean = None if record is None else evolve(record, taint=False)
    after = transitions.park(clean, owner, fence, now, keep, lease=lease)
    return record if after is clean else after


def _one_fence_per_owner(record: Record | None, take: Take, now: float, keep: float) -> Any:
    after, answer = transitions.arm(record, take, now, keep)
    again = record is not None and after is not record and record.owner == take.owner
    if again and isinstance(answer, Taken):
        assert record is not None
        assert after is not None
        return evolve(after, fence=record.fence), evolve(answer, fence=record.fence)
    return after, answer


def _window_starts_anew_with_every_arm(record: Record | None, take: Take, now: float, keep: float) -> Any:
    if record is not None and record.phase is Phase.HELD:
        record = evolve(record, first_armed=now)
    return transitions.arm(record, take, now, keep)


def _late_good_news_thrown_away(
    record: Record | None, key: bytes, result: Any, now: float, keep: float
) -> Record | None:
    return (
        record
        if record is not None and record.phase is not Phase.ARMED
        else transitions.done(record, key, result, now, keep)
    )


UNSAFE = {
    "sending before the arm is on the disk": World(arm_synced=False, power_losses=1),
    "sending before the arm is on the replica": World(arm_synced=False, failovers=1),
    "an expired lease that lets the next one run": World(protocol=_rules(arm=_expired_lease_runs_again)),
    "a record deleted on an error": World(protocol=_rules(unknown=_forgotten_on_error)),
    "an arm that is no compare-and-set": World(protocol=_rules(arm=_taken_without_looking)),
    "sending before arming": World(arms_first=False),
    "'not found' believed at once": evolve(RECONCILED, quiet=0.0),
    "'not found' asked for too early, told later": evolve(RECONCILED, asks_in_time=False, late=1),
    "'not found' believed before slow senders are over": evolve(RECONCILED, deadline_checked=False),
    "held records that are collected": World(
        protocol=_rules(live=_held_is_collected, arm=_held_taken_for_free_when_expired), retention=1.0, sweeps=True
    ),
    "a retention shorter than redelivery": World(retention=1.0),
    "a stale refusal that is believed": evolve(RECONCILED, protocol=_rules(reject=_unfenced_reject), arms=3, calls=3),
    "a provider's window that is ignored": evolve(WINDOW, window=math.inf),
    "a window that starts anew with every arm": evolve(
        WINDOW, protocol=_rules(arm=_window_starts_anew_with_every_arm), ticks=6
    ),
    "no look at the clock before the first byte": evolve(WINDOW, deadline_checked=False),
    "a refusal that is believed on a tainted key": evolve(
        WINDOW, protocol=_rules(reject=_refusal_believed_on_a_tainted_key)
    ),
    "a park that clears the taint": evolve(WINDOW, protocol=_rules(park=_park_clears_the_taint)),
    "one fence for all arms of a call": World(protocol=_rules(arm=_one_fence_per_owner), late=1),
    "taking back an arm on which something was sent": World(sends_unsure=True, losses=1),
    "a clock set back by more than the margin": evolve(WINDOW, jumps=2, arms=2, ticks=6),
    "a clock set forward by more than the quiet time": evolve(RECONCILED, jumps=3),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_each_rule_is_needed(name: str) -> None:
    story = Search(UNSAFE[name]).broken()
    assert story is not None, "the search can't see what this rule is for"
    assert "applies" in story[-1]
    _listed(name, len(story))


def test_good_news_before_the_answer_is_seen_as_a_loss() -> None:
    story = Search(World(good_news_early=True)).broken()
    assert story is not None
    assert "too early" in story[-1]


def _loses_good_news(world: World) -> bool:
    """Whether a sender that read a 200 can tell so, and the record stays anything but done."""
    search = Search(world)
    search.broken()
    told = [number for (statement, *_), (number, _) in search.executed.items() if statement[0] == "done"]
    phases = {record.phase for number in told if (record := search.records[number]) is not None}
    assert Phase.DONE in phases
    return phases != {Phase.DONE}


def test_proof_of_delivery_is_never_thrown_away() -> None:
    assert not _loses_good_news(World(late=1))
    assert _loses_good_news(World(protocol=_rules(done=_late_good_news_thrown_away)))
