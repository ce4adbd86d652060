"""Call: one run of one call, as a loop without I/O. Drivers (sync, async) and transports do what it asks for.

`steps()` is a generator: it asks for an attempt, a wait, or a ledger operation, is told the result, and returns the
final decision. There is no other retry loop in this library.
"""

from __future__ import annotations

from typing import Any

from retrypolicy.call import spending
from retrypolicy.call.commands import ATTEMPT, Steps, Wait
from retrypolicy.call.guarded import Guarded
from retrypolicy.call.state import attempt_report
from retrypolicy.decision import Decision, Defer, Retry, Stop, judge, kind_of, understand
from retrypolicy.errors import CallRefused, CircuitOpen, DeadlineExceeded, SendHeld
from retrypolicy.events import AttemptEnded, AttemptStarted, CallStarted, Decided, Deferred, Observed, Waiting, heard
from retrypolicy.outcome import Effect, Failed, Outcome, Reason

# On Python 3.11 the members of an enumeration are properties, and slow.
_NOT_APPLIED, _, _APPLIED = Effect


class Call(Guarded):
    """One run of a call. Made by an engine for each logical request; never shared between threads."""

    __slots__ = ()

    def steps(self) -> Steps:
        """The loop: asks for attempts, waits and ledger operations; returns the final decision.

        Raises the guard's refusals (`CallRefused`), `Replay`, and what a driver throws in.
        """
        engine, policy = self.engine, self.policy
        monotonic = engine.clock.monotonic
        listened = bool(engine.listeners)
        waits_are_heard = listened or heard(Waiting)
        gated = self.not_after is not None or policy.breaker is not None or self.honoured
        if self._end is None:
            self._started = monotonic()
            if policy.total_timeout is not None:
                self._end = self._started + policy.total_timeout
        limited = self._end is not None or policy.attempt_timeout is not None
        if listened:
            self.tell(CallStarted)
        if policy.budget is not None:
            spending.opened(self)
        while True:
            self.attempts += 1
            if gated:
                stop = self._before()
                if stop is not None:
                    return self._ended(stop)
            if listened:
                self.tell(AttemptStarted, number=self.attempts)
            began = self.began = monotonic()
            if limited:
                self.deadline = self._deadline(began)
            if self.guarded and not self.hooked:
                yield from self._arm_before()
            outcome: Outcome = yield ATTEMPT
            ended = monotonic()
            self.elapsed = ended - self._started
            if self.guarded and not (self._armed or self._checked or self._claimed):
                yield from self._look(outcome)
                self.elapsed = monotonic() - self._started  # the ledger took its time

            now = engine.clock.now()
            said, effect = understand(policy, self, outcome, now)
            if self.first_seen is None:
                self.first_seen = now - self.elapsed
            decision = judge(policy, self, outcome, said, effect, now, engine.random())
            if policy.budget is not None or policy.breaker is not None:
                decision = spending.account(self, outcome, decision)
            if type(decision) is not Stop:
                if self.observed:
                    self.tell(Observed, action=_action(decision), reason=decision.reason)
                    decision = Stop(reason=Reason.OBSERVED)
                elif type(decision) is Defer and not self.defers:
                    decision = Stop(reason=decision.reason)
            if self.guarded:
                decision = yield from self._settle(outcome, said, effect, decision)

            status = error = stage = None
            if isinstance(outcome, Failed):
                error, stage = type(outcome.error), outcome.stage
                self.streak = 0 if outcome.retry_limit is None else self.streak + 1
            else:
                status = outcome.status
                self.streak = 0
                if outcome.body_error is not None:
                    error = type(outcome.body_error)
            record = (self.attempts, status, error, stage, outcome.reused, said.effect, decision, ended - began)
            self._records.append(record)
            if self._effect is not _APPLIED:  # applied stays applied, whatever a repeat for the lost body met
                self._effect = effect
            self.tainted = effect is not _NOT_APPLIED
            if listened:
                self._tell_of(record, decision)
            if type(decision) is not Retry:
                return self._ended(decision)

            self.previous = decision.delay
            if policy.limits is not None:
                kind = kind_of(outcome)
                self.spent = {**self.spent, kind: self.spent.get(kind, 0) + 1}
            if self.let_go is not None:
                self.let_go()
            if waits_are_heard:
                self.tell(Waiting, seconds=decision.delay, reason=decision.reason)
            if decision.delay > 0 or engine.stopping:
                woken = yield Wait(decision.delay)
                if woken:
                    if self.guarded:
                        yield from self._give_up()
                    return self._ended(Stop(reason=Reason.STOPPED))

    def _before(self) -> Stop | None:
        """May the next attempt be made? None: yes. A refusal of the first attempt is raised, a later one returned."""
        refusal: CallRefused | None = None
        reason = Reason.LIFETIME_OVER
        if self.not_after is not None and self.engine.clock.now() >= self.not_after:
            refusal = DeadlineExceeded("the call's time was over before this attempt; nothing was sent")
        elif self._key_is_forgotten():
            reason, refusal = Reason.UNSAFE, SendHeld("the provider may have forgotten the key by now")
        elif self.policy.breaker is not None:
            wait = spending.breaker_wait(self)
            if wait is not None:
                reason = Reason.CIRCUIT_OPEN
                refusal = CircuitOpen(
                    f"the circuit to {self.host or 'this host'} is open; nothing was sent",
                    retry_at=self.engine.clock.now() + wait,
                )
        if refusal is None:
            return None
        self.attempts -= 1
        if self._records:
            return Stop(reason=reason)
        self._reason = reason
        raise refusal

    def _deadline(self, now: float) -> float | None:
        limit = self.policy.attempt_timeout
        end = self._end
        if limit is None:
            return end
        return now + limit if end is None else min(now + limit, end)

    def _tell_of(self, record: tuple[Any, ...], decision: Decision) -> None:
        """Tell the listeners of an attempt, and what follows."""
        ended = attempt_report(*record)
        self.tell(
            AttemptEnded,
            number=ended.number,
            elapsed=ended.elapsed,
            effect=ended.effect,
            status=ended.status,
            error=ended.error,
            stage=ended.stage,
        )
        self.tell(Decided, number=ended.number, action=_action(decision), reason=decision.reason)

    def _ended(self, decision: Decision) -> Decision:
        if self.digest:
            self._leave()
        self._reason = decision.reason
        if isinstance(decision, Defer):
            self.retry_at = decision.until
            self.tell(Deferred, until=decision.until, reason=decision.reason)
        self.over()
        return decision


def _action(decision: Decision) -> str:
    return type(decision).__name__.lower()
