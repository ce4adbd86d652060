"""The ledger in memory: the transitions, a lock, and sharing by name."""

from __future__ import annotations

import os
import random
import threading

import pytest
from hypothesis import settings

from retrypolicy.clock import VirtualClock
from retrypolicy.guard import memory, transitions
from retrypolicy.guard.ledger import Phase, Refused, Take, Taken
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.testing.machines import LedgerMachine, Subject
from tests.scaling import stateful

from .walks import KEEP, KEY, walk


def _subject() -> Subject:
    clock = VirtualClock()
    return Subject(ledger=MemoryLedger(clock=clock), advance=clock.jump)


class AgainstTheModel(LedgerMachine):
    open = staticmethod(_subject)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = stateful(50, 30)


def take(number: int = 0, **more: object) -> Take:
    values = {
        "key": b"k" * 32,
        "owner": os.urandom(16),
        "token": os.urandom(16),
        "fingerprint": b"f" * 32,
        "lease": 60.0,
    }
    return Take(**{**values, **more})  # type: ignore[arg-type] - a test's shorthand


def test_threads_race_for_one_key_and_exactly_one_gets_it() -> None:
    ledger = MemoryLedger()
    start = threading.Barrier(16)
    answers: list[Taken | Refused] = []

    def race() -> None:
        start.wait()
        answers.append(ledger.arm(take()))

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(answer) for answer in answers].count(Taken) == 1
    assert len(answers) == 16


def test_it_does_what_the_transitions_say() -> None:
    seed = random.randrange(2**32)
    print(f"the seed of these walks is {seed}")
    chance = random.Random(seed)
    for _ in range(12 * settings.default.max_examples):
        clock = VirtualClock()
        ledger = MemoryLedger(clock=clock, retention=KEEP)
        for said in walk(chance):
            clock.jump(said.now - clock.now())
            key = () if said.take is not None else (KEY,)
            answer = getattr(ledger, said.operation)(*key, *said.words, **said.more)
            assert answer == (said.changed if said.take is None else said.answer)
            assert ledger.read(KEY) == (transitions.live(said.after, said.now), said.now)


def test_without_a_quiet_time_evidence_counts_at_once() -> None:
    ledger = MemoryLedger(clock=VirtualClock())
    mine = take()
    ledger.arm(mine)
    ledger.unknown(mine.key, mine.owner, 1)
    assert ledger.resolve(mine.key, 1, "not_applied")


def test_a_ledger_from_a_url_has_the_clock_and_the_options_it_was_given() -> None:
    ledger = MemoryLedger.from_url("memory:own", clock=VirtualClock(5.0), retention=7.0)
    ledger.done(KEY, {"status": 200})
    record, now = ledger.read(KEY)
    assert record is not None
    assert (now, record.expires) == (5.0, 12.0)


def test_it_says_that_it_forgets() -> None:
    ledger = MemoryLedger()
    assert not ledger.durable
    assert "forgets" in ledger.problems()[0]


def test_purge_deletes_what_is_over_in_steps_and_nothing_else() -> None:
    clock = VirtualClock()
    ledger = MemoryLedger(clock=clock, retention=100.0)
    for number in range(5):
        key = bytes([number]) * 32
        ledger.arm(take(key=key))
        ledger.done(key, {"status": 200})
    ledger.arm(take(key=b"armed" * 6))
    assert ledger.purge() == 0
    clock.advance(101)
    assert [ledger.purge(2), ledger.purge(2), ledger.purge(2), ledger.purge(2)] == [2, 2, 1, 0]
    assert [record.phase for record in ledger.records()] == [Phase.ARMED]


def test_purge_takes_five_hundred_at_a_time_and_a_dry_run_counts_them_all() -> None:
    clock = VirtualClock()
    ledger = MemoryLedger(clock=clock, retention=100.0)
    for number in range(501):
        ledger.done(number.to_bytes(32), {"status": 200})
    clock.advance(101)
    assert [ledger.purge(dry_run=True), ledger.purge(), ledger.purge(), ledger.purge()] == [501, 500, 1, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_use_it_though_a_thread_of_the_parent_was_inside() -> None:
    ledger = MemoryLedger()
    with ledger._lock, memory._sharing:  # as another thread would have at the moment of the fork
        child = os.fork()
        if child == 0:
            usable = False
            try:
                usable = isinstance(ledger.arm(take()), Taken) and not MemoryLedger.from_url("memory:forked").counts()
            finally:
                os._exit(0 if usable else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert ledger.read(b"k" * 32)[0] is None
