"""Parts that other packages bring along, found by name through entry points.

A kind is the end of the group's name: "backoffs" are the entry points of the group `retrypolicy.backoffs`.
Our own names come first, so that no package can take their place unseen.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from retrypolicy.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

NOTHING: Mapping[str, str] = {}


def names(kind: str, own: Mapping[str, str] = NOTHING) -> tuple[str, ...]:
    """The names that `load` knows; `own` maps those of this library to "module:name"."""
    return tuple(sorted({*own, *_others(kind)}))


def load(kind: str, name: str, own: Mapping[str, str] = NOTHING) -> Any:
    """What stands under this name. Raises `ConfigurationError` with the names there are, or why it can't be loaded."""
    if name in own:
        module, _, attribute = own[name].partition(":")
        return getattr(import_module(module), attribute)
    entry = _others(kind).get(name)
    if entry is None:
        known = ", ".join(names(kind, own)) or "none is installed"
        raise ConfigurationError(f"retrypolicy.{kind}: {name!r} is not known; known are: {known}")
    try:
        return entry.load()
    except Exception as error:
        raise ConfigurationError(f"retrypolicy.{kind}: {name!r} ({entry.value}) can't be loaded: {error}") from error


def name_of(kind: str, value: object, own: Mapping[str, str] = NOTHING) -> str | None:
    """The name under which the class of `value` is found; None if there is none."""
    cls = type(value)
    place = f"{cls.__module__}:{cls.__qualname__}"
    for name, where in own.items():
        if where == place:
            return name
    for name in _others(kind):
        if name not in own and load(kind, name) is cls:
            return name
    return None


@functools.cache
def _others(kind: str) -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points  # costs ten times what the rest of this module does

    return {entry.name: entry for entry in entry_points(group=f"retrypolicy.{kind}")}
