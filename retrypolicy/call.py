"""Call: one run of one call, as a loop without I/O. Drivers (sync, async) and transports do what it asks for.

`steps()` is a generator: it asks for an attempt, a wait, or a ledger operation, is told the result, and returns the
final decision. There is no other retry loop in this library.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from retrypolicy.decision import Decision, Defer, Retry, Stop, call_effect, judge, kind_of, understand
from retrypolicy.errors import (
    AlreadyDone,
    CallRefused,
    CircuitOpen,
    DeadlineExceeded,
    KeyReused,
    LedgerUnavailable,
    SendDeferred,
    SendHeld,
    SendInProgress,
)
from retrypolicy.events import (
    AttemptEnded,
    AttemptStarted,
    CallStarted,
    Decided,
    Deferred,
    Done,
    Event,
    Held,
    LedgerDown,
    Observed,
    Reconciled,
    Replayed,
    Waiting,
    heard,
    publish,
)
from retrypolicy.guard.ledger import Phase, Record, Refused, Take, Taken
from retrypolicy.guard.reconcile import HeldSend, Reconciler, quiet_time
from retrypolicy.outcome import Answered, AttemptReport, Effect, Failed, Outcome, Reason, Report, Stage, interrupts
from retrypolicy.policy import RetryPolicy
from retrypolicy.rules import Meaning

if TYPE_CHECKING:
    from retrypolicy.budget import BudgetState
    from retrypolicy.engine import Engine
    from retrypolicy.guard.key import Key
    from retrypolicy.providers import Provider


@frozen
class Attempt:
    """Asked of a driver: make one attempt, and send back its outcome."""


@frozen
class Wait:
    """Asked of a driver: sleep, and send back whether the sleep was cut short."""

    seconds: float


@frozen
class Perform:
    """Asked of a driver: do this operation of the ledger, and send back its answer."""

    operation: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]


@frozen
class Ask:
    """Asked of a driver: ask this reconciler about this held send, and send back its verdict."""

    reconciler: Reconciler
    held: HeldSend


ATTEMPT = Attempt()
Command = Attempt | Wait | Perform | Ask
Steps = Generator[Command, Any, Decision]

_GLANCE = 0.02
"""Seconds between two looks at a call of this process that has the same key."""

_owners: set[bytes] = set()
"""The calls of this process that are under way and have their key."""

_OVERHEAD = 30.0
"""Seconds that a lease lasts beyond the longest attempt: for slow name servers, and clocks that differ."""


class Renew(Exception):
    """Internal: the key was refused before under other content, and goes out anew as this generation."""

    def __init__(self, generation: int) -> None:
        self.generation = generation


class Replay(Exception):
    """Internal: the call was done earlier; `result` is what the ledger kept of it."""

    def __init__(self, record: Record) -> None:
        self.record = record


class Call:
    """One run of a call. Made by an engine for each logical request; never shared between threads."""

    # Defaults on the class: most calls never change most of them, and a call must cost next to nothing.
    generation = 1  # which outgoing key
    attempts = 0  # over the whole call, as far as known
    tainted = False  # an earlier attempt may have been applied
    replayable = True  # the body can be sent again; kept true or false by the transport
    deadline: float | None = None  # of the running attempt, on the monotonic clock
    held = False
    replayed = False
    recorded: bool | None = None
    retry_at: float | None = None
    began = 0.0  # when the running attempt began, on the monotonic clock
    sent: bytes | None = None  # the body that goes out, where the transport has it at hand
    spending: BudgetState | None = None  # what was spent of the policy's budget on this host
    let_go: Callable[[], None] | None = None  # called before a wait: the transport lets go of what it holds
    last_kind: Any = None  # of the last retry that the budget permitted
    _over = False  # the listeners were told of its end
    _reason = Reason.SUCCESS
    _effect = Effect.NOT_APPLIED
    _end: float | None = None
    first_seen: float | None = None
    _first_armed: float | None = None
    previous: float | None = None
    streak = 0
    spent: Mapping[str, int] = MappingProxyType({})  # retries so far by kind of failure
    _owner = b""
    _fence = 0
    _armed = False
    _claimed = False
    _checked = False
    _in_the_way: tuple[Record, float] | None = None  # a record that lets no attempt through, and when that was so
    _unrecorded = 0
    _pending: Perform | None = None
    _asked = False
    _ask_again: float | None = None
    _joining: float | None = None

    def __init__(
        self,
        engine: Engine,
        policy: RetryPolicy,
        *,
        method: str = "CALL",
        host: str = "",
        key: Key | None = None,
        digest: bytes = b"",
        fingerprint: bytes = b"",
        provider: Provider | None = None,
        honoured: bool = False,
        hooked: bool = False,
        not_after: float | None = None,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.method = method
        self.host = host
        self.key = key
        self.digest = digest
        self.fingerprint = fingerprint
        self.provider = provider
        self.honoured = honoured  # the provider honours the key that goes out with this request
        self.hooked = hooked  # the transport calls `arm` itself, between "connected" and the first byte
        self.not_after = not_after
        self.guarded = key is not None and engine.ledger is not None
        self.idempotent = method in policy.idempotent_methods
        self.cares = self.guarded or provider is not None or bool(policy.rules)  # for more than an answer's status
        self._started = 0.0
        # What `_attempt_report` takes. Not the outcomes: a call that holds an error and its traceback holds itself.
        self._records: list[tuple[Any, ...]] = []
        if self.guarded:
            self._owner = os.urandom(16)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def steps(self) -> Steps:
        """The loop: asks for attempts, waits and ledger operations; returns the final decision.

        Raises the guard's refusals (`CallRefused`), `Replay`, and what a driver throws in.
        """
        engine, policy = self.engine, self.policy
        monotonic = engine.clock.monotonic
        if self._end is None:
            self._started = monotonic()
            if policy.total_timeout is not None:
                self._end = self._started + policy.total_timeout
        if engine.listeners:
            self.tell(CallStarted)
        if policy.budget is not None:
            engine.opened(self)
        while True:
            self.attempts += 1
            self._unrecorded += 1
            if self.not_after is not None or policy.breaker is not None or self.honoured:
                stop = self._before()
                if stop is not None:
                    return self._ended(stop)
            if engine.listeners:
                self.tell(AttemptStarted, number=self.attempts)
            began = self.began = monotonic()
            if self._end is not None or policy.attempt_timeout is not None:
                self.deadline = self._deadline(began)
            if self.guarded and not self.hooked:
                yield from self._arm_before()
            outcome: Outcome = yield ATTEMPT
            elapsed = monotonic() - began
            if self.guarded and not (self._armed or self._checked or self._claimed):
                yield from self._look(outcome)
            said, effect, decision = self._decide(outcome)
            if self.guarded:
                decision = yield from self._settle(outcome, said, effect, decision)
            self._note(outcome, said.effect, effect, decision, elapsed)
            if type(decision) is not Retry:
                return self._ended(decision)
            if self.let_go is not None:
                self.let_go()
            if engine.listeners or heard(Waiting):
                self.tell(Waiting, seconds=decision.delay, reason=decision.reason)
            if decision.delay > 0 or engine.stopping:
                woken = yield Wait(decision.delay)
                if woken:
                    yield from self._give_up()
                    return self._ended(Stop(reason=Reason.STOPPED))

    def _before(self) -> Stop | None:
        """May the next attempt be made? None: yes. A refusal of the first attempt is raised, a later one returned."""
        refusal: CallRefused | None = None
        reason = Reason.LIFETIME_OVER
        if self.not_after is not None and self.engine.clock.now() >= self.not_after:
            refusal = DeadlineExceeded("the call's time was over before this attempt; nothing was sent")
        elif self._records and self._key_is_forgotten():
            reason, refusal = Reason.UNSAFE, SendHeld("the provider may have forgotten the key by now")
        elif self.policy.breaker is not None:
            wait = self.engine.breaker_wait(self)
            if wait is not None:
                reason = Reason.CIRCUIT_OPEN
                refusal = CircuitOpen(
                    f"the circuit to {self.host or 'this host'} is open; nothing was sent",
                    retry_at=self.engine.clock.now() + wait,
                )
        if refusal is None:
            return None
        self.attempts -= 1
        self._unrecorded -= 1
        if self._records:
            return Stop(reason=reason)
        self._reason = reason
        raise refusal

    def _key_is_forgotten(self) -> bool:
        """The wait took longer than planned, and a repeat is no longer covered by the key."""
        until = self.key_until
        return self.tainted and not self.idempotent and until is not None and self.engine.clock.now() >= until

    def _deadline(self, now: float) -> float | None:
        limit = self.policy.attempt_timeout
        end = self._end
        if limit is None:
            return end
        return now + limit if end is None else min(now + limit, end)

    def _decide(self, outcome: Outcome) -> tuple[Meaning, Effect, Decision]:
        """What the outcome means, what the call's effect is by now, and what follows."""
        policy, engine = self.policy, self.engine
        now = engine.clock.now()
        said = understand(policy, self, outcome, now)
        if self.first_seen is None:
            self.first_seen = now - self.elapsed
        effect = call_effect(said.effect, self.tainted, said.sure)
        decision = judge(policy, self, outcome, said, effect, now, engine.random())
        self.streak = self.streak + 1 if isinstance(outcome, Failed) and outcome.retry_limit is not None else 0
        if policy.budget is not None or policy.breaker is not None:
            decision = engine.account(self, outcome, effect, decision)
        if type(decision) is not Stop:
            if engine.mode == "observe":
                self.tell(Observed, action=_action(decision), reason=decision.reason)
                decision = Stop(reason=Reason.OBSERVED)
            elif type(decision) is Defer and not engine.defers:
                decision = Stop(reason=decision.reason)
        return said, effect, decision

    # What `judge` asks, like the fields of `History`: a value of its own for every attempt would cost more than the rest.  # noqa: E501

    @property
    def elapsed(self) -> float:
        """Seconds since this run began."""
        return self.engine.clock.monotonic() - self._started

    @property
    def accepts_duplicates(self) -> bool:
        """Was the policy told to re-send where the outcome is unknown?"""
        return self.guarded and self.policy.guard.on_unknown == "resend"

    @property
    def key_until(self) -> float | None:
        """Until when the provider honours the call's key on a repeat."""
        if not self.honoured or self.provider is None or self.provider.key is None:
            return None
        started = self._first_armed if self._first_armed is not None else self.first_seen
        if started is None:
            started = self.engine.clock.now()
        return started + self.provider.key.window - self.provider.key.margin

    def follows(self, before: Call) -> None:
        """This hop shares the time of the call it belongs to."""
        self._started, self._end = before._started, before._end

    # -- the guard ---------------------------------------------------------------------------------------------------

    def arm(self) -> Generator[Command, Any, None]:
        """Put the key under this attempt, durably, before its first byte. Raises the guard's refusals."""
        if self._pending is not None:
            # The last settlement got lost. Until it is written, nobody may arm: that includes us.
            yield self._pending
            self._pending = None
        monotonic = self.engine.clock.monotonic
        try:
            asked = monotonic()
            while not isinstance(answer := (yield from self._take()), Taken):
                if answer is None:
                    return
                if not ((yield from self._joined(answer)) or (yield from self._reconciled(answer))):
                    self._refuse(answer.record, answer.now)
                asked = monotonic()
        except (CallRefused, Replay):
            self.attempts -= 1  # no attempt was made
            raise
        _owners.add(self._owner)
        self._armed = True
        self._unrecorded = 0
        self._fence = answer.fence
        self.attempts = max(self.attempts, answer.attempts)  # less: another caller ended the call, and a new one began
        self._first_armed = answer.first_armed
        self.first_seen = answer.first_seen
        self.tainted = self.tainted or answer.tainted
        # This process may have stood still since it asked. A lease that is over, a key that is forgotten: others may
        # have settled the call as not applied, or sent it.
        if monotonic() - asked > self._lease():
            yield from self._give_up()
            raise LedgerUnavailable(
                "the ledger's answer came after the lease that it gives was over; nothing was sent",
                key_digest=self.digest.hex(),
            )
        if self._key_is_forgotten() and not self.accepts_duplicates:
            yield from self._give_up()
            self.held = True
            raise SendHeld(
                "an earlier attempt may have been applied, and the provider may have forgotten the key by now; nothing "
                "was sent. Resolve it: retrypolicy ledger resolve",
                key_digest=self.digest.hex(),
            )
        lifetime = self.policy.lifetime
        if lifetime is not None and self.engine.clock.now() >= answer.first_seen + lifetime:
            yield from self._give_up()
            self._reason = Reason.LIFETIME_OVER
            raise DeadlineExceeded("the call's lifetime was over before this attempt; it sent nothing")

    def _take(self) -> Generator[Command, Any, Taken | Refused | None]:
        """Ask the ledger for the key. None: the ledger is away, and the call goes on without it."""
        take = Take(
            key=self.digest,
            owner=self._owner,
            token=os.urandom(8),
            fingerprint=self.fingerprint,
            lease=self._lease(),
            generation=self.generation,
            attempts=self._unrecorded,
            window=self._window(),
            label=self.key.label if self.key is not None else "",
            provider=self._provider_name(),
        )
        lost = True  # whether it was armed is not known, and nothing will be sent on it
        try:
            answer: Taken | Refused = yield Perform("arm", (take,), {})
            lost = False
        except LedgerUnavailable:
            self.tell(LedgerDown, operation="arm")
            if self.policy.guard.on_ledger_down == "open" and self.honoured:
                self.guarded = self.recorded = lost = False
                return None
            raise
        finally:
            if lost:
                self.engine.withdraw_later(take)
        return answer

    def _joined(self, refused: Refused) -> Generator[Command, Any, bool]:
        """Wait for another call of this process that has the key. True: it ended."""
        record, patience = refused.record, self.policy.guard.join
        busy = record.phase in (Phase.ARMED, Phase.CLAIMED) and record.fingerprint == self.fingerprint
        if not patience or not busy or record.owner not in _owners:
            return False
        monotonic = self.engine.clock.monotonic
        if self._joining is None:
            self._joining = monotonic() + patience
        end = self._joining if self.deadline is None else min(self._joining, self.deadline)
        while record.owner in _owners:
            if monotonic() >= end or (yield Wait(_GLANCE)):
                return False
        return True

    def _reconciled(self, refused: Refused) -> Generator[Command, Any, bool]:
        """Ask the provider what became of a held key, once in a call. True: now it is known."""
        record = refused.record
        if self._asked or record.phase is not Phase.HELD or record.fingerprint != self.fingerprint:
            return False
        reconciler = self.engine.reconciler(self.policy, self._provider_name())
        if reconciler is None or self.key is None:
            return False
        self._asked = True
        key = self.key.value
        verdict = yield Ask(
            reconciler,
            HeldSend(
                key=key,
                outgoing=self.provider.outgoing(key, record.generation) if self.honoured and self.provider else None,
                label=record.label,
                provider=record.provider,
                attempts=record.attempts,
                first_armed=record.first_armed,
                last_armed=record.last_armed,
            ),
        )
        options: dict[str, Any] = {"result": {"how": "reconciled"}}
        if verdict == "not_applied":
            quiet = quiet_time(reconciler, self.provider.quiet if self.provider is not None else None)
            # The attempt itself may have been under way as long as its lease; only then the quiet time begins.
            options["quiet"] = math.inf if quiet is None else quiet + self._lease()
            if quiet is not None and record.last_armed is not None:
                self._ask_again = record.last_armed + options["quiet"]
        known = False
        # The ledger checks the quiet time when it is told. But what counts is when the provider looked: after it was
        # asked, which was after `refused.now`.
        looked_too_early = (
            verdict == "not_applied"
            and record.last_armed is not None
            and record.last_armed > refused.now - options["quiet"]
        )
        if verdict != "unknown" and not looked_too_early:
            known = yield Perform("resolve", (self.digest, record.fence, verdict), options)
        self.tell(Reconciled, key_digest=self.digest.hex(), verdict=verdict, counts=known)
        return known

    def _arm_before(self) -> Generator[Command, Any, None]:
        """For a transport that can't be hooked: arm before the attempt, which then goes out as this generation."""
        while True:
            try:
                return (yield from self.arm())
            except Renew as renew:
                self.generation = renew.generation

    def _window(self) -> float | None:
        """How long after its first arm a held key may be armed again."""
        if self.idempotent or self.policy.guard.on_unknown == "resend":
            return math.inf
        if self.honoured and self.provider is not None and self.provider.key is not None:
            return self.provider.key.window - self.provider.key.margin
        return None

    def _lease(self) -> float:
        guard = self.policy.guard
        if guard.lease is not None:
            return guard.lease
        limits = [t for t in (self.policy.attempt_timeout, self.policy.total_timeout) if t is not None]
        longest = min(limits) if limits else self.engine.longest_attempt
        return longest + _OVERHEAD

    def _refuse(self, record: Record, now: float) -> None:
        """The key can't be armed: say why. Raises in every case."""
        same = record.fingerprint == self.fingerprint
        name = self.digest.hex()
        self.first_seen = record.first_seen
        free = record.phase is Phase.FAILED or (
            record.phase is Phase.CLAIMED and (record.owner == self._owner or record.lease < now)
        )
        if free and record.not_before > now and record.owner != self._owner:
            self.retry_at = record.not_before
            raise SendDeferred("the call is not due yet; nothing was sent", retry_at=record.not_before, key_digest=name)
        generation = record.generation if same or record.first_armed is None else record.generation + 1
        if free and generation != self.generation:
            raise Renew(generation)
        if not same:
            raise KeyReused(
                "this key was given to other content before, and that call is not settled as refused; nothing was "
                "sent. Give every call a key of its own",
                key_digest=name,
            )
        if record.phase is Phase.DONE:
            self.replayed = True
            self.recorded = True
            self._effect = Effect.APPLIED
            self.tell(Replayed, key_digest=name)
            self.over(Reason.GUARDED)
            raise Replay(record)
        if record.phase is Phase.HELD and record.generation != self.generation:
            raise Renew(record.generation)
        if record.phase is Phase.HELD:
            self.held = True
            self._effect = Effect.UNKNOWN
            raise SendHeld(
                "an earlier attempt may have been applied, and nothing shows that it was not; nothing was sent. "
                "Resolve it: retrypolicy ledger resolve",
                key_digest=name,
                retry_at=record.not_before or self._ask_again,
            )
        raise SendInProgress(
            "another caller has this key right now; nothing was sent", retry_at=record.lease, key_digest=name
        )

    def _settle(
        self, outcome: Outcome, said: Meaning, effect: Effect, decision: Decision
    ) -> Generator[Command, Any, Decision]:
        """Write what became of the attempt. The write that failed is repeated: done in the background, others
        before the next arm.
        """
        until = decision.until if isinstance(decision, Defer) else 0.0
        if not self._armed:
            return (yield from self._settle_unarmed(decision, until))
        self._armed = False
        if effect is Effect.APPLIED:
            result = self._summary(outcome)
            self.recorded = yield from self._write("done", (self.digest, result), provider=self._provider_name())
            if self.recorded is False:
                self.engine.record_later(self.digest, result, self._provider_name())
            if not isinstance(decision, Stop):
                decision = Stop(reason=Reason.UNSAFE)  # applied, its body lost: recorded is better than fetched again
            return decision
        ours = (self.digest, self._owner, self._fence)
        if effect is Effect.UNKNOWN:
            self.recorded = yield from self._write("unknown", ours, not_before=until)
            self.held = not isinstance(decision, Retry)
            if self.held:
                self.tell(Held, key_digest=self.digest.hex())
        elif isinstance(decision, Stop):
            self.recorded = yield from self._write("reject", ours, sure=said.sure)
        else:
            lease = decision.delay + self._lease() if isinstance(decision, Retry) else 0.0
            self.recorded = yield from self._write("park", ours, lease=lease, not_before=until)
            self._claimed = isinstance(decision, Retry)
        return decision

    def _settle_unarmed(self, decision: Decision, until: float) -> Generator[Command, Any, Decision]:
        """The attempt ended before its arm: proven unsent. At most one write, to keep it for later."""
        if isinstance(decision, Stop):
            yield from self._give_up()
            return decision
        if self._in_the_way is not None and not (
            # Who has it now may be through with it when the next attempt comes.
            self._in_the_way[0].phase is Phase.ARMED and isinstance(decision, Retry)
        ):
            self._refuse(*self._in_the_way)
        if isinstance(decision, Retry):
            return decision
        if self.tainted:
            yield from self._put_back(until)
            return decision
        take = Take(  # a claim even where we have one: it counts the attempts since the last arm
            key=self.digest,
            owner=self._owner,
            token=os.urandom(8),
            fingerprint=self.fingerprint,
            lease=-1.0,  # nobody's: whoever comes when it is due may have it
            generation=self.generation,
            attempts=self._unrecorded,
            not_before=until,
            label=self.key.label if self.key is not None else "",
            provider=self._provider_name(),
        )
        self._unrecorded, self._claimed = 0, False
        self.recorded = yield from self._write("claim", (take,))
        return decision

    def _put_back(self, until: float) -> Generator[Command, Any, None]:
        """What is held can't be claimed: armed, with nothing sent, and put back, its attempts and its wait are kept."""
        try:
            answer = yield from self._take()
        except LedgerUnavailable:
            self.recorded = False
            return
        if isinstance(answer, Taken):
            self._unrecorded = 0
            self.recorded = yield from self._write("park", (self.digest, self._owner, answer.fence), not_before=until)

    def _look(self, outcome: Outcome) -> Generator[Command, Any, None]:
        """The first attempt ended before its arm, where it would have learnt what earlier runs did: one read."""
        if isinstance(outcome, Failed) and interrupts(outcome.error):
            return
        self._checked = True
        record, now = yield from self._read()
        if record is not None and record.phase is Phase.ARMED and record.lease < now:
            yield from self._write("expire", (self.digest, record.fence))  # as an arm would
            record, now = yield from self._read()
        if record is None or record.phase is Phase.FAILED:
            return
        if record.phase is not Phase.CLAIMED and not self._may_rearm(record, now):
            self._in_the_way = record, now
        elif record.fingerprint == self.fingerprint:
            # Without these, runs that never get as far as an arm would put the call off for ever.
            self.attempts = record.attempts + self._unrecorded
            self.first_seen, self._first_armed = record.first_seen, record.first_armed
            self.tainted = self.tainted or record.taint

    def _read(self) -> Generator[Command, Any, tuple[Record | None, float]]:
        try:
            answer: tuple[Record | None, float] = yield Perform("read", (self.digest,), {})
        except LedgerUnavailable:
            self.tell(LedgerDown, operation="read")
            return None, 0.0  # nothing was sent, and nothing will be before an arm
        return answer

    def _may_rearm(self, record: Record, now: float) -> bool:
        window = self._window()
        return (
            record.phase is Phase.HELD
            and window is not None
            and record.first_armed is not None
            and now < record.first_armed + window
            and record.fingerprint == self.fingerprint
        )

    def _write(self, operation: str, args: tuple[Any, ...], **options: Any) -> Generator[Command, Any, bool]:
        command = Perform(operation, args, options)
        try:
            yield command
        except LedgerUnavailable:
            self.tell(LedgerDown, operation=operation)
            if operation in ("park", "unknown"):
                self._pending = command
            if operation in ("park", "unknown", "reject"):
                self.engine.settle_later(command)
            return False
        return True

    def _give_up(self) -> Generator[Command, Any, None]:
        """Let go of a key that is ours and of which nothing is unknown."""
        if self._armed or self._claimed:
            self._armed = self._claimed = False
            self.recorded = yield from self._write("reject", (self.digest, self._owner, self._fence))

    def abandon(self) -> Perform | None:
        """For a driver that is torn out of the loop: what is left to do, if anything."""
        _owners.discard(self._owner)
        if self.guarded and self._claimed:
            self._claimed = False
            return Perform("reject", (self.digest, self._owner, self._fence), {})
        return None

    def _summary(self, outcome: Outcome) -> dict[str, Any]:
        if not isinstance(outcome, Answered):
            return {}
        if self.provider is not None:
            return self.provider.summary(outcome.status, outcome.body, headers=outcome.headers, request=self.sent)
        return {"status": outcome.status}

    def _provider_name(self) -> str:
        return self.provider.name if self.provider is not None else ""

    # -- the report --------------------------------------------------------------------------------------------------

    def _note(self, outcome: Outcome, own: Effect, effect: Effect, decision: Decision, elapsed: float) -> None:
        """Remember an attempt: its own effect, and the call's."""
        status = error = stage = None
        if isinstance(outcome, Answered):
            status = outcome.status
            if outcome.body_error is not None:
                error = type(outcome.body_error)
        else:
            error, stage = type(outcome.error), outcome.stage
        self._records.append((self.attempts, status, error, stage, outcome.reused, own, decision, elapsed))
        if self._effect is not Effect.APPLIED:  # applied stays applied, whatever a repeat for the lost body met
            self._effect = effect
        self.tainted = effect is not Effect.NOT_APPLIED
        if type(decision) is Retry:
            self.previous = decision.delay
            if self.policy.limits is not None:
                kind = kind_of(outcome)
                self.spent = {**self.spent, kind: self.spent.get(kind, 0) + 1}
        if self.engine.listeners:
            name = None if error is None else error.__name__
            facts = {"elapsed": elapsed, "effect": own, "status": status, "error": name, "stage": stage}
            self.tell(AttemptEnded, number=self.attempts, **facts)
            self.tell(Decided, number=self.attempts, action=_action(decision), reason=decision.reason)

    def _ended(self, decision: Decision) -> Decision:
        _owners.discard(self._owner)
        self._reason = decision.reason
        if isinstance(decision, Defer):
            self.retry_at = decision.until
            self.tell(Deferred, until=decision.until, reason=decision.reason)
        self.over()
        return decision

    def over(self, reason: Reason | None = None) -> None:
        """The run has ended: the listeners are told, once."""
        if self.engine.listeners and not self._over:
            self._over = True
            self.tell(Done, attempts=self.attempts, effect=self._effect, reason=reason or self._reason)

    def refused(self, error: CallRefused) -> None:
        """The guard stopped the run: note it for the report."""
        if self._reason is Reason.SUCCESS:
            self._reason = Reason.GUARDED
        self.retry_at = error.retry_at
        error.report = self.report()
        self.over()

    def report(self) -> Report:
        """What became of the call so far."""
        return Report(
            attempts=tuple(_attempt_report(*record) for record in self._records),
            total_attempts=self.attempts,
            effect=self._effect,
            reason=self._reason,
            first_seen=self.first_seen,
            retry_at=self.retry_at,
            held=self.held,
            replayed=self.replayed,
            recorded=self.recorded,
            key_digest=self.digest.hex() if self.digest else None,
            policy=self.policy.name,
            provider=self._provider_name() or None,
        )

    def already_done(self, record: Record) -> AlreadyDone:
        """For a transport that can't make a response from what the ledger kept."""
        result = dict(record.result) if record.result is not None else {}
        error = AlreadyDone("this call was done earlier; nothing was sent", result=result, key_digest=self.digest.hex())
        self.refused(error)
        return error

    def tell(self, kind: type[Event], **facts: Any) -> None:
        """Tell the log and the listeners what happened to this call."""
        publish(
            kind(
                call=format(id(self), "x"),
                policy=self.policy.name,
                provider=self._provider_name() or None,
                host=self.host,
                method=self.method,
                label=self.key.label if self.key is not None else "",
                **facts,
            ),
            self.engine.listeners,
        )


def _attempt_report(
    number: int,
    status: int | None,
    error: type[BaseException] | None,
    stage: Stage | None,
    reused: bool,
    effect: Effect,
    decision: Decision,
    elapsed: float,
) -> AttemptReport:
    return AttemptReport(
        number=number,
        status=status,
        error=None if error is None else error.__name__,
        stage=stage,
        effect=effect,
        reason=decision.reason,
        wait=decision.delay if isinstance(decision, Retry) else 0.0,
        elapsed=elapsed,
        reused=reused,
    )


def _action(decision: Decision) -> str:
    return type(decision).__name__.lower()
