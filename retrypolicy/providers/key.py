"""Where a provider wants the idempotency key, in which form, and how long it remembers it."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, MutableMapping
from fnmatch import fnmatchcase
from typing import Any

from attrs import Factory, field, frozen

from retrypolicy._validate import choice, flag, integer, number, strict
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.http.methods import SAFE
from retrypolicy.providers import pointer as json_pointer


def _place(instance: Any, attribute: Any, value: Any) -> None:
    allowed = "the name of a header" if attribute.name == "header" else 'a JSON Pointer such as "/headers/key"'
    if value is None:
        return
    good = isinstance(value, str) and (
        re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value) if attribute.name == "header" else value.startswith("/")
    )
    if not good:
        raise PolicyError.of(f"KeyPlacement.{attribute.name}", value, f"{allowed}, or None")


def _one_place(instance: Any, attribute: Any, value: Any) -> None:
    if (instance.header is None) is (value is None):
        raise PolicyError.of("KeyPlacement", (instance.header, value), "given a header or a pointer, one of the two")


def _pattern(instance: Any, attribute: Any, value: Any) -> None:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise PolicyError.of("KeyPlacement.pattern", value, f"a regular expression ({error})") from None


def _margin(instance: Any, attribute: Any, value: Any) -> None:
    number(0)(instance, attribute, value)
    if value >= instance.window:
        raise PolicyError.of("KeyPlacement.margin", value, f"less than the window ({instance.window:g})")


def _methods(value: Any) -> frozenset[str]:
    methods = frozenset([value] if isinstance(value, str) else value)
    for method in methods:
        if not isinstance(method, str) or method != method.upper() or method in SAFE:
            raise PolicyError.of("KeyPlacement.methods", method, "a method that asks for a change, such as POST")
    return methods


@strict
@frozen(kw_only=True)
class KeyPlacement:
    """How one API takes an idempotency key.

    Fields:
        header, pointer: where it goes: a header, or a JSON Pointer into the request's body. One of the two.
        quoted: the header's value is a string in the sense of RFC 9651: in double quotes.
        format: "text", or "uuid" where the provider takes nothing else.
        pattern, max_length: what a key must look like (the whole of it), and its longest.
        window: seconds for which the provider remembers a key.
        margin: seconds before the end of the window from which it is not relied on any more.
        methods, paths: the requests that honour a key; paths as globs (`*` also matches "/"), none: all paths.

    Raises `PolicyError` for values that can't be.
    """

    header: str | None = field(default=None, validator=_place)
    pointer: str | None = field(default=None, validator=[_place, _one_place])
    quoted: bool = field(default=False, validator=flag)
    format: str = field(default="text", validator=choice("text", "uuid"))
    pattern: str = field(default=r"[!-~]+", validator=_pattern)
    max_length: int = field(default=255, validator=integer(36))
    window: float = field(validator=number(0, above=True))
    margin: float = field(
        default=Factory(lambda placement: min(300.0, placement.window / 10), takes_self=True), validator=_margin
    )
    methods: frozenset[str] = field(default=frozenset({"POST"}), converter=_methods)
    paths: tuple[str, ...] = field(default=(), converter=tuple)

    def takes(self, method: str, path: str) -> bool:
        """Does the API honour a key on this request?"""
        path = path.partition("?")[0].partition("#")[0]
        return method.upper() in self.methods and (
            not self.paths or any(fnmatchcase(path, glob) for glob in self.paths)
        )

    def outgoing(self, key: str, generation: int) -> str:
        """The key as the provider gets it: the caller's own where the format allows, else a fixed function of it.

        It depends on nothing but its arguments: never on host, ledger or secret. An address ("@") never goes out.
        """
        if generation == 1 and "@" not in key and len(key) <= self.max_length and self._fits(key):
            return key
        digest = hashlib.sha256(f"retrypolicy:{generation}:{key}".encode("utf-8", "surrogatepass")).digest()
        # Version 8 would be the honest one (RFC 9562 5.8), but many servers' checks know 1 to 5 only.
        return str(uuid.UUID(bytes=digest[:16], version=5))

    def _fits(self, key: str) -> bool:
        if self.format == "uuid":
            try:
                return str(uuid.UUID(key)) == key
            except ValueError:
                return False
        return re.fullmatch(self.pattern, key) is not None

    def given(self, headers: Mapping[str, str], body: bytes | str | None) -> str | None:
        """The key that the caller put into the request, if any."""
        if self.header is not None:
            wanted = self.header.lower()
            value = next((headers[name] for name in headers if name.lower() == wanted), None)
            return _unquoted(value) if value is not None and self.quoted else value
        assert self.pointer is not None
        value = json_pointer.at(json_pointer.document(body), self.pointer)
        return value if isinstance(value, str) else None

    def place(self, headers: MutableMapping[str, str], body: bytes | str | None, outgoing: str) -> bytes | str | None:
        """Put the key into the request: changes `headers`, or returns the new body (of the same type).

        Raises `ConfigurationError` for a body that is no JSON object, or a request with another key.
        """
        if self.header is not None:
            there = self.given(headers, None)
            if there is None:
                headers[self.header] = _quoted(outgoing) if self.quoted else outgoing
            elif there != outgoing:
                raise ConfigurationError(f"the request has another key in its header {self.header}; nothing was sent")
            return body
        assert self.pointer is not None
        content = json_pointer.document(body)
        if not isinstance(content, dict):
            raise ConfigurationError(f"the key goes to {self.pointer} in a JSON object, and the body is none")
        try:
            there = json_pointer.put(content, self.pointer, outgoing)
            text = json.dumps(content, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigurationError(f"the key goes to {self.pointer}, and this body has no place there") from None
        if there is not None:
            if there != outgoing:
                raise ConfigurationError(f"the request has another key at {self.pointer}; nothing was sent")
            return body
        return text if isinstance(body, str) else text.encode()


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return re.sub(r'\\(["\\])', r"\1", value[1:-1])
