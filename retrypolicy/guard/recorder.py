"""Writes "done" again in the background when the ledger could not take it at once: good news must not get lost."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from retrypolicy.errors import LedgerUnavailable
from retrypolicy.guard.ledger import Ledger

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class Recorder:
    """A queue of done records and one daemon thread, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[tuple[Ledger, bytes, Mapping[str, Any], str]] = deque()
        self._filled = threading.Event()
        self._thread: threading.Thread | None = None

    def later(self, ledger: Ledger, key: bytes, result: Mapping[str, Any], provider: str) -> None:
        """Record `key` as done as soon as the ledger takes it."""
        with self._lock:
            self._queue.append((ledger, key, result, provider))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="retrypolicy-recorder", daemon=True)
                self._thread.start()
        self._filled.set()

    def flush(self) -> int:
        """Try everything once, now; returns how many records are still not written."""
        for _ in range(len(self._queue)):
            try:
                entry = self._queue.popleft()
            except IndexError:
                break
            ledger, key, result, provider = entry
            try:
                ledger.done(key, result, provider=provider)
            except LedgerUnavailable:
                self._queue.append(entry)
        return len(self._queue)

    def _work(self) -> None:
        wait = _FIRST_WAIT
        while True:
            self._filled.wait()
            self._filled.clear()
            while self.flush():
                threading.Event().wait(wait)
                wait = min(wait * 2, _LONGEST_WAIT)
            wait = _FIRST_WAIT


recorder = Recorder()


@atexit.register
def _last_chance() -> None:
    recorder.flush()


def _after_fork() -> None:
    # Neither the thread nor the parent's entries belong to the child.
    global recorder
    recorder = Recorder()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
