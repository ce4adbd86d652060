"""A bad hour: senders are killed, jobs delivered again and twice, answers dropped. The server's count is the truth."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from attrs import define, field, frozen

from retrypolicy.guard import Ledger, Phase
from retrypolicy.guard.key import Secret, key_digest
from retrypolicy.testing import Answer, Close, FaultServer, Reset

from .sender import Order, key_of, work

PROCESSES = 4
SECRET = "a secret for the fire"
TWICE = 0.05  # the share of jobs that the queue delivers twice at about the same time
AGAIN = 0.2  # seconds until a job comes again that was not acknowledged
_HELD = (Phase.HELD, Phase.ARMED)  # what is armed when everybody is dead counts as held

_LATE = Answer(200, delay=0.05)
_STEPS: list[tuple[float, Any, bool]] = [  # how often, what the server does, and whether it applied the request
    (0.66, Answer(200), True),
    (0.06, _LATE, True),
    (0.08, Close("request"), True),
    (0.04, Reset("request"), True),
    (0.04, Answer(500), True),
    (0.03, Close("request"), False),
    (0.06, Answer(429, headers={"Retry-After": "0"}), False),
    (0.03, Answer(503, headers={"Retry-After": "0"}), False),
]


@frozen(kw_only=True)
class Figures:
    """What came of it."""

    sends: int
    seconds: float
    kills: int
    deliveries: int
    requests: int  # that the server read whole
    once: int
    twice: int
    lost: int  # never applied, and neither held nor still to be delivered
    false: int  # a sender was told "sent", and the server knows nothing of it
    held: int
    held_but_applied: int

    def __str__(self) -> str:
        return (
            f"{self.sends} sends in {self.seconds:.0f} s, {self.kills} kills, {self.deliveries} deliveries, "
            f"{self.requests} requests: applied once {self.once}, twice {self.twice}, lost {self.lost}, "
            f"held {self.held} (of these applied: {self.held_but_applied})"
        )


@define
class Truth:
    """What the server applied."""

    keys: bool
    chance: random.Random
    effects: Counter[int] = field(factory=Counter)
    requests: int = 0
    lock: Any = field(factory=threading.Lock)
    seen: set[str] = field(factory=set)

    def step(self, request: Any) -> Any:
        number = json.loads(request.body)["number"]
        with self.lock:
            self.requests += 1
            ((step, applies),) = self.chance.choices([(s, a) for _, s, a in _STEPS], [w for w, _, _ in _STEPS])
            if applies and self._is_new(request):
                self.effects[number] += 1
        return step

    def _is_new(self, request: Any) -> bool:
        if not self.keys:
            return True
        key = dict(request.headers)["X-Key"]
        known = key in self.seen
        self.seen.add(key)
        return not known


@define
class _Sender:
    process: Any
    jobs: Counter[int]  # delivered to it, and not acknowledged
    works: bool = False  # it acknowledged something


def burn(
    ledger: Ledger,
    url: str,
    sends: int,
    *,
    keys: bool = False,
    chunk: int = 50,
    kill_every: float = 0.3,
    chaos: Callable[[], None] | None = None,
    chaos_every: float = 2.0,
    seed: int = 0,
    patience: float = 120.0,
) -> Figures:
    """Send them all, through 4 processes of 4 threads each; every `kill_every` seconds, about, one is killed.

    `chaos` is called now and then, and may kill the store. `ledger` reads the same store when all is over.
    """
    chance = random.Random(seed)
    truth = Truth(keys=keys, chance=random.Random(seed + 1))
    pool = list(range(sends)) + chance.sample(range(sends), int(sends * TWICE))
    acknowledged: dict[int, set[str]] = {}
    senders: list[_Sender] = []
    news: queue.Queue[tuple[_Sender, int, str]] = queue.Queue()
    kills = deliveries = 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    began = time.monotonic()
    next_kill, next_chaos = began + chance.expovariate(1 / kill_every), began + chaos_every
    later: list[tuple[float, int]] = []

    def start(server: str) -> None:
        nonlocal pool, deliveries
        chance.shuffle(pool)
        jobs, pool = pool[:chunk], pool[chunk:]
        deliveries += len(jobs)
        hears, says = context.Pipe(duplex=False)
        order = Order(server=server, ledger=url, secret=SECRET, keys=keys)
        process = context.Process(target=work, args=(order, jobs, says), daemon=True)
        process.start()
        says.close()
        sender = _Sender(process, Counter(jobs))
        senders.append(sender)
        threading.Thread(target=_listen, args=(hears, sender, news), daemon=True).start()

    with FaultServer(truth.step) as server:
        while pool or later or senders:
            now = time.monotonic()
            assert now < began + patience, f"after {patience} s, {len(pool) + len(later)} jobs are not acknowledged"
            pool += [number for due, number in later if due <= now]
            later = [(due, number) for due, number in later if due > now]
            while pool and len(senders) < PROCESSES:
                start(server.url())
            with contextlib.suppress(queue.Empty):
                while True:
                    sender, number, said = news.get(timeout=0.01)
                    if said == "over":
                        senders.remove(sender)
                        later += [(now + AGAIN, left) for left in sender.jobs.elements()]
                        continue
                    sender.jobs[number] -= 1
                    sender.works = True
                    if said == "again":
                        later.append((now + AGAIN, number))
                    else:
                        acknowledged.setdefault(number, set()).add(said)
            working = [sender for sender in senders if sender.works]  # on a busy machine it takes long to begin
            if now > next_kill and working:
                with contextlib.suppress(ProcessLookupError):  # it ended at this moment
                    os.kill(chance.choice(working).process.pid, signal.SIGKILL)
                    kills += 1
                next_kill = now + chance.expovariate(1 / kill_every)
            if chaos is not None and now > next_chaos:
                chaos()
                next_chaos = time.monotonic() + chance.uniform(0.5, 1.5) * chaos_every
        server.settle()
    seconds = time.monotonic() - began
    phases = {n: _phase(ledger, n) for n in range(sends)}
    held = [n for n in range(sends) if phases[n] in _HELD]
    settled = [n for n in range(sends) if phases[n] not in _HELD]
    return Figures(
        sends=sends,
        seconds=seconds,
        kills=kills,
        deliveries=deliveries,
        requests=truth.requests,
        once=sum(truth.effects[n] == 1 for n in range(sends)),
        twice=sum(truth.effects[n] > 1 for n in range(sends)),
        lost=sum(truth.effects[n] == 0 for n in settled),
        false=sum("sent" in said and truth.effects[n] == 0 for n, said in acknowledged.items()),
        held=len(held),
        held_but_applied=sum(truth.effects[n] > 0 for n in held),
    )


def _listen(hears: Connection, sender: _Sender, news: queue.Queue[tuple[_Sender, int, str]]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, said = hears.recv()
            news.put((sender, number, said))
    hears.close()
    sender.process.join()
    news.put((sender, -1, "over"))


def _phase(ledger: Ledger, number: int) -> Phase | None:
    record = ledger.read(key_digest(Secret.of(SECRET), key_of(number)))[0]
    return None if record is None else record.phase
