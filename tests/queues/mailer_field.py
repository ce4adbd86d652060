"""The test's end of a django-mailer project in a process of its own: its database, the server, and what it counted."""

from __future__ import annotations

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


def sqlite(place: Path) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(place / f"{uuid.uuid4().hex}.sqlite3")}


def postgresql(folder: str) -> dict[str, Any]:
    """A new database of this server."""
    import psycopg

    name = f"shop_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": "postgres", "HOST": folder}


class Killed(Exception):
    """The child got kill -9."""


class Field:
    """One project. The server takes every message; `answer` may do otherwise."""

    def __init__(self, place: Path, database: dict[str, Any], *, stock: bool, esp: str = "postmark") -> None:
        self.place, self.esp, self.stock = place, esp, stock
        self.accepted: Counter[str] = Counter()
        self.keys: set[str] = set()  # that the provider has seen, if it knows keys
        self.pid = 0
        self._lock = threading.Lock()
        self.answer: Callable[[str], tuple[Any, bool]] = self.to_the_point
        self.server = FaultServer(self._step)
        self._shop = {"place": str(place), "database": database, "stock": stock, "esp": esp, "look": 1.0}

    def __enter__(self) -> Self:
        self.server.__enter__()
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        shop = json.dumps({**self._shop, "server": self.server.url("/")})
        with open(self.place / "shop.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.queues.mailer_shop"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "SHOP": shop},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        self._begin("migrate")
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self.server.__exit__(None, None, None)

    def _begin(self, command: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._begun = command

    def do(self, command: str, *arguments: Any) -> Any:
        """Have a child do it. Raises `Killed`."""
        if self._begun:
            self._end()
        self._begin(command, *arguments)
        return self._end()

    def _end(self) -> Any:
        command, self._begun, result = self._begun, "", None
        while (found := json.loads(self._read())).keys() != {"code"}:
            self.pid = found.get("pid", self.pid)
            result = found.get("result", result)
        self.pid, code = 0, found["code"]
        if code == -signal.SIGKILL:
            raise Killed(command)
        assert code == 0, (command, code, (self.place / "shop.log").read_text())
        return result

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.place / "shop.log").read_text()
        return line

    def send(self) -> bool:
        """One run of the sender. False: it was killed."""
        try:
            self.do("send_mail")
        except Killed:
            return False
        return True

    def kill(self) -> bool:
        pid = self.pid
        if pid:
            os.kill(pid, signal.SIGKILL)
        return bool(pid)

    def break_lock(self) -> None:
        """As people do it by hand, with stock django-mailer."""
        (self.place / "send_mail.lock").unlink(missing_ok=True)

    def _step(self, request: Request) -> Any:
        subject = json.loads(request.body)["Subject" if self.esp == "postmark" else "subject"]
        key = dict(request.headers).get("Idempotency-Key", "")
        with self._lock:
            answer, applies = self.answer(subject)
            if applies and not (key and key in self.keys):
                self.accepted[subject] += 1
                self.keys.add(key)
        return answer

    def to_the_point(self, subject: str) -> tuple[Any, bool]:
        """The one that is to be killed on the wire is killed before it hears that its message was taken, once."""
        if subject == "wire" and not self.accepted["wire"]:
            os.kill(self.pid, signal.SIGKILL)
        return ok(self.esp), True
