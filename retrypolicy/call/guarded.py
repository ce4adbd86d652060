"""What a call asks of the ledger: to arm its key, to settle it, to look whether others were there before."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from typing import Any

from retrypolicy.call.commands import Ask, Command, Perform, Renew, Replay, Wait
from retrypolicy.call.state import State
from retrypolicy.decision import Decision, Defer, Retry, Stop
from retrypolicy.errors import (
    CallRefused,
    DeadlineExceeded,
    KeyReused,
    LedgerUnavailable,
    SendDeferred,
    SendHeld,
    SendInProgress,
)
from retrypolicy.events import Held, LedgerDown, Reconciled, Replayed
from retrypolicy.guard.ledger import Phase, Record, Refused, Take, Taken
from retrypolicy.guard.reconcile import HeldSend, quiet_time
from retrypolicy.guard.transitions import covered
from retrypolicy.outcome import Answered, Effect, Failed, Outcome, Reason, interrupts
from retrypolicy.rules import Meaning

_GLANCE = 0.02
"""Seconds between two looks at a call of this process that has the same key."""

_owners: set[bytes] = set()
"""The calls of this process that are under way and have their key."""

_OVERHEAD = 30.0
"""Seconds that a lease lasts beyond the longest attempt: for slow name servers, and clocks that differ."""


class Guarded(State):
    """A call under the guard's protocol (design section 6). None of this runs for a call without a ledger and a key."""

    __slots__ = (
        "_armed",
        "_ask_again",
        "_asked",
        "_checked",
        "_claimed",
        "_counted",
        "_fence",
        "_in_the_way",
        "_joining",
        "_owner",
        "_pending",
    )

    def _begin_guard(self) -> None:
        self._owner = os.urandom(16)
        self._fence = 0
        self._armed = False
        self._claimed = False
        self._checked = False
        self._counted = 0  # how many of `attempts` the ledger's record counts
        self._pending: Perform | None = None
        self._in_the_way: tuple[Record, float] | None = None  # a record that lets no attempt through, and when
        self._asked = False
        self._ask_again: float | None = None
        self._joining: float | None = None

    def follows(self, before: Any) -> None:
        super().follows(before)
        if self.guarded and before.tainted:  # the ledger's record goes on, and counts on
            self.attempts, self._counted, self._earlier = before.attempts, before._counted, before._earlier

    def arm(self) -> Generator[Command, Any, None]:
        """Put the key under this attempt, durably, before its first byte. Raises the guard's refusals."""
        monotonic = self.engine.clock.monotonic
        try:
            if self._pending is not None:
                # The last settlement got lost. Until it is written, nobody may arm: that includes us.
                yield self._pending
                self._pending = None
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
        self._fence = answer.fence
        # Less than ours: another caller ended the call, and a new one began.
        self._counted = self.attempts = max(self.attempts, answer.attempts)
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
            attempts=self.attempts - self._counted,
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
                retry_at=record.not_before if record.not_before > now else self._ask_again,
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
            attempts=self.attempts - self._counted,
            not_before=until,
            label=self.key.label if self.key is not None else "",
            provider=self._provider_name(),
        )
        self._counted, self._claimed = self.attempts, False
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
            self._counted = self.attempts
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
        if record is None:
            return
        free = record.phase in (Phase.CLAIMED, Phase.FAILED) or (
            record.phase is Phase.HELD
            and record.fingerprint == self.fingerprint
            and covered(record, self._window(), now)
        )
        if record.not_before > now or not free:
            self._in_the_way = record, now
        elif record.phase is Phase.FAILED:
            return
        elif record.fingerprint == self.fingerprint:
            # Without these, runs that never get as far as an arm would put the call off for ever.
            more = max(0, record.attempts - self._counted)  # not less: as for an arm
            self.attempts += more
            self._counted += more
            self.first_seen, self._first_armed = record.first_seen, record.first_armed
            self.tainted = self.tainted or record.taint

    def _read(self) -> Generator[Command, Any, tuple[Record | None, float]]:
        try:
            answer: tuple[Record | None, float] = yield Perform("read", (self.digest,), {})
        except LedgerUnavailable:
            self.tell(LedgerDown, operation="read")
            return None, 0.0  # nothing was sent, and nothing will be before an arm
        return answer

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

    def _leave(self) -> None:
        """Others of this process need not wait for this call any more."""
        _owners.discard(self._owner)

    def abandon(self) -> Perform | None:
        """For a driver that is torn out of the loop: what is left to do, if anything."""
        if not self.digest:
            return None
        self._leave()
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
