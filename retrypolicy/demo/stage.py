"""Puts the demo on: the server in one process, a sender in another for each way of sending, and the kill -9 halfway."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO
from urllib.parse import quote

from attrs import field, frozen

from retrypolicy.demo import APIS, MODES, weather

_PATIENCE = 60.0  # seconds for a process to start or to stop

Task = tuple[str, int]  # an API, and the number of a message


class DemoFailed(Exception):
    """A process of the demo did not do its part. The text is one clear line."""


@frozen(kw_only=True)
class Play:
    """What is sent, and where things are kept."""

    seed: int
    messages: Path
    limit: int
    count: int
    directory: Path
    secret: str = field(factory=lambda: secrets.token_hex(16), repr=False)  # keys the ledger's digests

    @property
    def ledger(self) -> str:
        """The URL of the ledger that stays behind."""
        return f"sqlite:///{quote(str(self.directory.resolve() / 'ledger.db'))}"

    @property
    def tasks(self) -> list[Task]:
        """Every message, through each API."""
        return [(api, number) for number in range(1, self.count + 1) for api in APIS]


@frozen(kw_only=True)
class Played:
    """What is known afterwards. `book` is the server's; `said` is what the senders said, which no count is made of."""

    book: Mapping[str, Any]
    said: Mapping[str, Mapping[Task, str]] = field(repr=False)
    kills: Mapping[str, int]


def play(what: Play, progress: Callable[[str], None]) -> Played:
    """Run all ways of sending at the same time. `progress` is told the way, once for each message finished.

    Raises `DemoFailed` where a process stopped without being told to. Leaves no process behind.
    """
    environment = _environment()
    with _Server(what, environment) as server, (what.directory / "senders.log").open("a") as log:
        senders = {mode: _Sender(mode, what, server.ports[mode], environment, log, progress) for mode in MODES}
        server.watch(lambda mode: senders[mode].kill())
        try:
            for sender in senders.values():
                sender.start()
            for sender in senders.values():
                sender.join()
        finally:
            for sender in senders.values():
                sender.stop()
        for sender in senders.values():
            if sender.failure:
                raise DemoFailed(sender.failure)
        return Played(
            book=server.counts(),
            said={mode: sender.said for mode, sender in senders.items()},
            kills={mode: sender.kills for mode, sender in senders.items()},
        )


def _environment() -> dict[str, str]:
    """The user's environment without what would change the demo: proxies, and settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETRYPOLICY_")}
    here = str(Path(__file__).parents[2])
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [kept.get("PYTHONPATH")])]),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _spawn(module: str, environment: Mapping[str, str], errors: TextIO | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        encoding="utf-8",
    )


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


class _Server:
    """The server's process, and the thread that listens to it."""

    def __init__(self, what: Play, environment: Mapping[str, str]) -> None:
        self._process = _spawn("retrypolicy.demo.server", environment)
        self._answers: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._on_kill: Callable[[str], None] = lambda mode: None
        threading.Thread(target=self._listen, daemon=True).start()
        _tell(self._process, json.dumps({"seed": what.seed, "kills": weather.killed(what.count)}))
        self.ports: Mapping[str, int] = self._answer("ports")

    def watch(self, on_kill: Callable[[str], None]) -> None:
        """Call this, with the way of sending, when a message was accepted whose sender is to die before the answer."""
        self._on_kill = on_kill

    def counts(self) -> Mapping[str, Any]:
        """The server's book."""
        _tell(self._process, "counts")
        return self._answer("counts")

    def _answer(self, name: str) -> Mapping[str, Any]:
        try:
            answer = self._answers.get(timeout=_PATIENCE)
        except queue.Empty:
            answer = None
        if answer is None:
            raise DemoFailed("the demo's server stopped, or never started")
        found: Mapping[str, Any] = answer[name]
        return found

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "kill" in said:
                self._on_kill(said["kill"])
            else:
                self._answers.put(said)
        self._answers.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        _stop(self._process)


class _Sender(threading.Thread):
    """One way of sending: a process, and another one after each kill, until every message is finished."""

    def __init__(
        self, mode: str, what: Play, port: int, environment: Mapping[str, str], log: TextIO,
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(name=f"demo-{mode}", daemon=True)
        self.said: dict[Task, str] = {}
        self.kills = 0
        self.failure: str | None = None
        self._mode, self._what, self._port, self._environment = mode, what, port, environment
        self._log, self._progress = log, progress
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self) -> None:
        """Start senders until one ends by itself."""
        while not self._stopped and not self.failure:
            kills = self.kills
            self._process = _spawn("retrypolicy.demo.sender", self._environment, self._log)
            self._deliver(self._process)
            code = self._process.wait()
            if code == 0:
                return
            if self.kills == kills and not self._stopped:
                self.failure = f"the sender ({self._mode}) stopped with exit code {code}; see {self._log.name}"

    def _deliver(self, process: subprocess.Popen[str]) -> None:
        """Give it every message that is not known to be finished, as a queue does, and listen."""
        order = {
            "mode": self._mode,
            "port": self._port,
            "ledger": self._what.ledger,
            "secret": self._what.secret,
            "messages": str(self._what.messages.resolve()),
            "limit": self._what.limit,
            "todo": [task for task in self._what.tasks if task not in self.said],
        }
        with process.stdout:  # type: ignore[union-attr]  # it was opened as a pipe
            _tell(process, json.dumps(order))
            for line in process.stdout:  # type: ignore[union-attr]  # as above
                if not line.endswith("\n"):
                    break  # killed in the middle of a word: not known to be finished
                said = json.loads(line)
                self.said[said["api"], said["message"]] = said["outcome"]
                self._progress(self._mode)

    def kill(self) -> None:
        """Kill -9, in the middle of whatever it does."""
        if self._process is not None:
            self.kills += 1
            self._process.kill()

    def stop(self) -> None:
        """End it, without another one."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self.join(_PATIENCE)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process that ends with its input; by force if it doesn't."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
