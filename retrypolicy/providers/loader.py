"""Finds profiles: by name (ours, and those of other packages), and in TOML files."""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from retrypolicy import plugins
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.http.pushback import Hint
from retrypolicy.outcome import Effect, Stage
from retrypolicy.providers.answers import Answers, Kept, Template
from retrypolicy.providers.key import KeyPlacement
from retrypolicy.providers.profile import Provider
from retrypolicy.rules import Rule

_PACKAGE = "retrypolicy.providers"
_LARGEST = 1 << 20  # bytes of a profile


def load(name: str | os.PathLike[str] | Provider) -> Provider:
    """The profile of this name, or in this TOML file (a path, or a str that ends in ".toml"). Cached.

    A `Provider` passes through. Raises `ConfigurationError` if there is none, or it can't be read.
    """
    if isinstance(name, Provider):
        return name
    if isinstance(name, os.PathLike) or str(name).endswith(".toml"):
        return _load_file(Path(name))
    found = _named(name)
    if found is None:
        raise ConfigurationError(f"no provider is called {name!r}; known are {', '.join(names())}")
    return found


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(sorted({*_own(), *plugins.names("providers")}))


@functools.cache
def _own() -> frozenset[str]:
    files = resources.files(_PACKAGE).iterdir()
    return frozenset(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


@functools.cache
def _named(name: str) -> Provider | None:
    if name in _own():
        return _structured((resources.files(_PACKAGE) / f"{name}.toml").read_bytes(), f"{name}.toml")
    if name not in plugins.names("providers"):
        return None
    found = plugins.load("providers", name)
    if not isinstance(found, Provider):
        raise ConfigurationError(f"retrypolicy.providers: {name!r} is a {type(found).__name__}, not a Provider")
    return found


def _load_file(path: Path) -> Provider:
    try:
        found = path.stat()
        if found.st_size > _LARGEST:
            raise ConfigurationError(f"{path}: {found.st_size} bytes; a profile has at most {_LARGEST}")
        return _read(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read ({error.strerror})") from None


@functools.lru_cache(maxsize=64)
def _read(path: Path, modified: int, size: int) -> Provider:
    return _structured(path.read_bytes(), str(path))


def _structured(content: bytes, where: str) -> Provider:
    try:
        return _provider(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where}: not a TOML file ({error})") from None
    except PolicyError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except TypeError as error:  # a field that is needed, or a table where a value is due
        raise ConfigurationError(f"{where}: not a profile ({error})") from error


def _provider(data: dict[str, Any]) -> Provider:
    return Provider(
        **_with(
            data,
            key=lambda table: KeyPlacement(**table),
            rules=lambda tables: [Rule(**_with(table, effect=Effect, stage=Stage)) for table in tables],
            hints=lambda tables: [Hint(**table) for table in tables],
            answers=_answers,
        )
    )


def _answers(table: dict[str, Any]) -> Answers:
    return Answers(
        **_with(
            table,
            keep=_kept,
            each=_kept,
            replay=lambda tables: [Template(**template) for template in tables],
        )
    )


def _kept(table: dict[str, Any]) -> dict[str, Kept]:
    return {name: Kept(**({"at": value} if isinstance(value, str) else value)) for name, value in table.items()}


def _with(table: dict[str, Any], **structures: Callable[[Any], Any]) -> dict[str, Any]:
    """The table, with some of its values structured."""
    made = dict(table)
    for name, structure in structures.items():
        if name in made:
            try:
                made[name] = structure(made[name])
            except ValueError as error:
                if isinstance(error, PolicyError):
                    raise
                raise PolicyError.of(name, made[name], str(error)) from None
    return made
