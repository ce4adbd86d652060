"""The public names and signatures are those of the committed snapshot, tests/api.txt.

After a change that was meant, write it anew with `nox -s api`, and read the difference before you commit it.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

SNAPSHOT = Path(__file__).with_name("api.txt")
MODULES = [
    "retrypolicy",
    "retrypolicy.decision",
    "retrypolicy.errors",
    "retrypolicy.guard",
    "retrypolicy.requests",
    "retrypolicy.urllib3",
    "retrypolicy.anymail",
    "retrypolicy.testing",
]
INNER = ["retrypolicy.driving"]
"""Modules whose classes nobody imports, but whose members users call on the public ones."""


def shown(value: object) -> str:
    """A default value, without anything that changes from run to run (set order, addresses)."""
    if isinstance(value, frozenset | set):
        return "{" + ", ".join(sorted(map(shown, value))) + "}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(map(shown, value))) + "}"
    if isinstance(value, enum.Enum):
        return str(value)
    if inspect.isroutine(value) or inspect.isclass(value):
        return str(value.__qualname__)
    text = repr(value).removeprefix("_Nothing.")
    return "..." if " at 0x" in text else text


def signature(value: object) -> str:
    """The parameters as a caller sees them, with the return type."""
    try:
        found = inspect.signature(value)  # type: ignore[arg-type] # not callable: a TypeError, as wanted
    except (TypeError, ValueError):
        return ""
    parts = []
    star = False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={shown(parameter.default)}"
        parts.append(f"{mark}{parameter.name}{default}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            parts.append("/")
    last = max((at for at, part in enumerate(parts) if part == "/"), default=-1)
    return "(" + ", ".join(part for at, part in enumerate(parts) if part != "/" or at == last) + ")"


def described(name: str, value: object) -> Iterator[str]:
    """The lines for one public name: itself, and the members of a class that are its own, or come from hidden bases."""
    if not inspect.isclass(value):
        yield f"{name}{signature(value)}" if callable(value) else f"{name} = {shown(value)}"
        return
    if issubclass(value, enum.Enum):
        yield f"{name}: {', '.join(value.__members__)}"
        return
    bases = [base.__name__ for base in value.__bases__ if base is not object]
    yield f"class {name}{signature(value)}" + (f" is {', '.join(bases)}" if bases else "")
    fields = {field.name for field in getattr(value, "__attrs_attrs__", ())}  # in the signature already
    members = {**vars(value)}
    for base in value.__mro__[1:]:
        if base.__module__ in INNER:
            members = {**vars(base), **members}
    for member, found in sorted(members.items()):
        if not member.startswith("_") and member not in fields:
            plain = found.__func__ if isinstance(found, classmethod | staticmethod) else found
            yield f"    {member}{signature(plain) if inspect.isroutine(plain) else ''}"


def public(module: ModuleType) -> list[str]:
    """The module's own list, or what it defines without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


def current() -> str:
    lines = []
    for path in MODULES:
        module = importlib.import_module(path)
        lines.append(f"# {path}")
        for name in public(module):
            lines.extend(described(name, getattr(module, name)))
        lines.append("")
    return "\n".join(lines)


def test_public_names_and_signatures() -> None:
    if "UPDATE_API_SNAPSHOT" in os.environ:
        SNAPSHOT.write_text(current(), encoding="utf-8")
    assert current().splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines()
