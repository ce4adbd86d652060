"""Random walks: statements about one key, most of them apt in its phase, and the records before and after each."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from retrypolicy.guard import transitions as t
from retrypolicy.guard.ledger import Phase, Record, Refused, Take, Taken

KEY, A, B, KEEP = b"k" * 32, b"A" * 16, b"B" * 16, 1000.0


@frozen(kw_only=True)
class Said:
    """One statement, and the records before and after it."""

    operation: str
    options: dict[str, Any]  # what was chosen
    words: tuple[Any, ...]  # and so the arguments, as a ledger gets them after the key
    more: dict[str, Any]
    now: float
    before: Record | None
    after: Record | None
    answer: Taken | Refused | None
    again: Record | None  # after the same statement once more, as after a lost reply
    answer_again: Taken | Refused | None

    @property
    def take(self) -> Take | None:
        return self.words[0] if self.operation in ("arm", "claim") else None

    @property
    def changed(self) -> bool:
        return self.after is not self.before

    @property
    def known(self) -> Record | None:
        """What was known of the key."""
        return t.live(self.before, self.now)


APT = {
    None: ["arm", "arm", "claim", "done"],
    Phase.CLAIMED: ["arm", "arm", "claim", "park", "reject", "done"],
    Phase.ARMED: ["park", "reject", "unknown", "expire", "arm", "done"],
    Phase.HELD: ["arm", "arm", "resolve", "resolve", "claim", "done"],
    Phase.FAILED: ["arm", "arm", "claim", "done"],
    Phase.DONE: ["arm", "claim", "done"],
}
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "arm": {
        "owner": [A, A, B],
        "content": ["same", "same", "same", "other", "other, under another outgoing key"],
        "lease": [-1.0, 10.0, 100.0],
        "attempts": [1, 3],
        "window": [None, 50.0, math.inf],
        "not_before": [0.0, 120.0, 5000.0],
        "label": ["", "order 42", "order 43"],
        "provider": ["", "resend", "brevo"],
    },
    "park": {"fits": [True, True, False], "lease": [..., 0.0, 0.5, 10.0], "not_before": [..., 0.0, 120.0, 5000.0]},
    "reject": {"fits": [True, True, False], "sure": [..., True, False], "not_before": [..., 120.0, 5000.0]},
    "unknown": {"fits": [True, True, False], "not_before": [..., 0.0, 120.0]},
    "done": {"result": [{}, {"status": 200}], "provider": [..., "resend"]},
    "expire": {"fits": [True, True, False]},
    "resolve": {
        "fits": [True, True, False],
        "verdict": ["applied", "not_applied"],
        "quiet": [..., 30.0],
        "result": [..., {}, {"status": 200}],
    },
}
"""What is chosen from; `...`: the option is left out."""
OPTIONS["claim"] = OPTIONS["arm"]
MOMENTS = [0.0, 0.0, 0.25, 9.0, 60.0, 60.0, 150.0, 1500.0]


def take_for(record: Record | None, options: dict[str, Any]) -> Take:
    options = dict(options)
    content = options.pop("content")
    fingerprint = b"f" * 32 if record is None else record.fingerprint
    generation = 1 if record is None else record.generation
    if content != "same":
        fingerprint = b"g" * 32 if fingerprint == b"f" * 32 else b"f" * 32
        generation += content != "other"
    return Take(key=KEY, fingerprint=fingerprint, generation=generation, **options)


def words_for(record: Record | None, operation: str, options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a statement, as a ledger gets them after the key."""
    options = dict(options)
    if operation in ("arm", "claim"):
        return (take_for(record, options),), {}
    if operation == "done":
        return (options.pop("result"),), options
    fits = options.pop("fits")
    owner = record.owner if record is not None and record.owner is not None else A
    fence = record.fence if record is not None else 1
    if not fits:
        owner, fence = B if owner == A else A, fence - 1
    if operation == "expire":
        return (fence,), options
    if operation == "resolve":
        return (fence, options.pop("verdict")), options
    return (owner, fence), options


def say(record: Record | None, operation: str, words: tuple[Any, ...], more: dict[str, Any], now: float) -> Any:
    """What the transition of this name makes of the record, and its answer."""
    times = {"unknown": (), "expire": (now,)}.get(operation, (now, KEEP))
    if operation == "done":
        words = (KEY, *words)
    said = getattr(t, operation)(record, *words, *times, **more)
    return said if operation in ("arm", "claim") else (said, None)


def walk(chance: random.Random) -> Iterator[Said]:
    record, now = None, 100.0
    for _ in range(12):
        now += chance.choice(MOMENTS)
        known = t.live(record, now)
        apt = APT[None if known is None else known.phase] if chance.random() < 0.9 else list(OPTIONS)
        operation = chance.choice(apt)
        options = {name: chance.choice(values) for name, values in OPTIONS[operation].items()}
        options = {name: value for name, value in options.items() if value is not ...}
        if operation in ("arm", "claim"):
            options["token"] = chance.randbytes(4)
        words, more = words_for(known if operation in ("arm", "claim") else record, operation, options)
        after, answer = say(record, operation, words, more, now)
        again, answer_again = say(after, operation, words, more, now)
        yield Said(
            operation=operation,
            options=options,
            words=words,
            more=more,
            now=now,
            before=record,
            after=after,
            answer=answer,
            again=again,
            answer_again=answer_again,
        )
        record = after
