"""Validators for the values of this library: each error names the field, the value and what is allowed."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from attrs import field, frozen

from retrypolicy.errors import PolicyError

Seconds = Annotated[float, "seconds"]
"""A field of this type may be written as text in policy files: "500ms", "2m", "1h30m"."""

Validator = Callable[[Any, Any, Any], None]
Word = TypeVar("Word", bound=str)
T = TypeVar("T")


@frozen
class Checked:
    """A validator that looks at its own field only, and can say what it allows as JSON Schema."""

    check: Validator
    schema: Mapping[str, Any] = field(factory=dict)

    def __call__(self, instance: Any, attribute: Any, value: Any) -> None:
        self.check(instance, attribute, value)


def strict(cls: type[T]) -> type[T]:
    """Make an attrs class answer an unknown keyword as it answers a bad value: with the names it knows."""
    init: Any = cls.__init__
    known = [a.alias for a in cls.__attrs_attrs__]  # type: ignore[attr-defined]  # set by attrs

    @functools.wraps(init)
    def init_by_name(self: Any, *args: Any, **kwargs: Any) -> None:
        if args:
            raise PolicyError.of(cls.__name__, args[0], "given by name: " + ", ".join(known))
        for name in kwargs:
            if name not in known:
                raise PolicyError.of(f"{cls.__name__}.{name}", kwargs[name], "one of the fields " + ", ".join(known))
        init(self, **kwargs)

    cls.__init__ = init_by_name  # type: ignore[method-assign]  # the same signature, for callers and inspect
    return cls


def _name(instance: Any, attribute: Any) -> str:
    return f"{type(instance).__name__}.{attribute.name}"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def number(low: float, high: float = math.inf, *, above: bool = False) -> Checked:
    """A finite number from `low` (not itself, if `above`) to `high`."""
    allowed = f"a number {'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not _is_number(value) or value < low or (above and value == low) or value > high:
            raise PolicyError.of(_name(instance, attribute), value, allowed)

    bounds: dict[str, Any] = {"exclusiveMinimum" if above else "minimum": low}
    return Checked(check, bounds if high == math.inf else {**bounds, "maximum": high})


def optional_number(low: float, high: float = math.inf, *, above: bool = False) -> Checked:
    """As `number`, or None."""
    inner = number(low, high, above=above)

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is None:
            return
        try:
            inner(instance, attribute, value)
        except PolicyError as error:
            raise PolicyError.of(error.field, value, f"{error.allowed}, or None") from None

    return Checked(check, inner.schema)


def integer(low: int, *, optional: bool = False) -> Checked:
    """A whole number from `low`, or None if `optional`."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise PolicyError.of(
                _name(instance, attribute), value, f"a whole number >= {low}" + (", or None" if optional else "")
            )

    return Checked(check, {"minimum": low})


def choice(*allowed: Word) -> Callable[[Any, Any, Word], None]:
    """One of these words."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value not in allowed:
            raise PolicyError.of(_name(instance, attribute), value, "one of " + ", ".join(allowed))

    return check


def member(kind: type[enum.Enum], *, optional: bool = False) -> Validator:
    """A member of an enumeration, or None if `optional`."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, kind) and not (optional and value is None):
            names = ", ".join(f"{kind.__name__}.{m.name}" for m in kind)
            raise PolicyError.of(_name(instance, attribute), value, names + (", or None" if optional else ""))

    return check


def instance_or_none(kind: type) -> Validator:
    """An instance of a class, or None."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None and not isinstance(value, kind):
            raise PolicyError.of(_name(instance, attribute), value, f"a {kind.__name__}, or None")

    return check


def text(instance: Any, attribute: Any, value: Any) -> None:
    """A str."""
    if not isinstance(value, str):
        raise PolicyError.of(_name(instance, attribute), value, "a str")


def flag(instance: Any, attribute: Any, value: Any) -> None:
    """A bool."""
    if not isinstance(value, bool):
        raise PolicyError.of(_name(instance, attribute), value, "True or False")
