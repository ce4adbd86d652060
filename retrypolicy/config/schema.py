"""The JSON Schema of policy files, made from the classes themselves, those of plug-ins included.

It allows what `load_policies` allows, but for what it can't say: that one number is not above another (a backoff's
`base` and `cap`), that the policy named by `extends` exists, and what a plug-in's own validators refuse.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from attrs import NOTHING, Attribute, fields, has

from retrypolicy import plugins
from retrypolicy._validate import Seconds
from retrypolicy.backoff import BACKOFFS, Backoff
from retrypolicy.budget import RetryBudget
from retrypolicy.config.durations import PATTERN
from retrypolicy.config.structure import (
    NONE,
    Problems,
    backoff_class,
    checks_of,
    hints,
    is_enum,
    is_literal,
    is_mapping,
    is_union,
)
from retrypolicy.policy import RetryPolicy
from retrypolicy.rules import Rule

Schema = dict[str, Any]

_EMPTY = {"enum": [None, NONE]}
_SCALARS: Mapping[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string"}

# `$(?!\n)`: Python's `$` would let a line break follow.
_METHODS: Schema = {"type": "array", "items": {"type": "string", "pattern": r"^-*[A-Za-z0-9][A-Za-z0-9-]*$(?!\n)"}}
_STATUS: Schema = {"type": "integer", "minimum": 100, "maximum": 599}
_STATUS_OR_CLASS: Schema = {"anyOf": [_STATUS, {"type": "string", "pattern": r"^[1-5]xx$(?!\n)"}]}
_BY_HAND: Mapping[tuple[type, str], Schema] = {
    (RetryPolicy, "allowed_methods"): {"anyOf": [_METHODS, _EMPTY]},
    (RetryPolicy, "idempotent_methods"): _METHODS,
    (RetryPolicy, "status_forcelist"): {"type": "array", "items": _STATUS},
    (RetryPolicy, "refusal_statuses"): {"type": "array", "items": _STATUS},
    (Rule, "status"): {
        "anyOf": [_STATUS_OR_CLASS, {"type": "array", "items": _STATUS_OR_CLASS, "minItems": 1}, _EMPTY]
    },
    (Rule, "json"): {"type": "object", "propertyNames": {"pattern": r"^$(?!\n)|^/"}},
}


def _given(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"not": _EMPTY}}}


def _filled(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"minProperties": 1}}}


_TEXT: Schema = {"required": ["body"], "properties": {"body": {"minLength": 1}}}
_NO_WINDOW: Schema = {"properties": {"window": _EMPTY}}
_BESIDES: Mapping[type, Schema] = {
    Rule: {
        "allOf": [
            {"anyOf": [_given("stage"), _given("status"), _filled("header"), _filled("json"), _TEXT]},
            {"anyOf": [_given("effect"), _given("retry"), _given("pushback")]},
            {
                "if": _given("stage"),
                "then": {
                    "properties": {
                        "status": _EMPTY,
                        "header": {"maxProperties": 0},
                        "json": {"maxProperties": 0},
                        "body": {"maxLength": 0},
                    }
                },
            },
        ]
    },
    RetryBudget: {
        "if": {"required": ["capacity"], "properties": {"capacity": _EMPTY}},
        "then": {**_given("window"), "not": {"required": ["charge"], "properties": {"charge": {"const": "failure"}}}},
        "else": _NO_WINDOW,
    },
}


def json_schema() -> Schema:
    """The schema (draft 2020-12), as a dict. Backoffs of installed packages are part of it."""
    definitions: dict[str, Schema] = {}
    policy = _object(RetryPolicy, definitions)
    policy["properties"]["extends"] = {"type": "string", "description": "the policy whose fields this one takes over"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "retrypolicy: named policies",
        "type": "object",
        "properties": {"$schema": {}, "policies": {"type": "object", "additionalProperties": policy}},
        "required": ["policies"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _object(cls: type, definitions: dict[str, Schema]) -> Schema:
    described = _descriptions(cls)
    properties: dict[str, Schema] = {}
    for a in fields(cls):
        if a.init:
            found = _BY_HAND.get((cls, a.name)) or _of(hints(cls)[a.name], a, definitions)
            properties[a.name] = {**found, "description": described[a.name]} if a.name in described else dict(found)
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **_BESIDES.get(cls, {}),
    }
    needed = [a.name for a in fields(cls) if a.init and a.default is NOTHING]
    return {**schema, "required": needed} if needed else schema


def _of(kind: Any, a: Attribute[Any], definitions: dict[str, Schema]) -> Schema:
    """The schema of one field's type, with the bounds that its validators know."""
    bounds: Schema = {}
    for check in checks_of(a):
        bounds.update(check.schema)
    if kind == Seconds:
        positive = "(?=.*[1-9])" if "exclusiveMinimum" in bounds else ""
        return {"anyOf": [{"type": "number", **bounds}, {"type": "string", "pattern": "^" + positive + PATTERN[1:]}]}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind], **bounds}
    if kind is Backoff:
        return _backoffs(definitions)
    if has(kind):
        definitions.setdefault(kind.__name__, {})
        if not definitions[kind.__name__]:
            definitions[kind.__name__].update(_object(kind, definitions))
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if is_enum(kind):
        return {"enum": [member.value for member in kind]}
    if is_literal(kind):
        return {"enum": list(get_args(kind))}
    if is_union(kind):
        return _union(kind, a, definitions)
    if get_origin(kind) is tuple and has(get_args(kind)[0]):
        return {"type": "array", "items": _of(get_args(kind)[0], a, definitions)}
    if is_mapping(kind):
        return {"type": "object", **({"additionalProperties": {"type": "string"}} if get_args(kind)[1] is str else {})}
    return {}  # a type that only a class of others has


def _union(kind: Any, a: Attribute[Any], definitions: dict[str, Schema]) -> Schema:
    kinds = get_args(kind)
    schemas = [_of(one, a, definitions) for one in kinds if one is not type(None)]
    if a.name == "pushback":
        schemas[-1] = {"type": "string", "pattern": "^/"}
        schemas[0]["anyOf"][0]["minimum"] = 0
    if type(None) in kinds:
        schemas.append(_EMPTY)
    return {"anyOf": schemas}


def _backoffs(definitions: dict[str, Schema]) -> Schema:
    found = []
    for name in plugins.names("backoffs", BACKOFFS):
        try:
            cls = backoff_class(name)
        except Problems:  # installed but broken: `load_policies` says so when somebody uses it
            continue
        schema = _object(cls, definitions)
        schema["properties"]["type"] = {"const": name}
        schema["required"] = ["type", *schema.get("required", ())]
        found.append({"title": name, "description": _first_line(cls), **schema})
    return {"type": "object", "oneOf": found}


# -- what editors show -------------------------------------------------------------------------------------------------

_ITEM = re.compile(r"^ *(\w+(?:, \w+)*): (.+(?:\n +(?! |\w+(?:, \w+)*: ).+)*)", re.MULTILINE)


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0].replace("`", "")


def _descriptions(cls: type) -> dict[str, str]:
    """What the docstring says of each field."""
    found: dict[str, str] = {}
    for names, text in _ITEM.findall(inspect.cleandoc(cls.__doc__ or "")):
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found
