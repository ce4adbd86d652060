"""The test's end of a django-mailer project in processes of its own: its database, the server, and what it counted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from retrypolicy.testing import FaultServer, Request

from ..anymail.sending import ok  # noqa: TID252 - no other path is sure

ROOT = Path(__file__).parents[2]
OK = ok("postmark")


def sqlite(place: Path) -> dict[str, Any]:
    """A new database, as a project with several processes has it."""
    options = {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL", "timeout": 20}
    name = str(place / f"{uuid.uuid4().hex}.sqlite3")
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": options}


def postgresql(folder: str) -> dict[str, Any]:
    """A new database of this server."""
    import psycopg

    name = f"shop_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": "postgres", "HOST": folder}


class Killed(Exception):
    """The child got kill -9."""


class Shop:
    """One process of the project, which forks a child for each command."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.pid = 0  # of the child that is at work
        self._begun = ""
        self._log = Path(settings["place"], "shop.log")
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.queues.mailer_shop"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "SHOP": json.dumps(settings)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, command: str, *arguments: Any) -> None:
        """Have a child do it; whoever asks for the next thing waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._begun = command

    def do(self, command: str, *arguments: Any) -> Any:
        """The same, and wait for its end. Raises `Killed`."""
        if self._begun:
            self._end()
        self.begin(command, *arguments)
        return self._end()

    def kill(self, *commands: str) -> bool:
        """The child, if it is at one of these commands."""
        pid = self.pid
        if not pid or self._begun not in commands:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def _end(self) -> Any:
        command, result = self._begun, None
        while (found := json.loads(self._read())).keys() != {"code"}:
            self.pid = found.get("pid", self.pid)
            result = found.get("result", result)
        self.pid, self._begun, code = 0, "", found["code"]
        if code == -signal.SIGKILL:
            raise Killed(command)
        assert code == 0, (command, code, self._log.read_text())
        return result

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        return line

    def send(self) -> bool:
        """One run of the sender. False: it was killed."""
        try:
            self.do("send_mail")
        except Killed:
            return False
        return True


class Field:
    """A project, and the server of its provider. It takes every message; `answer` may do otherwise."""

    def __init__(
        self, place: Path, database: dict[str, Any], *, stock: bool, shops: int = 1, grace: float = 0.0
    ) -> None:
        place.mkdir(exist_ok=True)
        self.place = place
        self.accepted: Counter[str] = Counter()
        self.requests = 0
        self._lock = threading.Lock()
        self.answer: Callable[[str], tuple[Any, bool]] = self.to_the_point
        self.server = FaultServer(self._step)
        self._settings = {"place": str(place), "database": database, "stock": stock, "look": 1.0, "grace": grace}
        self._count = shops

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.shops = [Shop({**self._settings, "server": self.server.url("/")}) for _ in range(self._count)]
        self.shop = self.shops[0]
        self.shop.begin("migrate")
        return self

    def __exit__(self, *error: object) -> None:
        for shop in self.shops:
            shop.close()
        self.server.__exit__(None, None, None)

    def break_lock(self) -> None:
        """As people do it by hand, with stock django-mailer."""
        (self.place / "send_mail.lock").unlink(missing_ok=True)

    def _step(self, request: Request) -> Any:
        subject = json.loads(request.body)["Subject"]
        with self._lock:
            answer, applies = self.answer(subject)
            self.requests += 1
            self.accepted[subject] += applies
        return answer

    def to_the_point(self, subject: str) -> tuple[Any, bool]:
        """The one that is to be killed on the wire is killed before it hears that its message was taken, once."""
        if subject == "wire" and not self.accepted["wire"]:
            os.kill(self.shop.pid, signal.SIGKILL)
        return OK, True
