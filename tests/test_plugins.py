"""Parts of other packages, found by name: the worked example of docs/plugins.md, installed as any package is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrypolicy import Engine, RetryPolicy, load_policies, plugins
from retrypolicy.errors import ConfigurationError, PolicyFileError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package in it, and what pip writes about it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(target)]
    copy = tmp_path_factory.mktemp("source") / "acme-retries"
    copy.mkdir()
    for file in (ROOT / "docs" / "acme-retries").iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    subprocess.run([*command, str(copy)], check=True, capture_output=True, text=True)
    return target


def run(installed: Path, code: str) -> list[str]:
    """What the code prints, in a Python that has the package."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


POLICIES = """
from retrypolicy import *
from retrypolicy.config import json_schema
from jsonschema import Draft202012Validator
data = {"policies": {"a": {"backoff": {"type": "fibonacci", "unit": "500ms"}}}}
policy = load_policies(data)["a"]
print(policy.backoff)
print(load_policies({"policies": {"a": policy.to_dict()}})["a"] == policy)
print(policy.to_dict()["backoff"])
from acme_retries import Fibonacci
from retrypolicy.errors import PolicyFileError
print(eval(repr(policy)) == policy)
schema = Draft202012Validator(json_schema())
for backoff in (data["policies"]["a"]["backoff"], {"type": "fibonacci", "unit": "x"}, {"type": "fibonacci", "base": 1}):
    data = {"policies": {"a": {"backoff": backoff}}}
    try:
        loads = bool(load_policies(data))
    except PolicyFileError as error:
        loads = False
    print(schema.is_valid(data), loads)
try:
    load_policies({"policies": {"a": {"backoff": {"type": "fibonacci", "cap": -1}}}})
except PolicyFileError as error:
    print(error.errors[0])
"""


def test_a_backoff_takes_part_in_policies_as_data(installed: Path) -> None:
    shown, same, plain, code, *verdicts, refused = run(installed, POLICIES)
    assert shown == "Fibonacci(unit=0.5, cap=60.0)"
    assert (same, code) == ("True", "True")
    assert plain == "{'type': 'fibonacci', 'unit': 0.5, 'cap': 60.0}"
    assert verdicts == ["True True", "False False", "False False"]
    assert refused.startswith("policies.a.backoff: ")
    assert "cap" in refused


PARTS = """
from retrypolicy import *
from retrypolicy.guard.reconcile import reconciler_for
from retrypolicy.clock import VirtualClock
clock = VirtualClock()
engine = Engine(RetryPolicy(), provider="acme", ledger="acme:x", clock=clock, secret="s", random=lambda: 0.5)
print(engine.provider.name, type(engine.ledger).__name__, reconciler_for("acme", {}).__name__)
class Busy(Exception):
    code = "busy"
calls = []
def work():
    calls.append(1)
    if len(calls) == 1:
        raise Busy
    return "done"
print(engine.run(work, classify="acme"), len(calls))
from retrypolicy import plugins
print([plugins.names(kind) for kind in ("backoffs", "classifiers", "ledgers", "providers", "reconcilers")])
"""


def test_the_other_kinds_are_found_by_name(installed: Path) -> None:
    parts, done, names = run(installed, PARTS)
    assert parts == "acme AcmeLedger reconcile"
    assert done == "done 2"
    assert names == str([("fibonacci",), ("acme",), ("acme",), ("acme",), ("acme",)])


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(PolicyFileError, match="one of constant, decorrelated, exponential, linear, urllib3"):
        load_policies({"policies": {"a": {"backoff": {"type": "fibonacci"}}}})
    with pytest.raises(ConfigurationError, match=r"retrypolicy\.classifiers: 'acme' is not known; known are: none"):
        Engine(RetryPolicy()).run(len, "x", classify="acme")
    with pytest.raises(ConfigurationError, match="'acme'"):
        Engine(provider="acme")
    with pytest.raises(ConfigurationError, match="acme: is not a known kind; must be one of memory:, sqlite:"):
        Engine(ledger="acme:x")


def test_ours_come_first_and_what_is_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    found = {
        "constant": EntryPoint("constant", "nowhere:Else", "retrypolicy.backoffs"),
        "broken": EntryPoint("broken", "nowhere:Broken", "retrypolicy.backoffs"),
        "function": EntryPoint("function", "builtins:len", "retrypolicy.backoffs"),
    }
    monkeypatch.setattr(plugins, "_others", lambda kind: found if kind == "backoffs" else {})
    assert (
        type(load_policies({"policies": {"a": {"backoff": {"type": "constant"}}}})["a"].backoff).__name__ == "Constant"
    )
    for name, says in (("broken", r"can't be loaded: No module named 'nowhere'"), ("function", "not an attrs class")):
        with pytest.raises(PolicyFileError, match=says):
            load_policies({"policies": {"a": {"backoff": {"type": name}}}})
