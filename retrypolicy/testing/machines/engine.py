"""Any engine between callers that die and a server that answers as it likes: nothing twice, nothing lost, no lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from attrs import frozen
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from hypothesis.strategies import SearchStrategy

from retrypolicy.clock import VirtualClock
from retrypolicy.engine import Engine
from retrypolicy.errors import CallRefused, ConfigurationError, LedgerUnavailable, RetryPolicyError
from retrypolicy.guard.key import key_digest
from retrypolicy.guard.ledger import Ledger, Phase, Record
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.guard.operation import operation
from retrypolicy.outcome import Answered, Effect, Outcome
from retrypolicy.policy import RetryPolicy
from retrypolicy.reports import report
from retrypolicy.rules import meaning
from retrypolicy.testing.machines.coverage import Machine
from retrypolicy.testing.strategies.attempts import failures, responses
from retrypolicy.testing.strategies.making import seconds
from retrypolicy.testing.strategies.parts import backoffs, guards
from retrypolicy.testing.strategies.policy import policies

_KEYS = st.sampled_from(["receipt/1", "receipt/1", "receipt/2"])
_DAY = 86400.0


@frozen
class _Turn:
    """What happens to one attempt: what the client sees, and whether the server acted where that leaves it open."""

    outcome: Outcome
    acted: bool
    took: float
    killed: bool


class _Unwell(Exception):
    """Anything but a success."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


class _Killed(BaseException):
    """The process dies."""


class _Process:
    """The ledger as one process reaches it: now and then it is down, and from a process that died nothing comes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.down = self.dead = self.over = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        return self._reach(found) if callable(found) else found

    def _reach(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def reach(*args: Any, **options: Any) -> Any:
            if self.over:
                raise RetryPolicyError("this process is over")  # what it left to do in the background is dropped
            if self.down or self.dead:
                raise LedgerUnavailable("it is down")
            return operation(*args, **options)

        return reach


_answers = responses(status=st.sampled_from([200, 500, 503, 429, 404, 202, 302, 409]))
_turns = st.lists(
    st.builds(
        _Turn,
        _answers | failures(),
        st.booleans(),
        st.sampled_from([0.0, 0.0, 1.0, 100.0]),
        st.sampled_from([False] * 7 + [True]),
    ),
    min_size=1,
    max_size=4,
)


class EngineMachine(Machine):
    """Calls with and without keys, processes that die in the middle, a ledger that is down, clocks that jump, evidence.

    The server is honest: it acts where its answer says so, and not where that says not. Then:

    - a call is never applied twice, unless the policy accepts that (`resend`) or the caller calls it idempotent;
    - no attempt of a keyed call begins before its record is armed, without the ledger, or while it is held or done;
    - a keyed call that was applied is done, held or in flight in the ledger, never forgotten or failed;
    - what the report says of the effect is true;
    - attempts, waits, `total_timeout` and `lifetime` stay within the policy;
    - no call leaves its key in flight.

    Override `store` for a ledger, `open` for an engine, and `policies` for policies of your own.
    """

    policies: ClassVar[SearchStrategy[RetryPolicy]] = policies(
        max_attempts=st.integers(1, 6),
        total_timeout=st.none() | seconds(1, 600),
        lifetime=st.none() | seconds(1, 600),
        backoff=backoffs(max_seconds=200),
        guard=guards(on_unknown=st.sampled_from(["hold", "hold", "resend"]), join=0.0),
        rules=(),
    )

    def store(self, clock: VirtualClock) -> Ledger:
        """A fresh, empty ledger for each example; it must read this clock."""
        return MemoryLedger(clock=clock)

    def open(self, policy: RetryPolicy, ledger: Ledger, clock: VirtualClock, random: Callable[[], float]) -> Engine:
        """The engine of one process."""
        return Engine(policy, ledger=ledger, clock=clock, random=random, secret="of the machine")  # noqa: S106

    @initialize(data=st.data(), chance=st.randoms(use_true_random=False))
    def begin(self, data: st.DataObject, chance: Any) -> None:
        self.policy = data.draw(self.policies, "policy")
        self.random = chance.random
        self.clock = VirtualClock()
        self.ledger = self.store(self.clock)
        self.applied: Counter[str | None] = Counter()
        self.problems: list[str] = []
        self.down = False
        self.start_process()

    @rule()
    def start_process(self) -> None:
        """A new one in the place of the last."""
        self.teardown()
        self.process: Any = _Process(self.ledger)
        self.process.down = self.down
        self.engine = self.open(self.policy, self.process, self.clock, self.random)

    def teardown(self) -> None:
        if hasattr(self, "process"):
            self.process.over = True

    # The records of settled calls must not expire: what comes then is a new call.
    @precondition(lambda self: self.clock.monotonic() < 7 * _DAY)
    @rule(key=_KEYS, turns=_turns)
    def keyed_call(self, key: str, turns: list[_Turn]) -> None:
        before = self._record(key)
        with operation(key=key):
            error = self._run(key, turns, idempotent=False)
        after = self._record(key)
        self.moved("call", _phase(before), _phase(after))
        if self.down or (before is not None and before.phase in (Phase.DONE, Phase.HELD) and not self._accepts()):
            assert self.sent == 0, f"sent, though the ledger is down ({self.down}) or the key is {_phase(before)}"
        assert self.applied[key] <= 1 or self._accepts(), f"applied {self.applied[key]} times"
        if self.sent and not isinstance(error, _Killed):
            in_flight = after is not None and (
                after.phase is Phase.ARMED or (after.phase is Phase.CLAIMED and after.lease > self.clock.now())
            )
            assert not in_flight, f"the call is over, and left its key {_phase(after)}"

    @precondition(lambda self: self.clock.monotonic() < 7 * _DAY)
    @rule(key=_KEYS, acted=st.booleans(), turns=_turns)
    def owner_dies(self, key: str, acted: bool, turns: list[_Turn]) -> None:
        """What takes many lucky draws otherwise: the process dies with an attempt on the wire; later another comes."""
        self.keyed_call(key, [_Turn(Answered(status=500), acted, 0.0, True)])
        self.clock.advance(_DAY)
        self.keyed_call(key, turns)

    @rule(turns=_turns, idempotent=st.booleans())
    def call(self, turns: list[_Turn], idempotent: bool) -> None:
        """Without a key: evidence is all there is."""
        self.applied[None] = 0
        self._run(None, turns, idempotent=idempotent)
        self.moved("call without key", "", "")
        assert self.applied[None] <= 1 or idempotent or self._accepts(), f"applied {self.applied[None]} times"

    @precondition(lambda self: self._held())
    @rule(data=st.data())
    def evidence(self, data: st.DataObject) -> None:
        """Somebody finds out what became of a held key."""
        key = data.draw(st.sampled_from(self._held()), "key")
        record = self._record(key)
        assert record is not None
        self.ledger.resolve(record.key, record.fence, "applied" if self.applied[key] else "not_applied")
        self.moved("evidence", _phase(record), _phase(self._record(key)))

    @rule()
    def ledger_goes_or_comes(self) -> None:
        self.down = self.process.down = not self.down

    @rule(seconds=st.sampled_from([1.0, 60.0, 3600.0, _DAY]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-60.0, -3600.0, 60.0, 3600.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        for key in ("receipt/1", "receipt/2"):
            record = self._record(key) if hasattr(self, "engine") else None
            if record is not None and self.applied[key]:
                assert record.phase in (Phase.DONE, Phase.HELD, Phase.ARMED), f"it was applied, and is {_phase(record)}"

    # -- how

    def _run(self, key: str | None, turns: list[_Turn], *, idempotent: bool) -> BaseException | None:
        self.sent, self.began, slept = 0, self.clock.monotonic(), len(self.clock.sleeps)
        error: BaseException | None = None
        try:
            self.engine.run(self._attempt, key, turns, idempotent=idempotent, classify=_outcome)
        except (_Unwell, CallRefused, ConfigurationError, _Killed) as raised:
            error = raised
        if isinstance(error, _Killed):
            self.start_process()
        assert not self.problems, self.problems
        assert self.sent <= self.policy.max_attempts
        assert all(wait <= self.policy.max_wait for wait in self.clock.sleeps[slept:])
        if isinstance(error, (_Unwell, type(None))):
            self._tells_the_truth(key, error)
        elif isinstance(error, ConfigurationError):
            assert (key, self.sent, self.policy.guard.unkeyed) == (None, 0, "refuse")
        return error

    def _attempt(self, key: str | None, turns: list[_Turn]) -> None:
        turn = turns[min(self.sent, len(turns) - 1)]
        self.sent += 1
        self._may_begin(key)
        effect = self._meant(turn.outcome)
        if effect is Effect.APPLIED or (effect is Effect.UNKNOWN and turn.acted):
            self.applied[key] += 1
        self.clock.advance(turn.took)
        if turn.killed:
            self.process.dead = True
            raise _Killed
        if not (isinstance(turn.outcome, Answered) and effect is Effect.APPLIED and turn.outcome.body_error is None):
            raise _Unwell(turn.outcome)

    def _may_begin(self, key: str | None) -> None:
        record = self._record(key) if key is not None else None
        if key is not None and (record is None or record.phase is not Phase.ARMED):
            self.problems.append(f"an attempt begins while its key is {_phase(record)}")
        passed = self.clock.monotonic() - self.began
        for name in ("total_timeout", "lifetime"):
            end = getattr(self.policy, name)
            if self.sent > 1 and end is not None and passed >= end:
                self.problems.append(f"attempt {self.sent} begins after {passed:g} s; {name} is {end:g}")

    def _meant(self, outcome: Outcome) -> Effect:
        """What an honest server has done: where the policy takes an outcome for proof, it is one."""
        policy = self.policy
        said = meaning(
            outcome, rules=policy.rules, refusal_statuses=policy.refusal_statuses, unsafe=True, now=self.clock.now()
        )
        return said.effect

    def _tells_the_truth(self, key: str | None, error: _Unwell | None) -> None:
        if error is None:
            assert self.applied[key], "a success, and the server did nothing"
            return
        told = report(error)
        assert told is not None
        if told.effect is Effect.NOT_APPLIED:
            assert not self.applied[key], "the report says that nothing was applied"
        elif told.effect is Effect.APPLIED:
            assert self.applied[key], "the report says that it was applied"
        if key is None:
            assert told.total_attempts == self.sent

    def _accepts(self) -> bool:
        return self.policy.guard.on_unknown == "resend"

    def _record(self, key: str) -> Record | None:
        return self.ledger.read(key_digest(self.engine.secret, key))[0]

    def _held(self) -> list[str]:
        records = {key: self._record(key) for key in ("receipt/1", "receipt/2")}
        return [key for key, record in records.items() if record is not None and record.phase is Phase.HELD]


def _outcome(of: Any) -> Outcome | None:
    return of.outcome if isinstance(of, _Unwell) else None


def _phase(record: Record | None) -> str:
    return "absent" if record is None else record.phase.name.lower()
