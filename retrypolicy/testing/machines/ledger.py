"""Any ledger against the pure transitions: same answers, same records, whatever the order of operations."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from attrs import evolve, frozen
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from retrypolicy.clock import VirtualClock
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import Filter, Phase, Record, Refused, Take, Taken
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.testing.machines.coverage import Machine
from retrypolicy.testing.machines.likeness import same_answer, same_record
from retrypolicy.testing.machines.subject import Subject

KEYS = (b"k" * 32, b"l" * 32)
_KEYS = st.sampled_from((*KEYS[:1] * 3, KEYS[1]))  # one key mostly: bugs lie in long stories, not in many
OWNERS = (b"A" * 16, b"B" * 16, b"C" * 16)
RACERS = (b"X" * 16, b"Y" * 16, b"Z" * 16)  # others: a key between its attempts is free for its owner alone
PRINTS = (b"f" * 32, b"g" * 32)
SHORT, LONG = 10.0, 10_000.0


@frozen
class _Said:
    """One statement as it went to the ledger, to be said again: how it is said, and what it means."""

    name: str
    key: bytes
    say: Callable[[], Any]
    mean: Callable[[Record | None, float], tuple[Record | None, Any]]


class LedgerMachine(Machine):
    """Callers take, settle and lose keys, repeat what they said, die and race; clocks jump; the store is reopened.

    After every step each record must be what `retrypolicy.guard.transitions` make of the one before, and each answer
    what they answer: then the proofs of the guard hold for this ledger. Override `open`.
    """

    def open(self) -> Subject:
        """A fresh, empty ledger for each example."""
        clock = VirtualClock()
        return Subject(ledger=MemoryLedger(clock=clock), advance=clock.jump)

    @initialize()
    def begin(self) -> None:
        self.subject = self.open()
        self.ledger = self.subject.ledger
        self.handles = [self.ledger]
        self.model: dict[bytes, Record] = {}
        self.tokens = 0
        self.history: list[_Said] = []
        self.jumps = 0

    def teardown(self) -> None:
        if hasattr(self, "subject"):
            for other in self.handles[1:]:
                other.close()
            self.subject.close()

    # -- what callers do

    @rule(data=st.data(), key=_KEYS, owner=st.sampled_from(OWNERS))
    def arm(self, data: st.DataObject, key: bytes, owner: bytes) -> None:
        take = self._take(data, key, owner)
        self._do("arm", key, lambda: self.ledger.arm(take), lambda r, now: self._pure(transitions.arm, r, take, now))

    @precondition(lambda self: self._standing(Phase.HELD))
    @rule(data=st.data(), owner=st.sampled_from(OWNERS), then=st.sampled_from(["reject", "park", "unknown", "nothing"]))
    def resend(self, data: st.DataObject, owner: bytes, then: str) -> None:
        """What takes many lucky draws otherwise: a held key is sent again, and what became of that is told."""
        record = data.draw(st.sampled_from([r for r in self.model.values() if r.phase is Phase.HELD]), "record")
        key, retention = record.key, self.subject.retention
        window = data.draw(st.sampled_from([math.inf, math.inf, SHORT, LONG, None]), "window")
        take = evolve(
            self._take(data, key, owner), window=window, fingerprint=record.fingerprint, generation=record.generation
        )
        self._do("arm", key, lambda: self.ledger.arm(take), lambda r, now: self._pure(transitions.arm, r, take, now))
        fence = self.model[key].fence
        match then:
            case "reject":
                say = lambda: self.ledger.reject(key, owner, fence)  # noqa: E731
                mean = lambda r, now: transitions.reject(r, owner, fence, now, retention)  # noqa: E731
            case "park":
                say = lambda: self.ledger.park(key, owner, fence)  # noqa: E731
                mean = lambda r, now: transitions.park(r, owner, fence, now, retention)  # noqa: E731
            case "unknown":
                say = lambda: self.ledger.unknown(key, owner, fence)  # noqa: E731
                mean = lambda r, now: transitions.unknown(r, owner, fence)  # noqa: E731
            case _:
                return
        self._settle(then, key, say, mean)

    @precondition(lambda self: self.subject.advance is not None)
    @rule(data=st.data(), key=_KEYS)
    def owner_dies(self, data: st.DataObject, key: bytes) -> None:
        """Another one that takes luck: an attempt on the wire is never heard of again, and another call comes."""
        assert self.subject.advance is not None
        first = evolve(self._take(data, key, OWNERS[0]), lease=SHORT)
        self._do("arm", key, lambda: self.ledger.arm(first), lambda r, now: self._pure(transitions.arm, r, first, now))
        self.subject.advance(SHORT + 1)
        next_ = evolve(first, owner=OWNERS[1], token=OWNERS[1])
        self._do("arm", key, lambda: self.ledger.arm(next_), lambda r, now: self._pure(transitions.arm, r, next_, now))

    @rule(data=st.data(), key=_KEYS, owner=st.sampled_from(OWNERS))
    def claim(self, data: st.DataObject, key: bytes, owner: bytes) -> None:
        not_before = data.draw(st.sampled_from([0.0, self._now() + SHORT, self._now() + LONG]), "not_before")
        take = evolve(self._take(data, key, owner), not_before=not_before)
        self._do(
            "claim", key, lambda: self.ledger.claim(take), lambda r, now: self._pure(transitions.claim, r, take, now)
        )

    @precondition(lambda self: self._standing(Phase.ARMED, Phase.CLAIMED))
    @rule(data=st.data(), lease=st.sampled_from([0.0, SHORT, LONG]))
    def park(self, data: st.DataObject, lease: float) -> None:
        key, owner, fence = self._held_by(data, Phase.ARMED, Phase.CLAIMED)
        not_before = self._not_before(data)
        self._settle(
            "park",
            key,
            lambda: self.ledger.park(key, owner, fence, lease=lease, not_before=not_before),
            lambda r, now: transitions.park(
                r, owner, fence, now, self.subject.retention, lease=lease, not_before=not_before
            ),
        )

    @precondition(lambda self: self._standing(Phase.ARMED, Phase.CLAIMED))
    @rule(data=st.data(), sure=st.booleans())
    def reject(self, data: st.DataObject, sure: bool) -> None:
        key, owner, fence = self._held_by(data, Phase.ARMED, Phase.CLAIMED)
        not_before = self._not_before(data)
        self._settle(
            "reject",
            key,
            lambda: self.ledger.reject(key, owner, fence, sure=sure, not_before=not_before),
            lambda r, now: transitions.reject(
                r, owner, fence, now, self.subject.retention, sure=sure, not_before=not_before
            ),
        )

    @precondition(lambda self: self._standing(Phase.ARMED))
    @rule(data=st.data())
    def unknown(self, data: st.DataObject) -> None:
        key, owner, fence = self._held_by(data, Phase.ARMED)
        not_before = self._not_before(data)
        self._settle(
            "unknown",
            key,
            lambda: self.ledger.unknown(key, owner, fence, not_before=not_before),
            lambda r, now: transitions.unknown(r, owner, fence, not_before=not_before),
        )

    @rule(key=_KEYS, status=st.sampled_from([200, 202]), provider=st.sampled_from(["", "resend"]))
    def done(self, key: bytes, status: int, provider: str) -> None:
        result = {"status": status, "id": "msg-1", "more": [1, {"x": None}]}
        self._settle(
            "done",
            key,
            lambda: self.ledger.done(key, result, provider=provider),
            lambda r, now: transitions.done(r, key, result, now, self.subject.retention, provider=provider),
        )

    @precondition(lambda self: self._standing(Phase.ARMED))
    @rule(data=st.data(), off=st.sampled_from([0, 0, 0, 1, -1]))
    def expire(self, data: st.DataObject, off: int) -> None:
        key, _, fence = self._held_by(data, Phase.ARMED)
        self._settle(
            "expire",
            key,
            lambda: self.ledger.expire(key, fence + off),
            lambda r, now: transitions.expire(r, fence + off, now),
        )

    @precondition(lambda self: self._standing(Phase.HELD))
    @rule(
        data=st.data(),
        verdict=st.sampled_from(["applied", "not_applied"]),
        quiet=st.sampled_from([0.0, 0.0, LONG]),
        result=st.sampled_from([None, {"how": "by hand"}]),
        off=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def resolve(self, data: st.DataObject, verdict: Any, quiet: float, result: Any, off: int) -> None:
        key, _, fence = self._held_by(data, Phase.HELD)
        self._settle(
            "resolve",
            key,
            lambda: self.ledger.resolve(key, fence + off, verdict, quiet=quiet, result=result),
            lambda r, now: transitions.resolve(
                r, fence + off, verdict, now, self.subject.retention, quiet=quiet, result=result
            ),
        )

    # -- what the world does

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def say_it_again(self, data: st.DataObject) -> None:
        """A client library repeats a statement, at once or much later."""
        back = data.draw(st.integers(1, min(6, len(self.history))), "how far back")
        said = self.history[-back]
        self._run(said)

    @precondition(lambda self: self.subject.advance is not None)
    @rule(seconds=st.sampled_from([0.001, SHORT, SHORT + 1, LONG + 1]))
    def time_passes(self, seconds: float) -> None:
        assert self.subject.advance is not None
        self.subject.advance(seconds)

    @precondition(lambda self: self.subject.advance is not None and self.jumps < 3)
    @rule(seconds=st.sampled_from([-LONG, -SHORT, 10 * LONG]))
    def clock_jumps(self, seconds: float) -> None:
        assert self.subject.advance is not None
        self.jumps += 1
        self.subject.advance(seconds)

    @precondition(lambda self: self.subject.advance is not None and self.jumps < 3 and self.model)
    @rule()
    def long_time_passes(self) -> None:
        assert self.subject.advance is not None
        self.jumps += 1
        self.subject.advance(self.subject.retention + 1)

    @rule(limit=st.sampled_from([1, 500]))
    def purge(self, limit: int) -> None:
        now = self._now()
        over = [key for key, record in self.model.items() if transitions.live(record, now) is None]
        counted = self.ledger.purge(limit, dry_run=True)
        assert counted <= len(over)
        deleted = 0
        while count := self.ledger.purge(limit):
            assert count <= limit
            deleted += count
        assert deleted == counted or self.subject.tolerance
        assert deleted <= len(over)  # less where the server deletes by itself
        for key in over:
            del self.model[key]  # gone: a clock that jumps back does not bring it back

    @rule()
    def close(self) -> None:
        if self.ledger.durable:
            self.ledger.close()  # it opens again by itself

    @precondition(lambda self: self.subject.reopen is not None and len(self.handles) < 3)
    @rule()
    def another_process(self) -> None:
        """It opens the store; what the first one was told, it knows."""
        assert self.subject.reopen is not None
        self.ledger = self.subject.reopen()
        self.handles.append(self.ledger)

    @precondition(lambda self: len(self.handles) > 1)
    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        """One of the other processes goes on."""
        self.ledger = self.handles[data.draw(st.integers(0, len(self.handles) - 1), "process")]

    @precondition(lambda self: self.subject.threads and not self.subject.tolerance)
    @rule(data=st.data(), key=_KEYS)
    def race(self, data: st.DataObject, key: bytes) -> None:
        """All want the key at once: one gets it, or none. Then it is done, since who it was is luck."""
        take = self._take(data, key, RACERS[0])
        takes = [evolve(take, owner=owner, token=owner) for owner in RACERS]
        before, now = self.model.get(key), self._now()
        after, expected = transitions.arm(before, takes[0], now, self.subject.retention)
        answers = self._at_once(takes)
        won = [answer for answer in answers if isinstance(answer, Taken)]
        assert len(won) == isinstance(expected, Taken), (before, answers)
        for answer in won:
            same_answer(answer, expected, 0.0)
        self.moved("race", _phase(transitions.live(before, now)), _phase(after))
        if after is not None:
            self.model[key] = after
        self.done(key, 200, "")

    # -- what must be true

    @invariant()
    def every_record_is_as_the_model_says(self) -> None:
        if not hasattr(self, "subject"):
            return
        for key in KEYS:
            found, now = self.ledger.read(key)
            expected = transitions.live(self.model.get(key), now)
            same_record(found, expected, self.subject.tolerance)

    @rule(
        where=st.builds(
            Filter,
            phases=st.frozensets(st.sampled_from(Phase), max_size=2),
            provider=st.sampled_from([None, "", "resend"]),
            label=st.sampled_from([None, "rder 4", "%"]),
            older_than=st.sampled_from([None, LONG]),
        )
    )
    def listing(self, where: Filter) -> None:
        now = self._now()
        expected = {k for k, r in self.model.items() if transitions.matches(r, where, now)}
        found = list(self.ledger.records(where))
        assert {record.key for record in found} == expected
        assert len(found) == len(expected)
        everything = [r.phase for r in self.model.values() if transitions.live(r, now) is not None]
        counts = self.ledger.counts()
        assert {phase: count for phase, count in counts.items() if count} == {
            p: everything.count(p) for p in everything
        }

    # -- how

    def _at_once(self, takes: list[Take]) -> list[Taken | Refused]:
        """The answers of `arm`, asked for by one thread each."""
        start = threading.Barrier(len(takes))

        def arm(number: int) -> Taken | Refused:
            start.wait(10)
            return self.handles[number % len(self.handles)].arm(takes[number])

        with ThreadPoolExecutor(len(takes)) as pool:
            return list(pool.map(arm, range(len(takes))))

    def _now(self) -> float:
        return self.ledger.read(KEYS[0])[1]

    def _standing(self, *phases: Phase) -> bool:
        return any(record.phase in phases for record in self.model.values())

    def _not_before(self, data: st.DataObject) -> float:
        if data.draw(st.booleans(), "wait?"):
            return self._now() + data.draw(st.sampled_from([SHORT, LONG]), "for")
        return 0.0

    def _held_by(self, data: st.DataObject, *phases: Phase) -> tuple[bytes, bytes, int]:
        """Key, owner and fence of a record; sometimes a wrong owner, or the fence of an earlier arm."""
        record = data.draw(st.sampled_from([r for r in self.model.values() if r.phase in phases]), "record")
        owner = data.draw(st.sampled_from([record.owner or OWNERS[0]] * 3 + [OWNERS[1]]), "owner")
        fence = data.draw(st.sampled_from([record.fence] * 3 + [max(1, record.fence - 1)]), "fence")
        return record.key, owner, fence

    def _take(self, data: st.DataObject, key: bytes, owner: bytes) -> Take:
        self.tokens += 1
        known = self.model.get(key)
        return Take(
            key=key,
            owner=owner,
            token=self.tokens.to_bytes(16, "big"),
            fingerprint=data.draw(st.sampled_from([PRINTS[0]] * 3 + [PRINTS[1]]), "fingerprint"),
            lease=data.draw(st.sampled_from([0.0, SHORT, LONG]), "lease"),
            generation=max(1, (known.generation if known else 1) + data.draw(st.sampled_from([0, 0, 1, -1]), "more")),
            attempts=data.draw(st.sampled_from([1, 1, 3]), "attempts"),
            window=data.draw(st.sampled_from([None, 0.0, SHORT, LONG, math.inf]), "window"),
            label=data.draw(st.sampled_from(["", "order 42", "Ångström 100%"]), "label"),
            provider=data.draw(st.sampled_from(["", "resend"]), "provider"),
        )

    def _pure(self, function: Any, record: Record | None, take: Take, now: float) -> tuple[Record | None, Any]:
        after, answer = function(record, take, now, self.subject.retention)
        return after, answer

    def _settle(
        self, name: str, key: bytes, say: Callable[[], bool], mean: Callable[[Record | None, float], Record | None]
    ) -> None:
        def answered(record: Record | None, now: float) -> tuple[Record | None, bool]:
            after = mean(record, now)
            return after, after is not record

        self._do(name, key, say, answered)

    def _do(self, name: str, key: bytes, say: Callable[[], Any], mean: Any) -> None:
        said = _Said(name, key, say, mean)
        self.history.append(said)
        self._run(said)

    def _run(self, said: _Said) -> None:
        before = self.model.get(said.key)
        start = self._now()
        answer = said.say()
        end = self._now()
        # By the server's clock, the moment lies somewhere between the two: the model must agree for one of them.
        problem: AssertionError | None = None
        for now in dict.fromkeys((start, end)):
            after, expected = said.mean(before, now)
            found, _ = self.ledger.read(said.key)
            try:
                same_answer(answer, expected, self.subject.tolerance)
                same_record(found, transitions.live(after, end), self.subject.tolerance)
            except AssertionError as error:
                problem = error
                continue
            if self.subject.tolerance and found is not None:
                after = found  # its times are the server's
            if after is not None:
                self.model[said.key] = after
            self.moved(said.name, _phase(transitions.live(before, now)), _phase(after))
            return
        assert problem is not None
        problem.add_note(f"after {said.name} on {before}")
        raise problem


def _phase(record: Record | None) -> str:
    return "absent" if record is None else record.phase.name.lower()
