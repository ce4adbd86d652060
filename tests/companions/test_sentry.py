"""Beside Sentry, which patches http.client: the wire is watched all the same, and every attempt has its span."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_program_with_sentry_in_it() -> None:
    """In a process of its own: the patches can't be taken back."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("sentry_program.py"))],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.stdout == "fine\n", done.stderr
