"""How many attempts a call had: counted over runs, whatever the ledger was told of them and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy import Answered, Constant, Engine, Failed, RetryPolicy, Stage, operation
from retrypolicy.call import Call
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import LedgerUnavailable
from retrypolicy.guard import MemoryLedger

RUNS = st.lists(st.lists(st.sampled_from([Stage.NOT_CONNECTED, Stage.NOT_SENT, Stage.SENT]), max_size=4), max_size=3)


@given(RUNS)
def test_a_call_has_as_many_attempts_as_were_made(runs: list[list[Stage]]) -> None:
    """Some end before the key is armed, some after; a run ends when it has to wait, and another one goes on."""
    clock = VirtualClock()
    ledger = MemoryLedger(clock=clock)
    engine = Engine(
        RetryPolicy(max_attempts=99, max_wait=5, backoff=Constant(seconds=1)), ledger=ledger, clock=clock, secret="s"
    )
    script: list[Answered | Failed] = []

    def attempt(call: Call) -> Answered | Failed:
        outcome = script.pop(0)
        if not isinstance(outcome, Failed) or outcome.stage is not Stage.NOT_CONNECTED:
            engine.arm(call)
        return outcome

    made = 0
    for number, stages in enumerate([*runs, []]):
        last = number == len(runs)
        script += [Failed(error=OSError(), stage=stage) for stage in stages]
        script.append(Answered(status=200) if last else Answered(status=429, headers={"Retry-After": "60"}))
        made += len(script)
        with operation(key="k"):
            call = engine.begin("PUT", "https://api.example.com/", content=lambda provider: b"x", hooked=True)
        engine.drive(call, attempt)
        assert call.report().total_attempts == made
        (record,) = ledger.records()
        assert record.attempts == made
        clock.advance(60)


def test_none_is_forgotten_where_the_ledger_began_to_count_anew() -> None:
    """The call was found not applied meanwhile: to the ledger a new one begins, to this run it is the same."""
    clock = VirtualClock()
    ledger = MemoryLedger(clock=clock)
    engine = Engine(RetryPolicy(backoff=Constant(seconds=1), max_attempts=6), ledger=ledger, clock=clock, secret="s")
    sent, unsent = Stage.SENT, Stage.NOT_CONNECTED
    stages = [sent, sent, sent, unsent, unsent]

    def attempt(call: Call) -> Answered | Failed:
        if call.attempts == 3:
            (record,) = ledger.records()
            assert ledger.resolve(record.key, record.fence, "not_applied")
        stage = stages.pop(0) if stages else None
        if stage is not unsent:
            engine.arm(call)
        return Answered(status=200) if stage is None else Failed(error=OSError(), stage=stage)

    with operation(key="k"):
        call = engine.begin("PUT", "https://api.example.com/", content=lambda provider: b"x", hooked=True)
    engine.drive(call, attempt)
    told = call.report()
    assert [each.number for each in told.attempts] == [1, 2, 3, 4, 5, 6]
    assert told.total_attempts == 6
    (record,) = ledger.records()
    assert record.attempts == 4  # the two that were before are of the call that was ended


class Deaf(MemoryLedger):
    """Takes no word of what is unknown."""

    def unknown(self, *args: Any, **options: Any) -> bool:
        raise LedgerUnavailable("deaf")


def test_one_that_waits_for_a_lost_settlement_is_none() -> None:
    """What became of the first attempt has to be written before the second one is armed."""
    clock = VirtualClock()
    engine = Engine(RetryPolicy(backoff=Constant(seconds=1)), ledger=Deaf(clock=clock), clock=clock, secret="s")
    with operation(key="k"):
        call = engine.begin("PUT", "https://api.example.com/", content=lambda provider: b"x")
    with pytest.raises(LedgerUnavailable):
        engine.drive(call, lambda call: Failed(error=OSError(), stage=Stage.SENT))
    assert (call.report().total_attempts, len(call.report().attempts)) == (1, 1)
