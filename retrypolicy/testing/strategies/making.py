"""How values are drawn: a field differs from its default or it does not, so that examples shrink to few fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from attrs import fields
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.strategies import SearchStrategy

from retrypolicy.errors import PolicyError

T = TypeVar("T")

Strategies = Mapping[str, SearchStrategy[Any]]
Changes = list[tuple[str, Any]]


def making(kind: Callable[..., T], always: Strategies, *choices: SearchStrategy[Changes]) -> SearchStrategy[T]:
    """A value of this kind: with every field of `always`, and those that are drawn from each of the `choices`."""
    return _made(kind, always, choices)


def some(fields: Strategies, *, least: int = 0, most: int = 3) -> SearchStrategy[Changes]:
    """A few of these fields: those that differ from their defaults."""
    # A list, not a flag for each: few are drawn, which is fast, and each can be dropped by itself.
    change = _change(st.sampled_from(list(fields)), fields) if fields else st.nothing()
    return st.lists(change, min_size=least, max_size=most)


@st.composite
def _made(
    draw: st.DrawFn, kind: Callable[..., T], always: Strategies, choices: tuple[SearchStrategy[Changes], ...]
) -> T:
    # Not `st.builds`: examples would show that call in place of the value.
    given = {name: draw(strategy) for name, strategy in always.items()}
    for choice in choices:
        given.update(draw(choice))
    return kind(**given)


@st.composite
def _change(draw: st.DrawFn, names: SearchStrategy[str], fields: Strategies) -> tuple[str, Any]:
    name = draw(names)
    return name, draw(fields[name])


def pinned(kind: Callable[..., T], given: Mapping[str, Any], usual: Strategies, *, most: int = 3) -> SearchStrategy[T]:
    """Values with the fields of which the caller speaks, by a strategy or a value, and some of the usual ones.

    Raises `InvalidArgument` for a name that is no field, and for a value that its field does not allow.
    """
    known = [attribute.name for attribute in fields(cast(type, kind))]
    always: dict[str, SearchStrategy[Any]] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidArgument(f"{name}: not a field of {kind.__name__}; must be one of {', '.join(known)}")
        if isinstance(value, SearchStrategy):
            always[name] = value
            continue
        try:
            kind(**{name: value})
        except PolicyError as error:
            raise InvalidArgument(f"{name}: {error}") from error
        always[name] = st.just(value)
    return making(kind, always, some({name: each for name, each in usual.items() if name not in always}, most=most))


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """The argument, if it is a finite number in this range. Raises `InvalidArgument`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value == math.inf:
        raise InvalidArgument(f"{name}: {value!r} is not allowed; must be a number {_range(low, high)}")
    return value


def check_integer(name: str, value: object, low: int, high: float = math.inf) -> int:
    """The argument, if it is a whole number in this range. Raises `InvalidArgument`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(f"{name}: {value!r} is not allowed; must be a whole number {_range(low, high)}")
    return value


def check_flag(name: str, value: object) -> bool:
    """The argument, if it is a bool. Raises `InvalidArgument`."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name}: {value!r} is not allowed; must be True or False")
    return value


def check_url(name: str, value: object) -> None:
    """Is the argument the beginning of a URL? Raises `InvalidArgument`."""
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise InvalidArgument(f"{name}: {value!r} is not allowed; must begin with http:// or https://")


def check_some(name: str, value: object, allowed: Collection[T]) -> list[T]:
    """The members of `allowed` that the argument names, in their own order; None: all. Raises `InvalidArgument`."""
    if value is None:
        return list(allowed)
    given = list(value) if isinstance(value, Collection) and not isinstance(value, (str, bytes)) else []
    if not given or any(each not in allowed for each in given):
        words = ", ".join(each.__name__ if isinstance(each, type) else repr(each) for each in allowed)
        raise InvalidArgument(f"{name}: {value!r} is not allowed; must be some of {words}")
    return [each for each in allowed if each in given]


def _range(low: float, high: float) -> str:
    return f"from {low:g} to {high:g}" if high < math.inf else f">= {low:g}"


def seconds(low: float, high: float) -> SearchStrategy[float]:
    """Finite seconds in this range: whole ones first, as people write them."""
    whole: SearchStrategy[float] = st.integers(math.ceil(low), math.floor(high))
    fractions = st.floats(low, high)
    return whole | fractions if math.ceil(low) <= math.floor(high) else fractions


def maybe(strategy: SearchStrategy[T]) -> SearchStrategy[T | None]:
    """This or None."""
    return st.none() | strategy


def sets(strategy: SearchStrategy[T], most: int, *, least: int = 0) -> SearchStrategy[frozenset[T]]:
    """Small sets. (Those of hypothesis draw from what is left, so that dropping one member changes the next.)"""
    return st.lists(strategy, min_size=least, max_size=most).map(frozenset)
