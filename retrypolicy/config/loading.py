"""load_policies: named policies from a TOML or JSON file, or from a dict."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retrypolicy.config.structure import Problem, Problems, policy_from, problem
from retrypolicy.errors import ConfigurationError, PolicyFileError
from retrypolicy.policy import PRESETS, RetryPolicy

LARGEST = 1 << 20
"""Bytes of a policy file; more is a mistake in the path."""


def load_policies(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, RetryPolicy]:
    """The policies that a file (".toml" or ".json") or a dict describes, by name: `{"policies": {name: {...}}}`.

    Fields are those of `RetryPolicy`; what is left out has its default. Durations are numbers of seconds, or text
    ("500ms", "2m", "1h30m"); `backoff` says its `type`; "none" stands for None. With `extends` a policy takes over the
    fields of another one in the same source, or of a preset ("web", "worker"), table by table; a backoff of another
    type replaces the one that it would extend. A policy that says no `name` has the one that it stands under.

    `load_policies({"policies": {"x": policy.to_dict()}})["x"] == policy`.

    Raises `PolicyFileError` (a `PolicyError`) with everything that is wrong, and `ConfigurationError` for a file that
    can't be read, or where cattrs is not installed (`pip install 'retrypolicy[config]'`).
    """
    if isinstance(source, Mapping):
        where, data = "policies", source
    elif isinstance(source, (str, os.PathLike)):
        where, data = os.fspath(source), _read(Path(source))
    else:
        raise ConfigurationError(f"policies: {type(source).__name__} is not allowed; must be a path or a dict")
    policies, problems = _all(data)
    if problems:
        errors = tuple(p.as_error() for p in problems)
        first = errors[0]
        raise PolicyFileError(
            "\n".join([f"{where}: {len(errors)} thing{'s' if len(errors) > 1 else ''} wrong", *map(str, errors)]),
            errors=errors,
            source=where,
            field=first.field,
            value=first.value,
            allowed=first.allowed,
        )
    return policies


def _read(path: Path) -> Any:
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigurationError(f"{path}: not a policy file; its name must end in .toml or .json")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigurationError(f"{path}: {'a folder' if path.is_dir() else 'not a file'}, must be a policy file")
        if found.st_size > LARGEST:
            raise ConfigurationError(f"{path}: {found.st_size} bytes; a policy file has at most {LARGEST}")
        return parse(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:  # both parsers' errors are ValueErrors
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(f"{path}: not {path.suffix[1:].upper()} ({reason})") from None


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's parser would let the last one win, and a field that somebody wrote would be gone."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{json.dumps(name)} is there twice in one table")
        made[name] = value
    return made


_PARSERS: Mapping[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": _json}


def _all(data: Any) -> tuple[dict[str, RetryPolicy], list[Problem]]:
    if not isinstance(data, Mapping):
        return {}, [problem(data, 'a table that has "policies"', "policies")]
    problems = [
        Problem("", 'unknown, must be "policies"', value, "policies").below(str(name))
        for name, value in data.items()
        if name not in ("policies", "$schema")
    ]
    tables = data.get("policies", {})
    if not isinstance(tables, Mapping):
        return {}, [*problems, problem(tables, "a table of policies by name", "policies")]
    if "policies" not in data:
        problems.append(Problem("policies", "missing, must be a table of policies by name", None, "a table"))
    policies: dict[str, RetryPolicy] = {}
    for name in tables:
        try:
            policies[str(name)] = policy_from(_named(name, _extended(name, tables, ())))
        except Problems as error:
            problems += [p.below(str(name)).below("policies") for p in error.problems]
    return policies, problems


def _named(name: Any, table: Any) -> Any:
    return {"name": name, **table} if isinstance(table, Mapping) else table


def _extended(name: Any, tables: Mapping[Any, Any], way: tuple[Any, ...]) -> Any:
    """The table of this name with what it extends filled in."""
    if name in way:
        circle = " extends ".join(map(str, (*way[way.index(name) :], name)))
        raise Problems([Problem("extends", f"a circle: {circle}", way[-1], "another policy")])
    table = tables[name]
    if not isinstance(table, Mapping) or "extends" not in table:
        return table
    base = table["extends"]
    own = {field: value for field, value in table.items() if field != "extends"}
    if isinstance(base, str) and base in tables:
        below = _extended(base, tables, (*way, name))
        if not isinstance(below, Mapping):
            return own  # what is wrong with the base is said there
        below = {field: value for field, value in below.items() if field != "name"}
    elif isinstance(base, str) and base in PRESETS:
        below = {field: value for field, value in PRESETS[base].to_dict().items() if field != "name"}
    else:
        known = ", ".join(dict.fromkeys([*(str(other) for other in tables if other != name), *PRESETS]))
        raise Problems([problem(base, f"one of {known}", "extends")])
    return _merged(below, own)


def _merged(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    made = dict(below)
    for name, value in above.items():
        under = made.get(name)
        if isinstance(under, Mapping) and isinstance(value, Mapping) and under.get("type") == value.get("type"):
            value = {**under, **value}
        made[name] = value
    return made
