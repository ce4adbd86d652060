"""Permissions and evidence that were good once: the process, or the provider, took too long."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from retrypolicy import Answered, Constant, Effect, Engine, Failed, Guard, Reason, RetryPolicy, Stage, operation
from retrypolicy.call import Call, guarded
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import LedgerUnavailable, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.ledger import Refused, Take, Taken
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer

LEASE, QUIET = 10.0, 100.0


class SlowLedger(MemoryLedger):
    """Its answer to an arm arrives late: the process was stopped, or the machine slept."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock=clock)
        self.delay = 0.0
        self.clock = clock

    def arm(self, take: Take) -> Taken | Refused:
        answer = super().arm(take)
        self.clock.advance(self.delay)
        return answer


class Job:
    def __init__(self) -> None:
        self.sent = 0
        self.fails = False

    def __call__(self) -> str:
        self.sent += 1
        if self.fails:
            raise OSError("lost")
        return "sent"


def run(engine: Engine, job: Job) -> Any:
    with operation(key="receipt/42"):
        return engine.run(job)


def phase(ledger: MemoryLedger) -> Phase:
    (record,) = ledger.records()
    return record.phase


def test_an_arm_that_is_older_than_its_lease_permits_nothing() -> None:
    """Another call may have held the key meanwhile, and a reconciler or a key-honouring provider settled it."""
    clock, job = VirtualClock(), Job()
    ledger = SlowLedger(clock)
    policy = RetryPolicy(backoff=Constant(seconds=0), guard=Guard(lease=LEASE))
    engine = Engine(policy, ledger=ledger, clock=clock, secret="s")
    ledger.delay = LEASE + 0.1
    with pytest.raises(LedgerUnavailable, match="nothing was sent") as caught:
        run(engine, job)
    assert job.sent == 0
    assert [caught.value.key_digest] == [record.key.hex() for record in ledger.records()]
    assert phase(ledger) is Phase.FAILED
    ledger.delay = LEASE - 0.1
    assert run(engine, job) == "sent"
    assert phase(ledger) is Phase.DONE


def test_a_key_that_is_forgotten_while_the_process_stood_still_is_not_sent_again() -> None:
    """Checked by the arm, and again before the first byte."""
    clock = VirtualClock()
    ledger = SlowLedger(clock)
    key = KeyPlacement(header="X-Key", window=1000.0, margin=100.0)
    provider = Provider(name="made-up", hosts=("127.0.0.1",), key=key)
    policy = RetryPolicy(max_attempts=1, guard=Guard(lease=500.0))
    with FaultServer([Close("request"), Answer(200), Answer(200)]) as server, requests.Session() as session:
        mount(session, policy, ledger=ledger, secret="s", provider=provider, clock=clock)
        with pytest.raises(requests.ConnectionError), operation(key="k"):
            session.post(server.url(), data=b"x")
        clock.advance(800.0)
        ledger.delay = 150.0
        with pytest.raises(SendHeld, match="nothing was sent"), operation(key="k"):
            session.post(server.url(), data=b"x")
        assert server.complete == 1
        assert phase(ledger) is Phase.HELD


def test_not_found_counts_only_if_it_was_asked_for_after_the_quiet_time() -> None:
    """Found by the model check: the provider looked too early, and its answer came when the time was over."""
    clock, job = VirtualClock(), Job()
    ledger = MemoryLedger(clock=clock)
    slowness = 0.0

    def reconciler(held: object) -> Any:
        clock.advance(slowness)
        return "not_applied"

    reconciler.quiet = QUIET  # type: ignore[attr-defined] - an attribute of a function
    policy = RetryPolicy(backoff=Constant(seconds=0), guard=Guard(on_unknown="reconcile", lease=LEASE))
    engine = Engine(policy, ledger=ledger, clock=clock, secret="s", reconcilers={"*": reconciler})
    job.fails = True
    with pytest.raises(OSError, match="lost"):
        run(engine, job)
    job.fails = False
    clock.advance(LEASE + QUIET - 1)
    slowness = 5.0
    with pytest.raises(SendHeld):
        run(engine, job)
    assert job.sent == 1
    assert phase(ledger) is Phase.HELD
    assert run(engine, job) == "sent"  # asked again, now late enough
    assert phase(ledger) is Phase.DONE


class FlakyLedger(MemoryLedger):
    """Takes no arms while it is away."""

    away = False

    def arm(self, take: Take) -> Taken | Refused:
        if self.away:
            raise LedgerUnavailable("away")
        return super().arm(take)


def test_who_goes_on_without_the_ledger_leaves_nothing_behind() -> None:
    """Armed once, then the ledger went away, and the provider's own key sufficed."""
    clock = VirtualClock()
    ledger = FlakyLedger(clock=clock)
    provider = Provider(name="made-up", hosts=("api.example.com",), key=KeyPlacement(header="X-Key", window=600.0))
    policy = RetryPolicy(backoff=Constant(seconds=1), guard=Guard(on_ledger_down="open"))
    engine = Engine(policy, ledger=ledger, provider=provider, clock=clock, secret="s")
    outcomes: list[Answered | Failed] = [Failed(error=OSError(), stage=Stage.SENT), Answered(status=200)]
    under_way = set(guarded._owners)

    def attempt(call: Call) -> Answered | Failed:
        ledger.away = True
        return outcomes.pop(0)

    with operation(key="k"):
        call = engine.begin("POST", "https://api.example.com/", content=lambda provider: b"x")
    engine.drive(call, attempt)
    assert (outcomes, call.guarded) == ([], False)
    assert guarded._owners == under_way


def test_who_goes_on_without_the_ledger_and_is_stopped_tells_it_nothing() -> None:
    """It has a claim of the key from its first attempt, and nobody knows what became of the second one."""
    clock = VirtualClock()
    ledger = FlakyLedger(clock=clock)
    provider = Provider(name="made-up", hosts=("api.example.com",), key=KeyPlacement(header="X-Key", window=600.0))
    policy = RetryPolicy(backoff=Constant(seconds=1), guard=Guard(on_ledger_down="open"))
    engine = Engine(policy, ledger=ledger, provider=provider, clock=clock, secret="s")
    outcomes: list[Answered | Failed] = [Answered(status=429), Failed(error=OSError(), stage=Stage.SENT)]

    def attempt(call: Call) -> Answered | Failed:
        ledger.away = True
        if len(outcomes) == 1:
            engine.stop()
        return outcomes.pop(0)

    with operation(key="k"):
        call = engine.begin("POST", "https://api.example.com/", content=lambda provider: b"x")
    assert engine.drive(call, attempt).reason is Reason.STOPPED
    assert (call.effect, call.recorded, phase(ledger)) == (Effect.UNKNOWN, False, Phase.CLAIMED)
