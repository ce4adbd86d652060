"""Puts the demo on: the server in one process, a sender in another for each way of sending, and the kill -9 halfway."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO
from urllib.parse import quote

from attrs import field, frozen

from retrypolicy.demo import APIS, MODES, weather

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


def play(what: Play, progress: Callable[[str], None]) -> Played:
    """Run all ways of sending at the same time. `progress` is told the way, once for each message finished.

    Raises `DemoFailed` where a process stopped that the demo did not kill. Leaves no process behind.
    """
    with (what.directory / "demo.log").open("a") as log, _Server(what, log) as server:
        senders = {mode: _Sender(mode, what, server, log, progress) for mode in MODES}
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
        return Played(book=server.ask("counts"), said={mode: sender.said for mode, sender in senders.items()})


class _Server:
    """The server's process: one question, one answer."""

    def __init__(self, what: Play, log: TextIO) -> None:
        self._process = _spawn("retrypolicy.demo.server", log)
        self._turn = threading.Lock()
        self.ports: Mapping[str, int] = self.ask({"seed": what.seed, "kills": weather.killed(what.count)})

    def ask(self, question: object) -> Any:
        """What the server answers. Raises `DemoFailed` where it is not there any more."""
        assert self._process.stdout is not None
        with self._turn:
            try:
                _tell(self._process, question)
                line = self._process.stdout.readline()
            except OSError:
                line = ""
        if not line:
            raise DemoFailed("the demo's server stopped")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        _stop(self._process)


class _Sender(threading.Thread):
    """One way of sending: a process, and another one after each kill, until every message is finished."""

    def __init__(
        self, mode: str, what: Play, server: _Server, log: TextIO, progress: Callable[[str], None]
    ) -> None:  # fmt: skip
        super().__init__(name=f"demo-{mode}", daemon=True)
        self.said: dict[Task, str] = {}
        self.failure: str | None = None
        self._mode, self._what, self._server, self._log, self._progress = mode, what, server, log, progress
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self) -> None:
        """Start senders until one ends by itself. The server kills one for each API."""
        code = 0
        for _ in range(len(APIS) + 1):
            process = self._process = _spawn("retrypolicy.demo.sender", self._log)
            if self._stopped:
                process.kill()
            try:
                self._server.ask({"mode": self._mode, "sender": process.pid})
                self._deliver(process)
            except (DemoFailed, OSError, ValueError) as error:
                self.failure = str(error)
            code = _stop(process)
            if code != -signal.SIGKILL or self._stopped or self.failure:
                break
        if code and not self.failure:
            self.failure = f"the sender ({self._mode}) stopped with exit code {code}; see {self._log.name}"

    def _deliver(self, process: subprocess.Popen[str]) -> None:
        """Give it every message that is not known to be finished, as a queue does, and listen to its end."""
        assert process.stdout is not None
        _tell(
            process,
            {
                "mode": self._mode,
                "port": self._server.ports[self._mode],
                "ledger": self._what.ledger,
                "secret": self._what.secret,
                "messages": str(self._what.messages.resolve()),
                "limit": self._what.limit,
                "todo": [task for task in self._what.tasks if task not in self.said],
            },
        )
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # killed in the middle of a word: not known to be finished
            said = json.loads(line)
            self.said[said["api"], said["message"]] = said["outcome"]
            self._progress(self._mode)

    def stop(self) -> None:
        """End it, without another one."""
        self._stopped = True
        if self.is_alive():
            if self._process is not None:
                self._process.kill()
            self.join()


def _spawn(module: str, log: TextIO) -> subprocess.Popen[str]:
    """A module of ours in a process of its own, with the user's environment but for what would change the demo."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETRYPOLICY_")}
    here = str(Path(__file__).parents[2])
    return subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join([here, *filter(None, [kept.get("PYTHONPATH")])]),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        },
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for the demo, which ends them
    )


def _tell(process: subprocess.Popen[str], line: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()


def _stop(process: subprocess.Popen[str]) -> int:
    """The exit code of a process that ends with its input, or that has ended; by force if it doesn't."""
    with contextlib.suppress(OSError):  # what was not written yet has no reader any more
        process.stdin.close()  # type: ignore[union-attr]  # opened as a pipe
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()  # type: ignore[union-attr]  # as above
    return process.returncode
