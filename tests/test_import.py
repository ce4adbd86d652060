"""`import retrypolicy` is cheap: it loads attrs and light standard modules, nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import retrypolicy

HEAVY = {
    "anymail", "asyncio", "cattrs", "django", "email", "http.client", "hypothesis", "logging", "multiprocessing",
    "requests", "rich", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "tomllib", "trio", "urllib.request",
    "urllib3", "uuid",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """The names of the modules that a fresh interpreter has after the statement, and had not before.

    What attrs loads is not ours to answer for, so attrs is there before.
    """
    code = f"import sys, attr, attrs; before = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import retrypolicy")
    assert "retrypolicy" in loaded
    assert loaded & HEAVY == set()


def test_a_policy_can_be_made_without_a_client_library() -> None:
    """The core has no I/O: its values work where requests, urllib3 and the sockets are not loaded."""
    loaded = loaded_by("import retrypolicy; retrypolicy.RetryPolicy(); retrypolicy.WEB; retrypolicy.decide")
    assert "retrypolicy.policy" in loaded
    assert loaded & {"requests", "urllib3", "ssl", "http.client", "asyncio", "sqlite3"} == set()


def test_every_public_name_is_there_and_listed() -> None:
    """The names are loaded lazily: each must resolve, and `dir()` must show it before it did."""
    for name in retrypolicy.__all__:
        assert getattr(retrypolicy, name) is not None
        assert name in dir(retrypolicy)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = retrypolicy.no_such_name  # type: ignore[attr-defined] # the look-up is the test
