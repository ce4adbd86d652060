"""Real workers in processes of their own, the server that they call, and what it counted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import celery

from retrypolicy.guard import Ledger, Phase, open_ledger
from retrypolicy.guard.key import Secret, key_digest
from retrypolicy.testing import Answer, Close, FaultServer, Reset, Stall

from .shop import SECRET

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
SENDS = int(os.environ.get("QUEUE_SENDS", "24"))
"""How many jobs a queue has to get through under fire."""

_STEPS: list[tuple[float, Any, bool]] = [  # how often, what the server does, and whether it applied the request
    (0.62, Answer(200), True),
    (0.10, Answer(200, delay=0.1), True),
    (0.06, Close("request"), True),
    (0.02, Reset("request"), True),
    (0.03, Answer(500), True),
    (0.02, Close("request"), False),
    (0.10, Answer(429, headers={"Retry-After": "0"}), False),
    (0.05, Answer(503, headers={"Retry-After": "1"}), False),
]


def wait_for(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"{what} took longer than {PATIENCE} s"
        time.sleep(0.05)


def bad_hour(chance: random.Random) -> Callable[[dict[str, Any]], tuple[Any, bool]]:
    """The answers of a server that has one."""

    def answer(order: dict[str, Any]) -> tuple[Any, bool]:
        ((step, applies),) = chance.choices([(s, a) for _, s, a in _STEPS], [w for w, _, _ in _STEPS])
        return step, applies

    return answer


def key_of(number: int) -> str:
    return f"order/{number}"


class Site:
    """A ledger, a server that counts, and the workers that were started. `shop` is what the workers know."""

    def __init__(self, place: Path) -> None:
        self.place, self.workers = place, list[subprocess.Popen[bytes]]()
        self.applied: Counter[tuple[str, str, int]] = Counter()
        self.pids: set[int] = set()
        self._lock = threading.Lock()
        self.answer: Callable[[dict[str, Any]], tuple[Any, bool]] = self.to_the_point
        self.server = FaultServer(self._step)
        self.shop: dict[str, Any] = {"place": str(place), "ledger": f"sqlite:///{place}/sends.db"}

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.shop["server"] = self.server.url()
        self.ledger: Ledger = open_ledger(self.shop["ledger"])
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            self.kill(worker)
        self.ledger.close()
        self.server.__exit__(None, None, None)

    # -- the server

    def _step(self, request: Any) -> Any:
        order = {**json.loads(request.body), "pid": int(dict(request.headers)["X-Pid"])}
        with self._lock:
            answer, applies = self.answer(order)
            self.pids.add(order["pid"])
            if applies:
                self.applied[order["kind"], order["point"], order["number"]] += 1
        return answer

    def to_the_point(self, order: dict[str, Any]) -> tuple[Any, bool]:
        """Takes every order. The answer to those that are to be killed on the wire does not come, the first time."""
        if order["point"] == "soft":
            return Stall(), True
        if order["point"] == "wire":
            name = self.place / f"{order['kind']}-wire-{order['number']}"
            if not name.exists():
                name.write_text(str(order["pid"]))
                return Stall(), True
        return Answer(200), True

    # -- workers

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        return {**os.environ, "SHOP": json.dumps(self.shop), "RETRYPOLICY_SECRET": SECRET, "PYTHONPATH": path}

    def spawn(self, *module: str) -> subprocess.Popen[bytes]:
        """`python -m` with this, in a session of its own."""
        with open(self.place / "worker.log", "ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """The whole worker: the parent and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def waiting(self) -> list[int]:
        """The processes that are at the point where they are to be killed."""
        return [int(text) for file in self.place.glob("[!.]*-*-*") if (text := file.read_text())]

    # -- what became of it

    def phase(self, key: str) -> Phase | None:
        record = self.ledger.read(key_digest(Secret.of(SECRET), key))[0]
        return None if record is None else record.phase

    def stands_at(self, key: str, phase: Phase) -> bool:
        return self.phase(key) is phase

    def count_up(self, story: str) -> list[int]:
        """After the fire: nothing twice, nothing lost. Returns what is held."""
        self.server.settle()
        effects = [self.applied["ours", "no", n] for n in range(SENDS)]
        held = [n for n in range(SENDS) if self.stands_at(key_of(n), Phase.HELD)]
        twice = sum(effect > 1 for effect in effects)
        lost = sum(effects[n] == 0 and n not in held for n in range(SENDS))
        print(
            f"\n{story}, {self.server.complete} requests: accepted once {effects.count(1)}, more than once {twice}, "
            f"lost {lost}, held {len(held)} (of these accepted: {sum(effects[n] > 0 for n in held)})"
        )
        assert (twice, lost) == (0, 0)
        assert effects.count(1) > SENDS / 2
        return held

    @property
    def log(self) -> str:
        return (self.place / "worker.log").read_text()


class Field(Site):
    """A broker, and Celery's workers."""

    def __init__(self, place: Path, broker: str, backend: str, **options: Any) -> None:
        super().__init__(place)
        self.shop |= {"broker": broker, "backend": backend, "options": options}
        self.app = celery.Celery("client", broker=broker, backend=backend, set_as_current=False)
        self.app.conf.update(broker_transport_options=options)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.app.close()

    def start(self, concurrency: int, *more: str) -> subprocess.Popen[bytes]:
        command = ["celery", "-A", "tests.queues.celery_shop", "worker", "-P", "prefork"]
        command += ["-c", str(concurrency), "-l", "WARNING", "--without-gossip", "--without-mingle", *more]
        return self.spawn(*command)
