"""JSON Pointers (RFC 6901) with stars: reading many values at once, and setting one.

`*` stands for every element of an array, `*#` for every member of an object. Whatever a star stood for can be put
in the place of the stars of another pointer, so that two pointers speak of the same element.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

ELEMENTS = "*"
MEMBERS = "*#"
MISSING: Any = object()


def document(content: bytes | str | None) -> Any:
    """The JSON value in `content`, or MISSING where there is none."""
    if not content:
        return MISSING
    try:
        return json.loads(content)
    except (ValueError, TypeError, RecursionError):  # TypeError: a body that is a stream
        return MISSING


@functools.lru_cache(maxsize=1024)  # those of the profiles, for each answer
def parts(pointer: str) -> tuple[str, ...]:
    """The steps of a pointer; none for the whole document."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def walk(value: Any, pointer: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that the pointer finds, with what its stars stand for. What an element lacks is MISSING."""
    yield from _walk(value, parts(pointer), ())


def _walk(value: Any, steps: Sequence[str], stars: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not steps:
        yield stars, value
    elif steps[0] == ELEMENTS:
        for index, element in enumerate(value if isinstance(value, list) else ()):
            yield from _walk(element, steps[1:], (*stars, str(index)))
    elif steps[0] == MEMBERS:
        for name, member in value.items() if isinstance(value, dict) else ():
            yield from _walk(member, steps[1:], (*stars, name))
    else:
        yield from _walk(_step(value, steps[0]), steps[1:], stars)


def at(value: Any, pointer: str, stars: Sequence[str] = ()) -> Any:
    """The value at the pointer, its stars replaced from the left; MISSING if there is none."""
    rest = list(stars)
    for part in parts(pointer):
        value = _step(value, rest.pop(0) if part in (ELEMENTS, MEMBERS) and rest else part)
    return value


def _step(value: Any, part: str) -> Any:
    if isinstance(value, dict):
        return value.get(part, MISSING)
    if isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
        return value[int(part)]
    return MISSING


def put(value: Any, pointer: str, new: str) -> str | None:
    """Set a member, making objects on the way. Returns what stands there already, and then changes nothing.

    Raises TypeError where the way leads through anything but objects.
    """
    *way, last = parts(pointer)
    for part in way:
        if not isinstance(value, dict):
            raise TypeError(pointer)
        value = value.setdefault(part, {})
    if not isinstance(value, dict):
        raise TypeError(pointer)
    there = value.get(last)
    if there is None:
        value[last] = new
        return None
    if not isinstance(there, str):
        raise TypeError(pointer)
    return there
