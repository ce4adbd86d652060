"""The JSON Schema allows what the loader allows, and nothing else."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from retrypolicy import RetryPolicy, cli, load_policies
from retrypolicy.config import json_schema
from retrypolicy.errors import PolicyFileError
from retrypolicy.testing.strategies import policies


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


def allows(data: Any) -> bool:
    return validator().is_valid(data)


def loads(data: Any) -> bool | None:
    """None: refused, for what a schema can't say."""
    try:
        load_policies(data)
    except PolicyFileError as error:
        return None if all("base (" in each.allowed for each in error.errors) else False
    return True


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())


@given(policies())
def test_every_policy_is_allowed(policy: RetryPolicy) -> None:
    validator().validate({"policies": {"one": policy.to_dict()}})


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        found += places(item, (*way, name))
    return found


numbers = st.sampled_from([0, -1, 0.0, -0.5, 1, 1.0, 1.5, 2, 99, 100, 429, 429.0, 599, 600, 1e9])
texts = "none 0s 500ms 2m 1h30m 0.0s -1s 2 5xx 6xx GET get - /a a * exponential urllib3 full defer hold failure call"
words = st.sampled_from([*texts.split(" "), "", "a b", "4xx\n", "GET\n", "\n", "1s\n"])
leaves = st.none() | st.booleans() | numbers | words
junk = leaves | st.lists(leaves, max_size=2) | st.dictionaries(words, leaves, max_size=2)


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    """A policy's data with a few things changed, added or taken out."""
    data: dict[str, Any] = {"policies": {"one": draw(policies()).to_dict()}}
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(places(data)))
        holder: Any = data
        for step in way[:-1]:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "replace", "drop", "add"]))
        if change == "replace":
            holder[way[-1]] = draw(junk)
        elif change == "drop":
            del holder[way[-1]]
        elif isinstance(holder, dict):
            holder[draw(words)] = draw(junk)
        if not places(data):
            break
    return data


@given(mutants())
def test_what_the_schema_says_the_loader_says(data: dict[str, Any]) -> None:
    """In both directions."""
    said = loads(data)
    assert said is None or allows(data) is said


@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ({}, True),
        ({"extends": "web", "max_attempts": 2}, True),
        ({"total_timeout": "1h30m", "name": "x"}, True),
        ({"total_timeout": "0s"}, False),
        ({"max_wait": "0s"}, True),
        ({"max_attempts": 3.0}, True),
        ({"max_attempts": True}, False),
        ({"backoff": {"base": 1}}, False),
        ({"backoff": {"type": "constant", "base": 1}}, False),
        ({"budget": {"window": 3, "capacity": "none"}}, True),
        ({"budget": {"window": 3}}, False),
        ({"budget": {"window": 3, "capacity": None, "charge": "failure"}}, False),
        ({"rules": [{"status": "5xx", "retry": False}]}, True),
        ({"rules": [{"status": [429.0], "pushback": "2s"}]}, True),
        ({"rules": [{"stage": "sent", "status": 500, "retry": False}]}, False),
        ({"rules": [{"status": 500}]}, False),
        ({"rules": [{"effect": "applied"}]}, False),
        ({"allowed_methods": "none"}, True),
        ({"idempotent_methods": "none"}, False),
    ],
)
def test_cases_of_which_both_think_the_same(table: dict[str, Any], allowed: bool) -> None:
    data = {"policies": {"one": table}}
    assert (loads(data), allows(data)) == (allowed, allowed)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_editors_are_told_what_a_field_is() -> None:
    fields = json_schema()["properties"]["policies"]["additionalProperties"]["properties"]
    assert fields["max_attempts"]["description"] == "tries in all, the first included."
    assert "longer one becomes a Defer" in fields["max_wait"]["description"]
