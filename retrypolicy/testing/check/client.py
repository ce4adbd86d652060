"""A caller in the model: drives real calls step by step, and stands in for their transport.

Each step is a `yield` of the seconds that pass before the next one; between two steps other callers may act, and the
process may die.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from retrypolicy.call import ATTEMPT, Call, Command, Perform, Renew, Replay, Wait
from retrypolicy.errors import CallRefused, LedgerUnavailable, RetryPolicyError
from retrypolicy.outcome import Defer, Failed, Outcome, Stage
from retrypolicy.testing.check.engine import Chores
from retrypolicy.testing.check.faults import QUICK, Fault
from retrypolicy.testing.check.trace import Attempt, Run

if TYPE_CHECKING:
    from retrypolicy.testing.check.world import World

Steps = Generator[float, None, None]
Result = Generator[float, None, Callable[[], Command]]

KEY = "call/1"
CONNECTING = 0.02
"""Seconds until there is a connection."""
STANDSTILL = 500.0
"""Seconds that a slow ledger takes for its reply: longer than any lease of a policy without time limits."""
PATIENCE = 86400.0
"""Seconds for which a queue waits for a key that is in progress before it gives the message up."""
CHORES = 2.0
"""Seconds between two looks at what is still to be done in the background."""
RUNS = 60
"""How often a queue delivers one message at most."""


class Client:
    """A caller: makes the call, and again each time that it was deferred."""

    def __init__(self, world: World, number: int, dies: int | None) -> None:
        self.world = world
        self.number = number
        self.run: Run | None = None  # under way
        self.chores = Chores()
        self._left = dies  # steps until its process is killed
        self._life = self._steps()

    def step(self) -> float | None:
        """The next step. Returns the seconds until the one after it; None: there is none."""
        if self._left is not None:
            if self._left == 0:
                self.world.note(f"caller {self.number + 1}: its process dies")
                self.die()
                return None
            self._left -= 1
        return next(self._life, None)

    def die(self) -> None:
        """Its process ends as it stands. Nothing is tidied up: what its code would still do has no effect."""
        self.world.engine.chores = Chores()
        self._life.close()
        if self.run is not None and self.run.call is not None:
            self.run.call.abandon()

    def _steps(self) -> Steps:
        """Its life. A queue stands behind guarded calls only: without a ledger nobody would know the call again."""
        before: Run | None = None
        clock = self.world.clock
        for _ in range(RUNS):
            identity = self.number if self.world.scenario.mode == "plain" else 0
            run = self.run = Run(self.number, identity, clock.monotonic(), follows=before)
            self.world.runs.append(run)
            yield from self._one(run)
            self.run, run.ended = None, clock.monotonic()
            while self.chores.flush():
                yield CHORES
            until = run.retry_at
            if until is None or self.world.scenario.mode != "guarded":
                return
            deferred = isinstance(run.decision, Defer)
            if not deferred and until - clock.now() > PATIENCE:
                return
            while (left := until - clock.now()) > 0:
                yield left
            before = run if deferred else None

    # -- one run -----------------------------------------------------------------------------------------------------

    def _one(self, run: Run) -> Steps:
        world, engine = self.world, self.world.engine
        key = None if world.scenario.mode == "plain" else KEY
        try:
            call = run.call = engine.begin(
                world.scenario.method, world.url, own_key=lambda _: key, content=lambda _: b"content", hooked=True
            )
        except RetryPolicyError as refusal:  # the policy wants a key, and there is none
            run.refusal = refusal
            world.note(f"refused: {type(refusal).__name__}, nothing was sent")
            return
        steps = call.steps()
        try:
            command = next(steps)
            while True:
                if command is ATTEMPT:
                    command = steps.send((yield from self._attempt(run, call)))
                else:
                    command = (yield from self._obey(run, steps, command))()
        except StopIteration as end:
            run.decision = end.value
            run.retry_at = call.retry_at
            if isinstance(run.decision, Defer) and run.attempts:
                run.attempts[-1].put_off = run.decision.until - world.clock.now()
        except (CallRefused, Replay) as refusal:
            engine.clean_up(call, refusal)
            if isinstance(refusal, CallRefused):
                call.refused(refusal)
            run.refusal = refusal
            run.retry_at = None if isinstance(refusal, Replay) else refusal.retry_at
            self._cut_short(run, "replayed" if isinstance(refusal, Replay) else f"refused: {type(refusal).__name__}")
        except Exception as error:  # of the user's own backoff, say: the rest of the library raises none
            engine.clean_up(call, error)
            run.error = error
            world.note(f"{type(error).__name__} was raised: {error}")
        run.report = call.report()

    def _cut_short(self, run: Run, words: str) -> None:
        """The guard let nothing through. An attempt that it stopped before the first byte was none."""
        if run.attempts and run.attempts[-1].ended is None:
            self.world.take_back(run.attempts.pop())
        self.world.note(f"caller {self.number + 1}: {words}, nothing was sent")

    def _obey(self, run: Run, steps: Any, command: Command) -> Result:
        """Returns what goes on with the steps: their end is a StopIteration, which no generator can raise."""
        if isinstance(command, Wait):
            self.world.wait(run, command.seconds)
            yield command.seconds
            return partial(steps.send, False)
        if not isinstance(command, Perform):
            yield QUICK
            return partial(self.world.engine.obey, steps, command)
        yield 0.0
        trouble = self.world.trouble()
        if trouble is not None:
            self.world.note(f"ledger: {trouble} ({command.operation})")
        answer = None if trouble == "away" else self.world.engine.perform(command)
        if trouble in ("away", "reply lost"):
            return partial(steps.throw, LedgerUnavailable("the model's ledger is away"))
        if trouble == "slow":
            run.ledger_seconds += STANDSTILL
        yield STANDSTILL if trouble == "slow" else 0.0
        return partial(steps.send, answer)

    # -- one attempt, as a transport makes it ------------------------------------------------------------------------

    def _attempt(self, run: Run, call: Call) -> Generator[float, None, Outcome]:
        world = self.world
        fault = world.next_fault()
        attempt = Attempt(run, call.attempts, world.clock.monotonic())
        run.attempts.append(attempt)
        world.moments.append(attempt)
        while True:
            try:
                outcome: Outcome = yield from self._try(attempt, call, fault)
                break
            except Renew as renew:
                call.generation = renew.generation
        attempt.number = call.attempts
        attempt.ended = world.clock.monotonic()
        return outcome

    def _try(self, attempt: Attempt, call: Call, fault: Fault) -> Generator[float, None, Outcome]:
        world = self.world
        if fault.stage is Stage.NOT_CONNECTED:
            return (yield from self._take(attempt, call, fault, fault))
        yield max(0.0, min(CONNECTING, self._rest(call)))
        if self._rest(call) <= 0:
            return self._too_late(attempt, Stage.NOT_CONNECTED)
        if call.guarded:
            yield from self._arm(attempt.run, call)
            if self._rest(call) <= 0:
                return self._too_late(attempt, Stage.NOT_SENT)
        attempt.sent = fault.sent
        really = fault
        if fault.reaches:
            key = None
            if call.honoured and call.key is not None and call.provider is not None:
                key = call.provider.outgoing(call.key.value, call.generation)
            really = world.receive(attempt, fault, key)
        return (yield from self._take(attempt, call, fault, really))

    def _take(self, attempt: Attempt, call: Call, fault: Fault, really: Fault) -> Generator[float, None, Outcome]:
        """Wait for what becomes of it, no longer than the call allows."""
        world, left = self.world, self._rest(call)
        if fault.seconds > left:
            yield max(0.0, left)
            stage = Stage.SENT if really.stage is None else really.stage
            return self._too_late(attempt, stage)
        yield fault.seconds
        attempt.answered, attempt.hint, attempt.forbids = really.answered, really.hint, really.forbids
        hints = () if call.provider is None else call.provider.hints
        return really.outcome(now=world.clock.now(), server_now=world.clock.true_now(), hints=hints)

    def _too_late(self, attempt: Attempt, stage: Stage) -> Failed:
        attempt.answered = "nothing in the time that was left"
        return Failed(error=TimeoutError(), stage=stage)

    def _rest(self, call: Call) -> float:
        return float("inf") if call.deadline is None else call.deadline - self.world.clock.monotonic()

    def _arm(self, run: Run, call: Call) -> Steps:
        steps = call.arm()
        try:
            command = next(steps)
            while True:
                command = (yield from self._obey(run, steps, command))()
        except StopIteration:
            return
