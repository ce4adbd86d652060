"""The pytest plugin: opt-in by name, and its servers end with the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TEST = """
import sys
import threading
import urllib.request

import pytest

from retrypolicy.testing import Answer

started = []


def test_it(fault_server):
    first, second = fault_server([Answer(200, "one")]), fault_server()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(first.url()).read() == b"one"
    assert opener.open(second.url()).read() == b""
    started.extend([first, second])


def test_time_and_reports(virtual_clock, retry_reports):
    from retrypolicy import Engine

    engine = Engine(clock=virtual_clock)
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 / 0, idempotent=True)
    assert len(virtual_clock.sleeps) == 3
    assert [report.total_attempts for report in retry_reports] == [4]


def test_they_are_fresh(virtual_clock, retry_reports):
    assert (virtual_clock.sleeps, len(retry_reports)) == ([], 0)


def test_they_have_ended():
    assert not [thread for thread in threading.enumerate() if "fault-server" in thread.name]
    assert [server.complete for server in started] == [1, 1]
"""


def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_user.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_user.py"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, env=environment())


def environment() -> dict[str, str]:
    import os

    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_with_the_plugin(tmp_path: Path) -> None:
    done = run(tmp_path, "-p", "retrypolicy.testing.pytest_plugin")
    assert "4 passed" in done.stdout, done.stdout


def test_without_it(tmp_path: Path) -> None:
    said = run(tmp_path).stdout
    for name in ("fault_server", "virtual_clock"):
        assert f"fixture '{name}' not found" in said


def test_the_plugin_itself_loads_nothing_heavy() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import retrypolicy.testing.pytest_plugin\n"
        "new = set(sys.modules) - before\n"
        "heavy = {'ssl', 'trustme', 'requests', 'hypothesis', 'retrypolicy.engine', 'retrypolicy.testing.faults'}\n"
        "assert not new & heavy, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
