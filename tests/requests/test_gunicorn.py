"""gunicorn --preload: a session that was made, and used, before the fork serves every worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from retrypolicy.testing import Answer, FaultServer, Request

pytest.importorskip("gunicorn", reason="there is no gunicorn for this system")
WORKERS = 3


@contextmanager
def gunicorn(upstream: str, kind: str) -> Iterator[str]:
    """The application in preloaded.py, served; gives its address."""
    command = [sys.executable, "-u", "-W", "ignore", "-m", "gunicorn", "--preload", "-k", kind, "-w", str(WORKERS)]
    process = subprocess.Popen(
        [
            *command,
            "-b",
            "127.0.0.1:0",
            "--threads",
            "2",
            "--no-control-socket",
            "tests.requests.preloaded:application",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "UPSTREAM": upstream, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"Listening at: (\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield found[1]
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_workers_share_nothing(kind: str) -> None:
    seen: set[str | None] = set()

    def first_busy(request: Request) -> Answer:
        if request.target == "/warm" or request.target in seen:
            return Answer(200, request.target or "")
        seen.add(request.target)
        return Answer(503, headers={"Retry-After": "0"})

    with FaultServer(first_busy) as server, gunicorn(server.url(), kind) as address:
        asked = 0

        def ask(number: int) -> dict[str, Any]:
            told: dict[str, Any] = requests.get(f"{address}/{number}", timeout=20).json()
            assert told["answer"] == f"/{number}"
            return told

        answers: list[dict[str, Any]] = []
        with ThreadPoolExecutor(6) as threads:
            while len({each["process"] for each in answers}) < WORKERS and asked < 600:
                answers += threads.map(ask, range(asked, asked + 30))
                asked += 30
        processes = {each["process"] for each in answers}
        assert len(processes) > 1
        # Every call was made twice, as told by the server, and by nobody else.
        assert server.complete == 1 + 2 * asked
        connections = {
            process: {request.connection for request in server.requests if request.body == b"%d" % process}
            for process in processes
        }
        used = [connection for each in connections.values() for connection in each]
        assert len(used) == len(set(used)), connections  # no socket serves two processes
        assert 1 not in used  # nor does the parent's
        waits = {process: [each["waits"] for each in answers if each["process"] == process] for process in processes}
        firsts = [each[0] for each in waits.values()]
        assert len({tuple(wait) for wait in firsts}) == len(firsts), waits  # nor do they wait in step
