"""What came of it: accepted as the server counted, held as the ledger says, nothing as a client believes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import asdict, frozen

from retrypolicy.demo import APIS, MODES
from retrypolicy.demo.stage import Play, Played, Task
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Record

OURS = MODES[-1]


@frozen(kw_only=True)
class Row:
    """One line of the table: how many messages were accepted so and so often, and in how many requests."""

    once: int
    more: int
    never: int
    held: int
    requests: int
    received: int  # requests that the server read whole


@frozen(kw_only=True)
class Held:
    """A message that waits in the ledger for evidence; `accepted` is the server's count, which no client can see."""

    api: str
    message: int
    label: str
    digest: str
    accepted: int


@frozen(kw_only=True)
class Tally:
    """The whole result."""

    rows: Mapping[str, Mapping[str, Row]]  # by way of sending, then by API, and "both"
    seconds: Mapping[str, float]
    kills: Mapping[str, int]
    held: tuple[Held, ...]
    lost: tuple[Task, ...]  # ours only: never accepted, not held, and not reported as failed

    @property
    def good(self) -> bool:
        """Did retrypolicy keep its promise: nothing twice, nothing lost silently?"""
        return self.rows[OURS]["both"].more == 0 and not self.lost

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "ways": {
                mode: {
                    "seconds": self.seconds[mode],
                    "kills": self.kills[mode],
                    **{api: asdict(row) for api, row in rows.items()},
                }
                for mode, rows in self.rows.items()
            },
            "held": [asdict(held) for held in self.held],
            "lost": [{"api": api, "message": message} for api, message in self.lost],
            "good": self.good,
        }


def tally(play: Play, played: Played, ledger: Ledger) -> Tally:
    """Put the server's book and the ledger's together."""
    counts = {
        mode: {(line["api"], line["message"]): line for line in day["messages"]} for mode, day in played.book.items()
    }
    ours = {task: line["accepted"] for task, line in counts[OURS].items()}
    held = tuple(sorted(_held(ledger, ours), key=lambda one: (one.message, one.api)))
    waiting = {(one.api, one.message) for one in held}
    return Tally(
        rows={
            mode: {
                api: _row(
                    [counts[mode].get(t, {}) for t in play.tasks if api in (t[0], "both")], _waiting(mode, api, held)
                )
                for api in (*APIS, "both")
            }
            for mode in MODES
        },
        seconds={mode: played.book[mode]["seconds"] for mode in MODES},
        kills={mode: played.book[mode]["kills"] for mode in MODES},
        held=held,
        lost=tuple(
            task
            for task in play.tasks
            if not ours.get(task) and task not in waiting and played.said[OURS].get(task) != "failed"
        ),
    )


def _waiting(mode: str, api: str, held: Iterable[Held]) -> int:
    return sum(api in (one.api, "both") for one in held) if mode == OURS else 0


def _row(lines: list[Mapping[str, int]], held: int) -> Row:
    accepted = [line.get("accepted", 0) for line in lines]
    return Row(
        once=accepted.count(1),
        more=sum(times > 1 for times in accepted),
        never=accepted.count(0),
        held=held,
        requests=sum(line.get("arrived", 0) for line in lines),
        received=sum(line.get("received", 0) for line in lines),
    )


def _held(ledger: Ledger, accepted: Mapping[Task, int]) -> Iterable[Held]:
    # An armed record whose sender died is held too: the next look at it says so.
    for record in ledger.records(Filter(phases=frozenset({Phase.HELD, Phase.ARMED}))):
        task = _task(record)
        yield Held(
            api=task[0],
            message=task[1],
            label=record.label.partition(": ")[2],
            digest=record.key.hex(),
            accepted=accepted.get(task, 0),
        )


def _task(record: Record) -> Task:
    return record.provider.lower(), int(record.label.partition(":")[0])
