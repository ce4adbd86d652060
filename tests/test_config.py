"""Policies as data: what is loaded is what was written, and everything that is wrong is said at once."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrypolicy import (
    WEB,
    WORKER,
    Constant,
    Effect,
    Exponential,
    Linear,
    RetryBudget,
    RetryPolicy,
    Rule,
    Stage,
    load_policies,
)
from retrypolicy.config.durations import seconds
from retrypolicy.config.structure import DURATION
from retrypolicy.errors import ConfigurationError, PolicyError, PolicyFileError
from retrypolicy.testing.strategies import policies


def one(**table: Any) -> RetryPolicy:
    return load_policies({"policies": {"one": table}})["one"]


def wrong(data: Any) -> list[str]:
    with pytest.raises(PolicyFileError) as caught:
        load_policies(data)
    assert [error.field for error in caught.value.errors] == [
        str(error).split(": ")[0] for error in caught.value.errors
    ]
    assert all(str(error) in str(caught.value) for error in caught.value.errors)
    return [str(error) for error in caught.value.errors]


@given(policies())
@example(RetryPolicy(rules=[Rule(status=200, body="none", effect=Effect.NOT_APPLIED, retry=True)]))
def test_to_dict_and_back_is_the_identity(policy: RetryPolicy) -> None:
    """Through JSON, too: nothing in it needs Python."""
    data = {"policies": {"one": json.loads(json.dumps(policy.to_dict()))}}
    [(name, loaded)] = load_policies(data).items()
    assert (name, loaded) == ("one", policy)
    assert loaded.to_dict() == policy.to_dict()


@pytest.mark.parametrize("preset", [WEB, WORKER, RetryPolicy()])
def test_presets_go_through(preset: RetryPolicy) -> None:
    assert load_policies({"policies": {"p": preset.to_dict()}})["p"] == preset


TOML = """
[policies.receipts]
max_attempts = 6
lifetime = "1d"
total_timeout = "1m30s"
backoff = { type = "exponential", base = "500ms", cap = 30 }
budget = { capacity = "none", window = "10s", per_second = 10 }

[[policies.receipts.rules]]
status = 500
json = { "/name" = "quota" }
effect = "not_applied"
retry = false

[[policies.receipts.rules]]
stage = "body_unfinished"
effect = "not_applied"

[policies.reports]
extends = "receipts"
max_attempts = 2
backoff = { type = "exponential", cap = "1m" }

[policies.polls]
extends = "web"
backoff = { type = "constant", seconds = 1 }
guard = { unkeyed = "refuse" }
"""


def test_a_file_with_several_policies(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(TOML)
    found = load_policies(path)
    assert load_policies(str(path)) == found
    receipts = RetryPolicy(
        name="receipts",
        max_attempts=6,
        lifetime=86400.0,
        total_timeout=90.0,
        backoff=Exponential(base=0.5, cap=30),
        budget=RetryBudget(capacity=None, window=10, per_second=10),
        rules=[
            Rule(status=500, json={"/name": "quota"}, effect=Effect.NOT_APPLIED, retry=False),
            Rule(stage=Stage.BODY_UNFINISHED, effect=Effect.NOT_APPLIED),
        ],
    )
    assert found == {
        "receipts": receipts,
        "reports": receipts.with_(name="reports", max_attempts=2, backoff=Exponential(base=0.5, cap=60)),
        "polls": WEB.with_(name="polls", backoff=Constant(seconds=1), guard=found["polls"].guard),
    }
    assert found["polls"].guard.unkeyed == "refuse"


def test_a_backoff_of_another_type_takes_nothing_over() -> None:
    found = load_policies(
        {
            "policies": {
                "a": {"backoff": {"type": "exponential", "base": 3, "cap": 9}},
                "b": {"extends": "a", "backoff": {"type": "linear", "step": 1}},
            }
        }
    )
    assert found["b"].backoff == Linear(step=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1h30m", 5400.0),
        ("1d", 86400.0),
        ("0s", 0.0),
        ("1.5h", 5400.0),
        ("1m2s3ms", 62.003),
    ],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)
    assert one(max_wait=text).max_wait == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "5", "m", "1 h", "-1s", "1m1h", "1s1s", "1e3s", "٣s", "1S", "1s\n", "1" * 400 + "s", "1w"]
)
def test_what_is_no_duration(text: str) -> None:
    assert seconds(text) is None
    [error] = wrong({"policies": {"one": {"max_wait": text}}})
    assert error == f"policies.one.max_wait: {shortened(text)}, must be {DURATION}"


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def test_everything_that_is_wrong_is_said_at_once() -> None:
    errors = wrong(
        {
            "policies": {
                "receipts": {
                    "max_attempts": 0,
                    "retries": 3,
                    "pushback": "wait",
                    "status_forcelist": [503, "busy"],
                    "allowed_methods": {"GET": 1},
                    "guard": {"on_unknown": "guess", "lease": "-1s"},
                    "backoff": {"type": "exponential", "base": "x", "cap": -1},
                    "rules": [{"status": 99, "retry": True}, {"retry": True}, 7],
                    "budget": {"capacity": True},
                },
                "other": {"backoff": {"base": 1}, "limits": 3},
                "third": {"backoff": {"type": "fibonacci"}, "budget": {"window": 10}},
                "fourth": 4,
            },
            "policy": {},
        }
    )
    found = {error.split(": ")[0]: error.split(": ", 1)[1] for error in errors}
    assert len(found) == len(errors)
    assert found["policies.receipts.backoff.cap"] == "-1, must be a number >= 0"
    assert set(found) == {
        "policy",
        "policies.receipts.max_attempts",
        "policies.receipts.retries",
        "policies.receipts.pushback",
        "policies.receipts.status_forcelist",
        "policies.receipts.allowed_methods",
        "policies.receipts.guard.on_unknown",
        "policies.receipts.guard.lease",
        "policies.receipts.backoff.base",
        "policies.receipts.backoff.cap",
        "policies.receipts.rules[0].status",
        "policies.receipts.rules[1]",
        "policies.receipts.rules[2]",
        "policies.receipts.budget.capacity",
        "policies.other.backoff.type",
        "policies.other.limits",
        "policies.third.backoff.type",
        "policies.third.budget.window",
        "policies.fourth",
    }
    assert "one of constant, decorrelated, exponential, linear, urllib3" in found["policies.third.backoff.type"]


def test_what_is_only_wrong_beside_a_wrong_field_is_not_said() -> None:
    """A cap of 0.1 is below the default base, but not below the one that was meant."""
    assert wrong({"policies": {"one": {"backoff": {"type": "linear", "base": "50 ms", "cap": 0.1}}}}) == [
        'policies.one.backoff.base: \'50 ms\', must be a number of seconds, or text such as "500ms", "2m" or "1h30m"'
    ]
    assert wrong({"policies": {"one": {"backoff": {"type": "linear", "base": 2, "cap": 1}}}}) == [
        "policies.one.backoff.cap: 1, must be a number >= base (2)"
    ]


def test_circles_and_unknown_names() -> None:
    errors = wrong(
        {"policies": {"a": {"extends": "b"}, "b": {"extends": "a"}, "c": {"extends": "c"}, "d": {"extends": "x"}}}
    )
    assert errors == [
        "policies.a.extends: a circle: a extends b extends a",
        "policies.b.extends: a circle: b extends a extends b",
        "policies.c.extends: a circle: c extends c",
        "policies.d.extends: 'x', must be one of a, b, c, web, worker",
    ]


@pytest.mark.parametrize("data", [{}, {"policies": []}, {"policies": None}, {"policies": {"a": []}}])
def test_documents_of_another_shape(data: Any) -> None:
    assert len(wrong(data)) == 1


@pytest.mark.parametrize("source", [None, 3, b"x", [("policies", {})]])
def test_sources_of_another_kind(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="a path or a dict"):
        load_policies(source)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.toml", None, "can't be read (No such file or directory)"),
        ("twice.json", b'{"policies": {"a": {"max_wait": 1, "max_wait": 2}}}', '"max_wait" is there twice'),
        ("latin.toml", b'[policies.a]\nname = "\xe9"\n', "not UTF-8"),
        ("bad.toml", b"[policies", "not TOML"),
        ("bad.json", b'{"policies": ', "not JSON"),
        ("deep.json", b"[" * 100_000, "nested too deep"),
        ("empty.json", b"", "not JSON"),
        ("policies.yaml", b"policies: {}", "must end in .toml or .json"),
        ("nul\0.toml", None, "not TOML"),
    ],
)
def test_files_that_are_none(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_policies(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_an_editor_that_marks_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbf[policies.a]\nmax_attempts = 2\n")
    assert load_policies(path)["a"].max_attempts == 2


def test_folders_huge_files_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with (tmp_path / "huge.toml").open("wb") as huge:
        huge.truncate(100 << 20)
    os.mkfifo(tmp_path / "pipe.json")
    for name, says in [("folder.toml", "a folder"), ("huge.toml", "104857600 bytes"), ("pipe.json", "not a file")]:
        with pytest.raises(ConfigurationError, match=says):
            load_policies(tmp_path / name)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(RetryPolicy().to_dict())


@given(st.dictionaries(st.sampled_from([*FIELDS, "extends", "x"]), json_like, max_size=6))
def test_whatever_comes_is_loaded_or_refused_by_name(table: dict[str, Any]) -> None:
    errors: tuple[PolicyError, ...] = ()
    try:
        assert load_policies({"policies": {"one": table}})
    except PolicyFileError as error:
        errors = error.errors
        assert errors
    for each in errors:
        assert each.field.startswith("policies.one")
        assert "\n" not in str(each)


def test_errors_are_policy_errors_and_can_be_pickled() -> None:
    with pytest.raises(PolicyError) as caught:
        one(max_attempts=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, PolicyFileError)
    assert [(e.field, e.value, e.allowed) for e in again.errors] == [
        ("policies.one.max_attempts", 0, "a whole number >= 1")
    ]


def test_a_backoff_without_a_name_has_no_data() -> None:
    class Mine:
        def delay(self, retry: int, previous: float | None, random: float) -> float:
            return 1.0

    with pytest.raises(PolicyError, match=r"entry point in retrypolicy\.backoffs"):
        RetryPolicy(backoff=Mine()).to_dict()


def test_without_cattrs_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['cattrs'] = None\n"
        "import retrypolicy\n"
        "print(len(retrypolicy.WEB.to_dict()))\n"
        "try: retrypolicy.load_policies({'policies': {'a': {}}})\n"
        "except retrypolicy.errors.ConfigurationError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'retrypolicy[config]'" in done.stdout
