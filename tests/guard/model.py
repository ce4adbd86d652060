"""Every schedule of a small world, breadth first: calls, a server, a network, a ledger of the real transitions.

A call arms, sends, learns what became of it (or does not) and tells the ledger. It may die at any moment: that is a
call which takes no more steps, and every schedule of the others is searched. Statements to the ledger get lost, lose
their answers, or are executed a second time much later. The power fails and takes every write with it that was not
synced; a replica takes over that lacks them, while the calls go on. In no reachable state has the server applied one
key twice, or says the ledger "done" of what was never applied. And each rule is there for a reason: without it, the
same search finds the story that breaks it.

One key is enough: a transition sees one record, and no record of another key can change what it does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from attrs import evolve, frozen

from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import Phase, Record, Take, Taken

KEY = b"k"
LEASE = 0.5  # over with the next tick


@frozen(kw_only=True)
class World:
    """What may happen, and how often. Times are in ticks."""

    calls: int = 3  # all with the same key: redeliveries of one message by a queue
    arms: int = 3
    claims: int = 0  # calls that put themselves off before they arm
    power_losses: int = 0  # of the machine: everybody dies, and what was not synced is gone
    failovers: int = 0  # to a replica that lacks what was not waited for; everybody goes on
    losses: int = 0  # statements that never arrive, or whose answer does not
    late: int = 0  # statements that are executed once more
    ticks: int = 2
    jumps: int = 0  # the ledger's clock is set forward by up to so many ticks, and back again
    retention: float = math.inf
    sweeps: bool = False  # expired records are deleted
    window: float | None = None  # of the policy
    server_window: float | None = None  # for how long the server knows a key; None: it does not look at keys
    travel: float = math.inf  # longest time between sending and applying
    reconciler: bool = False
    quiet: float = 3.0
    arm_synced: bool = True  # an arm is answered when it is on the disk, and on the replica
    deadline_checked: bool = True
    arms_first: bool = True
    asks_in_time: bool = True
    sends_unsure: bool = False  # without an answer to the arm, and takes it back all the same
    good_news_early: bool = False  # written when the request is out
    protocol: Any = transitions

    @property
    def timeless(self) -> bool:
        """Nobody reads a clock but the lease, and when a request under way gets applied makes no difference.

        Then it is applied at once, and all that time can do is to end the lease: at any moment, so clocks may jump.
        """
        return self.server_window is None and not self.reconciler and self.retention == math.inf


class Call(NamedTuple):
    """One call in one process. `message` is what became of its request, as the server knows it."""

    doing: str = "new"  # new, unsure, armed, sent, answered, refused, lost, between, over
    owner: int = 0
    token: int = 0  # of an arm that was not answered
    fence: int = 0
    deadline: float = 0.0
    message: str = ""  # "", pending, applied, refused
    sent_at: int = 0


OVER = Call(doing="over")
LOST = object()  # no answer came


class State(NamedTuple):
    record: int  # number of an interned record
    unsynced: tuple[int, ...]  # what the record was before, since the last synced write
    calls: tuple[Call, ...]
    network: tuple[int, ...]  # when the requests were sent to which nobody listens any more
    effects: int
    server_saw: int  # when the server first applied the key; -1: never
    now: int
    jumped: int
    arms: int  # that are left
    claims: int
    power_losses: int
    failovers: int
    losses: int
    late: int
    copies: tuple[tuple[Any, ...], ...]  # statements that will be executed once more


class Search:
    def __init__(self, world: World) -> None:
        self.world = world
        self.records: list[Record | None] = [None]
        self.numbers: dict[Any, int] = {None: 0}
        self.executed: dict[Any, tuple[int, Any]] = {}

    def broken(self, limit: int = 400_000) -> list[str] | None:
        """The shortest story in which the key is applied twice, or done and never applied; None if there is none."""
        w = self.world
        start = State(
            record=0, unsynced=(), calls=(Call(),) * w.calls, network=(), effects=0, server_saw=-1, now=0, jumped=0,
            arms=w.arms, claims=w.claims, power_losses=w.power_losses, failovers=w.failovers, losses=w.losses,
            late=w.late, copies=(),
        )  # fmt: skip
        came: dict[State, tuple[State, str] | None] = {start: None}
        queue = deque([start])
        while queue:
            state = queue.popleft()
            for what, following in self.steps(state):
                after = self._essence(following)
                if after in came:
                    continue
                came[after] = (state, what)
                if after.effects > 1 or (not after.effects and self._done(following)):
                    return self._story(came, after)
                possible = len(after.network) + sum(
                    call.message == "pending" or call.doing == "armed" for call in after.calls
                )
                if after.effects + possible + after.arms > 1:  # else no duplicate can come of it any more
                    queue.append(after)
            assert len(came) < limit, "the world is too large to search"
        self.states = len(came)
        return None

    def _done(self, state: State) -> bool:
        record = self.records[state.record]
        return record is not None and record.phase is Phase.DONE

    def _essence(self, state: State) -> State:
        """After the last arm only the requests matter that are under way, or may still be sent."""
        if state.arms:
            return state
        for call in state.calls:
            state = self._unheard(state, call)
        calls = tuple(sorted(call for call in state.calls if call.doing == "armed"))
        return state._replace(
            record=0, unsynced=(), calls=calls, copies=(), claims=0, power_losses=0, failovers=0, losses=0, late=0
        )

    @staticmethod
    def _story(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
        story = []
        while (step := came[state]) is not None:
            state, what = step
            story.append(what)
        return story[::-1]

    # -- the ledger

    def run(self, statement: tuple[Any, ...], number: int, now: float) -> tuple[int, Any]:
        known = (statement, number, now)
        if known not in self.executed:
            after, answer = self._execute(statement, self.records[number], now)
            self.executed[known] = self._intern(after), answer
        return self.executed[known]

    def _execute(self, statement: tuple[Any, ...], record: Record | None, now: float) -> tuple[Record | None, Any]:
        name, owner, fence = statement[:3]
        who, keep, rules = bytes([owner]), self.world.retention, self.world.protocol
        match name:
            case "arm":
                token, window = bytes([statement[3]]), self.world.window
                take = Take(key=KEY, owner=who, token=token, fingerprint=b"f", lease=LEASE, window=window)
                after, answer = rules.arm(record, take, now, keep)
                return after, answer if isinstance(answer, Taken) else None
            case "claim":
                take = Take(key=KEY, owner=who, token=bytes([99]), fingerprint=b"f", lease=-1.0)
                return rules.claim(record, take, now, keep)[0], None
            case "park":
                return rules.park(record, who, fence, now, keep, lease=LEASE), None
            case "reject":
                return rules.reject(record, who, fence, now, keep), None
            case "unknown":
                return rules.unknown(record, who, fence), None
            case "done":
                return rules.done(record, KEY, {"status": 200}, now, keep), None
            case "expire":
                return rules.expire(record, fence, now), None
            case "resolve":
                return rules.resolve(record, fence, "not_applied", now, keep, quiet=self.world.quiet), None
        raise AssertionError(name)

    def _intern(self, record: Record | None) -> int:
        if record is None:
            return 0
        world = self.world
        # Without what nothing in this world looks at: fewer states, the same stories.
        record = evolve(
            record,
            result=None,
            attempts=0,
            first_seen=0.0,
            first_armed=record.first_armed if world.window else None,
            lease=max(record.lease, -1.0),
            last_armed=record.last_armed if world.reconciler or world.window else None,
        )
        if record not in self.numbers:
            self.numbers[record] = len(self.records)
            self.records.append(record)
        return self.numbers[record]

    def say(self, state: State, statement: tuple[Any, ...]) -> Iterator[tuple[str, State, Any]]:
        """The statement arrives; or it arrives, and again later; or it never does, or its answer is lost."""
        number, answer = self.run(statement, state.record, state.now + state.jumped)
        after = self._written(state, number, synced=statement[0] == "arm" and self.world.arm_synced)
        yield statement[0], after, answer
        if state.late:
            again = tuple(sorted((*after.copies, statement)))
            yield f"{statement[0]} (a copy is under way)", after._replace(late=state.late - 1, copies=again), answer
        if state.losses:
            # The caller learns nothing: for an arm that means not to send, whether it was executed or not.
            yield f"{statement[0]} never arrives", state._replace(losses=state.losses - 1), LOST
            if answer is not None:
                yield f"{statement[0]}, its answer is lost", after._replace(losses=state.losses - 1), LOST

    def _written(self, state: State, number: int, *, synced: bool) -> State:
        if synced:
            return state._replace(record=number, unsynced=())
        if number == state.record or not (state.power_losses or state.failovers):
            return state._replace(record=number)
        return state._replace(record=number, unsynced=(*state.unsynced, state.record))

    # -- the world

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        world = self.world
        for index, call in enumerate(state.calls):
            if index and state.calls[index - 1] == call:
                continue  # the same steps
            others = state.calls[:index] + state.calls[index + 1 :]
            for what, after, then in self._work(state, call):
                yield f"call {then.owner or call.owner}: {what}", after._replace(calls=tuple(sorted((*others, then))))
            if call.message == "pending":
                for what, after in self._apply(state, call.sent_at):
                    then = call._replace(message="applied")
                    yield f"server: {what} {call.owner}", after._replace(calls=tuple(sorted((*others, then))))
                then = call._replace(message="refused")
                yield f"server: refuses {call.owner}", state._replace(calls=tuple(sorted((*others, then))))
        for index, sent_at in enumerate(state.network):
            rest = state.network[:index] + state.network[index + 1 :]
            for what, after in self._apply(state._replace(network=rest), sent_at):
                yield f"server: {what} a request to which nobody listens", after
        for index, copy in enumerate(state.copies):
            number, _ = self.run(copy, state.record, state.now + state.jumped)
            after = self._written(state, number, synced=copy[0] == "arm" and world.arm_synced)
            yield f"late copy of {copy[0]}", after._replace(copies=state.copies[:index] + state.copies[index + 1 :])
        if state.power_losses:
            dark = state._replace(power_losses=state.power_losses - 1, unsynced=())
            for call in state.calls:
                dark = self._unheard(dark, call)
            calls = tuple(sorted(call if call.doing == "new" else OVER for call in state.calls))
            for number in {state.record, *state.unsynced}:
                yield "the power fails", dark._replace(record=number, calls=calls)
        if state.failovers:
            for number in {state.record, *state.unsynced}:
                yield "a replica takes over", state._replace(failovers=state.failovers - 1, record=number, unsynced=())
        record = self.records[state.record]
        if record is not None and record.phase is Phase.ARMED:
            yield from ((what, after) for what, after, _ in self.say(state, ("expire", 0, record.fence)))
        if record is not None and record.phase is Phase.HELD and world.reconciler and self._may_ask(state, record):
            statement = ("resolve", 0, record.fence) if not state.effects else ("done", 0, 0)
            yield from ((f"reconciler: {what}", after) for what, after, _ in self.say(state, statement))
        if world.sweeps and world.protocol.live(record, state.now + state.jumped) is None and record is not None:
            yield "sweep", self._written(state, 0, synced=False)
        if world.timeless:
            older = tuple(self._aged(number) for number in state.unsynced)
            yield "the lease is over", state._replace(record=self._aged(state.record), unsynced=older)
        elif state.now < world.ticks:
            yield "tick", state._replace(now=state.now + 1)
        if state.jumped < world.jumps:
            yield "the clock is set forward", state._replace(jumped=state.jumped + 1)
        if state.jumped:
            yield "the clock is set back", state._replace(jumped=state.jumped - 1)

    def _may_ask(self, state: State, record: Record) -> bool:
        # The statement looks at the clock when it is executed, which may be long after the provider answered.
        assert record.last_armed is not None
        return not self.world.asks_in_time or record.last_armed <= state.now + state.jumped - self.world.quiet

    def _aged(self, number: int) -> int:
        record = self.records[number]
        return number if record is None else self._intern(evolve(record, lease=-1.0))

    def _work(self, state: State, call: Call) -> Iterator[tuple[str, State, Call]]:
        match call.doing:
            case "new":
                begun = call._replace(doing="between", owner=1 + sum(other.doing != "new" for other in state.calls))
                yield from self._put_off(state, begun)
                yield from self._arm(state, begun) if self.world.arms_first else self._send(state, begun)
            case "between":
                yield from self._arm(state, call)
            case "unsure":
                if record := self._armed_by(state, call):
                    yield from self._tell(state, call._replace(fence=record.fence), "park", "over", "takes back: ")
            case "armed":
                if state.now < call.deadline:
                    yield from self._send(state, call)
                yield from self._tell(state, call, "park", "between", "could not send: ")
            case "sent":
                if self.world.good_news_early:
                    for what, after, _ in self.say(state, ("done", call.owner, call.fence)):
                        yield f"{what}, too early", after, OVER
                if not self.world.arms_first and not call.fence:
                    for what, after, taken in self.say(state, ("arm", call.owner, 0, state.arms)):
                        yield what, after, call._replace(fence=taken.fence if isinstance(taken, Taken) else -1)
                elif call.message == "applied":
                    yield "gets 200", state, call._replace(doing="answered", message="", sent_at=0)
                elif call.message == "refused":
                    yield "gets 429", state, call._replace(doing="refused", message="", sent_at=0)
                yield "hears nothing", self._unheard(state, call), call._replace(doing="lost", message="", sent_at=0)
            case "answered":
                yield from self._tell(state, call, "done", "over", "")
            case "refused":
                yield from self._tell(state, call, "reject", "over", "")
                yield from self._tell(state, call, "park", "between", "")
            case "lost":
                yield from self._tell(state, call, "unknown", "between" if self.world.window else "over", "")

    def _arm(self, state: State, call: Call) -> Iterator[tuple[str, State, Call]]:
        if not state.arms:
            return
        statement = ("arm", call.owner, 0, state.arms)  # how many are left names the arm: a token
        for what, after, taken in self.say(state._replace(arms=state.arms - 1), statement):
            if taken is None:
                yield f"{what}: no", after, OVER
                continue
            if taken is LOST:
                yield from self._unsure(what, after, call._replace(doing="unsure", token=statement[3]))
                continue
            deadline = math.inf  # plain holding depends on no clock
            if self.world.deadline_checked and (self.world.window or self.world.reconciler):
                deadline = state.now + LEASE
            if self.world.window and taken.tainted:
                deadline = min(deadline, taken.first_armed - state.jumped + self.world.window)
            yield f"{what}: yes", after, call._replace(doing="armed", fence=taken.fence, deadline=deadline)

    def _unsure(self, what: str, state: State, call: Call) -> Iterator[tuple[str, State, Call]]:
        if not (self.world.sends_unsure and self._armed_by(state, call)):
            yield what, state, call
            return
        for told, after in self._apply(state, 0):
            yield f"{what}; sends all the same, server {told}", after, call

    def _armed_by(self, state: State, call: Call) -> Record | None:
        record, ours = self.records[state.record], (bytes([call.owner]), bytes([call.token]))
        found = record is not None and record.phase is Phase.ARMED and (record.owner, record.token) == ours
        return record if found else None

    def _put_off(self, state: State, call: Call) -> Iterator[tuple[str, State, Call]]:
        if state.claims:
            for what, after, _ in self.say(state._replace(claims=state.claims - 1), ("claim", call.owner, 0)):
                yield f"puts itself off: {what}", after, OVER

    def _send(self, state: State, call: Call) -> Iterator[tuple[str, State, Call]]:
        then = call._replace(doing="sent", message="pending", sent_at=state.now, deadline=0.0)
        after = state if self.world.arms_first else state._replace(arms=state.arms - 1)
        if self.world.timeless:
            for what, told in self._apply(after, 0):
                yield f"sends, server {what}", told, then._replace(message="applied", sent_at=0)
            yield "sends, server refuses", after, then._replace(message="refused", sent_at=0)
        else:
            yield "sends", after, then

    def _tell(self, state: State, call: Call, name: str, doing: str, why: str) -> Iterator[tuple[str, State, Call]]:
        then = OVER if doing == "over" else Call(doing=doing, owner=call.owner)
        for what, after, _ in self.say(state, (name, call.owner, call.fence)):
            yield why + what, after, then

    def _apply(self, state: State, sent_at: int) -> Iterator[tuple[str, State]]:
        if self.world.travel < math.inf and state.now > sent_at + self.world.travel:
            return
        window = self.world.server_window
        if window is None:
            yield "applies", state._replace(effects=state.effects + 1)
        elif state.server_saw >= 0 and state.now < state.server_saw + window:
            yield "knows", state
        else:
            yield "applies", state._replace(effects=state.effects + 1, server_saw=state.now)

    @staticmethod
    def _unheard(state: State, call: Call) -> State:
        if call.message != "pending":
            return state
        return state._replace(network=tuple(sorted((*state.network, call.sent_at))))
