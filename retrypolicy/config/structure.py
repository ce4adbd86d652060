"""Plain data to a policy, by cattrs; everything that is wrong is said at once, each thing with its path."""

from __future__ import annotations

import enum
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from attrs import NOTHING, Attribute, fields, frozen, has

from retrypolicy import plugins
from retrypolicy._validate import Checked, Seconds
from retrypolicy.backoff import BACKOFFS, Backoff
from retrypolicy.config.durations import seconds
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.policy import RetryPolicy

DURATION = 'a number of seconds, or text such as "500ms", "2m" or "1h30m"'
NONE = "none"
"""Stands for None in TOML, which has no word for it."""


@frozen
class Problem:
    """One thing that is wrong, and where."""

    path: str
    message: str
    value: object = None
    allowed: str = ""

    def below(self, name: str) -> Problem:
        if not re.fullmatch(r"[A-Za-z0-9_-]+|\[[0-9]+\]", name):
            name = json.dumps(name)
        path = self.path if not self.path or self.path.startswith("[") else f".{self.path}"
        return Problem(name + path, self.message, self.value, self.allowed)

    def as_error(self) -> PolicyError:
        return PolicyError(f"{self.path}: {self.message}", field=self.path, value=self.value, allowed=self.allowed)


class Problems(Exception):
    """Internal: what is wrong with one value and the parts of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)


def problem(value: object, allowed: str, path: str = "") -> Problem:
    """A value that is not what is allowed there."""
    text = repr(value)
    return Problem(path, f"{text if len(text) <= 80 else text[:77] + '...'}, must be {allowed}", value, allowed)


def policy_from(data: object) -> RetryPolicy:
    """The policy that this table describes. Raises `Problems`."""
    made: RetryPolicy = _converter().structure(data, RetryPolicy)
    return made


@cache
def _converter() -> Any:
    try:
        from cattrs import Converter
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "policies as data need the package 'cattrs', which is not installed here; pip install 'retrypolicy[config]'"
        ) from error
    converter = Converter(detailed_validation=False)
    # The last one that knows a type is asked first.
    converter.register_structure_hook_func(has, lambda value, kind: _instance(converter, kind, value))
    converter.register_structure_hook_func(lambda kind: kind is Backoff, lambda value, _: _backoff(converter, value))
    converter.register_structure_hook_func(is_enum, _member)
    converter.register_structure_hook_func(is_literal, _word)
    converter.register_structure_hook_func(_is_collection, lambda value, kind: _items(converter, kind, value))
    converter.register_structure_hook_func(is_mapping, _table)
    converter.register_structure_hook_func(is_union, lambda value, kind: _one_of(converter, kind, value))
    for kind, allowed, accepts in _SCALARS:
        converter.register_structure_hook(kind, _scalar(allowed, accepts))
    converter.register_structure_hook_func(lambda kind: kind == Seconds, _seconds)
    return converter


# -- single values -----------------------------------------------------------------------------------------------------


def _whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_SCALARS: tuple[tuple[type, str, Callable[[Any], bool]], ...] = (
    (int, "a whole number", _whole),
    (float, "a number", _number),
    (bool, "true or false", lambda value: isinstance(value, bool)),
    (str, "text", lambda value: isinstance(value, str)),
)


def _scalar(allowed: str, accepts: Callable[[Any], bool]) -> Callable[[Any, Any], Any]:
    def hook(value: Any, kind: Any) -> Any:
        if not accepts(value):
            raise Problems([problem(value, allowed)])
        return int(value) if kind is int else value

    return hook


def _seconds(value: Any, _: Any) -> Any:
    if _number(value):
        return value
    said = seconds(value) if isinstance(value, str) else None
    if said is None:
        raise Problems([problem(value, DURATION)])
    return said


def is_enum(kind: Any) -> bool:
    """Is this type an enumeration?"""
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _member(value: Any, kind: Any) -> Any:
    for one in kind:
        if one.value == value:
            return one
    raise Problems([problem(value, "one of " + ", ".join(str(one.value) for one in kind))])


def is_literal(kind: Any) -> bool:
    """Is this type a choice of words?"""
    return bool(get_origin(kind) == Literal)


def is_mapping(kind: Any) -> bool:
    """Is this type a table with names of its own?"""
    return bool(get_origin(kind) == Mapping)


def _word(value: Any, kind: Any) -> Any:
    if not any(value == word and type(value) is type(word) for word in get_args(kind)):
        raise Problems([problem(value, "one of " + ", ".join(map(str, get_args(kind))))])
    return value


def is_union(kind: Any) -> bool:
    """Is this type one of several?"""
    return get_origin(kind) in (Union, types.UnionType)


def _one_of(converter: Any, kind: Any, value: Any) -> Any:
    kinds = get_args(kind)
    if type(None) in kinds and (value is None or value == NONE):
        return None
    rest = [one for one in kinds if one is not type(None)]
    problems: list[Problem] = []
    for one in rest:
        try:
            return converter.structure(value, one)
        except Problems as error:
            problems += error.problems
    if len(rest) == 1:
        raise Problems(problems)
    raise Problems([problem(value, " or ".join(dict.fromkeys(p.allowed for p in problems)))])


# -- tables and lists --------------------------------------------------------------------------------------------------


def _table(value: Any, kind: Any) -> Any:
    words = get_args(kind)[1:] == (str,)
    if not isinstance(value, Mapping) or (words and not all(isinstance(item, str) for item in value.values())):
        raise Problems([problem(value, "a table of text" if words else "a table")])
    try:
        json.dumps(value)
    except (TypeError, ValueError):  # TOML has dates; no answer's JSON body has
        raise Problems([problem(value, "a table of JSON values")]) from None
    return value


def _is_collection(kind: Any) -> bool:
    return get_origin(kind) in (frozenset, tuple)


def _items(converter: Any, kind: Any, value: Any) -> Any:
    """A list. Single numbers and words are for the class to judge; tables are structured here."""
    if not isinstance(value, list):
        # A rule's status may stand alone.
        if get_args(kind) == (int | str,) and isinstance(value, (int, float, str)):
            return _exact(value)
        raise Problems([problem(value, "a list")])
    inner = get_args(kind)[0]
    if not has(inner):
        return [_exact(item) for item in value]
    made, problems = [], []
    for at, item in enumerate(value):
        try:
            made.append(converter.structure(item, inner))
        except Problems as error:
            problems += [p.below(f"[{at}]") for p in error.problems]
    if problems:
        raise Problems(problems)
    return made


def _exact(value: Any) -> Any:
    """JSON makes no difference between 429 and 429.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def backoff_class(name: object) -> type:
    """The class of this name. Raises `Problems`."""
    if not isinstance(name, str) or name not in plugins.names("backoffs", BACKOFFS):
        known = ", ".join(plugins.names("backoffs", BACKOFFS))
        raise Problems([problem(name, f"one of {known}", "type")])
    try:
        found = plugins.load("backoffs", name, BACKOFFS)
    except ConfigurationError as error:
        raise Problems([Problem("type", str(error), name)]) from error
    if not isinstance(found, type) or not has(found) or not callable(getattr(found, "delay", None)):
        raise Problems([Problem("type", f"{name!r} is not an attrs class with a method delay()", name)])
    return found


def _backoff(converter: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise Problems([problem(value, 'a table with a type, such as {type = "exponential", base = 0.5}')])
    if "type" not in value:
        known = ", ".join(plugins.names("backoffs", BACKOFFS))
        raise Problems([Problem("type", f"missing, must be one of {known}", None, known)])
    rest = {name: item for name, item in value.items() if name != "type"}
    return converter.structure(rest, backoff_class(value["type"]))


def _instance(converter: Any, cls: type, value: Any) -> Any:
    """An instance of an attrs class: every field on its own, so that no error hides another."""
    known: dict[str, Attribute[Any]] = {a.name: a for a in fields(cls) if a.init}
    if not isinstance(value, Mapping):
        raise Problems([problem(value, "a table of " + ", ".join(known))])
    types_of = hints(cls)
    given: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, item in value.items():
        if name not in known:
            allowed = ", ".join(known)
            problems.append(Problem("", f"unknown, must be one of {allowed}", item, allowed).below(str(name)))
            continue
        try:
            given[name] = converter.structure(item, types_of[name])
        except Problems as error:
            problems += [p.below(name) for p in error.problems]
        except Exception:  # cattrs, of a type that only a class of others has
            problems.append(problem(item, f"a {getattr(types_of[name], '__name__', types_of[name])}", name))
    for name, a in known.items():
        if a.default is NOTHING and name not in value:
            problems.append(Problem(name, "missing", None, "given"))
    made = _made(cls, given, problems, lenient=bool(problems))
    if problems:
        raise Problems(problems)
    return made


def _made(cls: type, given: dict[str, Any], problems: list[Problem], lenient: bool) -> Any:
    """An instance, leaving out what it refuses until it refuses nothing more."""
    while True:
        try:
            return cls(**given)
        except PolicyError as error:
            name = error.field.partition(".")[2].partition(".")[0]
            # With a field left out, what is only wrong beside another field may not be wrong at all.
            if not (lenient and (name not in given or _right_by_itself(cls, name, given[name]))):
                problems.append(problem(error.value, error.allowed, name))
            if name not in given:
                return None
            del given[name]
            lenient = True
        except TypeError:  # a field that is needed is missing: said already
            return None
        except (ValueError, ArithmeticError) as error:  # classes of others say it their way
            problems.append(Problem("", str(error) or type(error).__name__))
            return None


def _right_by_itself(cls: type, name: str, value: Any) -> bool:
    found = {a.name: a for a in fields(cls)}.get(name)
    checks = checks_of(found) if found is not None else ()
    try:
        for check in checks:
            check(_Stranger, found, value)
    except PolicyError:
        return False
    return bool(checks)


class _Stranger:
    """Stands for the instance where a validator looks at nothing but the value."""


def checks_of(attribute: Attribute[Any]) -> tuple[Checked, ...]:
    """The validators of a field that look at nothing else."""
    validators = getattr(attribute.validator, "_validators", (attribute.validator,))
    return tuple(v for v in validators if isinstance(v, Checked))


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """The types of a class's fields, durations marked as such."""
    return get_type_hints(cls, include_extras=True)
