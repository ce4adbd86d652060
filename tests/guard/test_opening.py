"""From a URL to a ledger: what is allowed, and one clear error for all the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import retrypolicy.guard
from retrypolicy import plugins
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.guard import MemoryLedger, SQLiteLedger, open_ledger
from retrypolicy.guard.opening import open_existing


def test_memory_is_shared_by_name_within_the_process() -> None:
    assert open_ledger("memory:") is open_ledger("memory:")
    assert open_ledger("memory:a") is open_ledger("MEMORY:a")
    assert open_ledger("memory:a") is not open_ledger("memory:b")
    assert open_ledger("memory:a", clock=VirtualClock()) is not open_ledger("memory:a")
    assert isinstance(open_ledger("memory:"), MemoryLedger)


def test_a_sqlite_path_is_relative_with_three_slashes_and_absolute_with_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = open_ledger("sqlite:///one.db")
    two = open_ledger(f"sqlite:///{tmp_path}/with%20space.db?durability=process&timeout=0.5")
    assert isinstance(one, SQLiteLedger)
    assert isinstance(two, SQLiteLedger)
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["one.db", "with space.db"]
    assert two._durability == "process"
    monkeypatch.chdir("/")
    one.close()
    assert one.counts() == {}  # opens the same file again, wherever the process has gone


def test_a_ledger_is_returned_as_it_is() -> None:
    ledger = MemoryLedger()
    assert open_ledger(ledger) is ledger
    with pytest.raises(ConfigurationError, match="already"):
        open_ledger(ledger, clock=VirtualClock())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "without a scheme.*memory:, sqlite:"),
        ("sends.db", "without a scheme"),
        ("/var/lib/sends.db", "without a scheme"),
        ("mysql://localhost/x", "mysql: is not a known kind; must be one of memory:, sqlite:"),
        ("sqlite:", "sqlite:///relative.db"),
        ("sqlite://", "sqlite:///relative.db"),
        ("sqlite:///", "sqlite:///relative.db"),
        ("sqlite://sends.db", "sqlite:////absolute.db"),
        ("sqlite:///:memory:", "memory: keeps records"),
        ("sqlite:///x.db?sync=off", "unknown option 'sync'"),
        ("sqlite:////no/such/folder/x.db", "/no/such/folder does not exist"),
        ("sqlite:///x%00.db", "sqlite:///relative.db"),
        ("redis://localhost/0?sync=off", "options in this URL are not allowed: .*'sync'"),
        ("rediss://localhost/0?ssl_cert_reqs=bogus", "options in this URL are not allowed: .*bogus"),
        ("memory://host", "memory:name"),
        ("memory:a?x=1", "memory:name"),
        (None, "NoneType is not allowed"),
        (7, "int is not allowed"),
    ],
)
def test_anything_else_is_one_clear_error(url: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        open_ledger(url)


def test_bad_numbers_in_a_url_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"timeout: 'soon' is not allowed; must be a number"):
        open_ledger(f"sqlite:///{tmp_path}/x.db?timeout=soon")
    with pytest.raises(PolicyError, match="durability: 'no'"):
        open_ledger(f"sqlite:///{tmp_path}/x.db?durability=no")
    assert not (tmp_path / "x.db").exists()


def test_others_plug_in_by_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(MemoryLedger):
        @classmethod
        def from_url(cls, url: str, **options: Any) -> Theirs:
            assert url == "theirs://host"
            return cls(**options)

    monkeypatch.setattr(plugins, "names", lambda group: ["theirs"] if group == "ledgers" else [])
    monkeypatch.setattr(plugins, "load", lambda group, name: {"ledgers": {"theirs": Theirs}}[group][name])
    assert isinstance(open_ledger("theirs://host"), Theirs)
    with pytest.raises(ConfigurationError, match="theirs:"):
        open_ledger("others://host")


def test_tools_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        open_existing(f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_room_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Leger'"):
        _ = retrypolicy.guard.Leger  # type: ignore[attr-defined] - that is the point
    assert {"Key", "SQLiteLedger", "open_ledger"} <= set(dir(retrypolicy.guard))
