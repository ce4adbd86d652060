"""What may be kept of a provider's answer, and how an answer is made of it again: a small language, as data.

An answer holds addresses and may quote the message, so nothing of it is kept but what a profile names, and of that only
numbers, booleans and strings in the form of an id. To replay a call, a template is filled with the kept values, and
with addresses taken from the request that is being repeated.

A template is a JSON value. In it, a string that is one placeholder stands for a value:

    "{id}"             what was kept under `id`; where nothing was kept, the template can't be used
    "{id?null}"        else null;   "{state?queued}": else this text;   "{id?}": else the member is left out
    "{request:/To}"    what stands there in the request
    "{address}"        inside a row: the recipient's address

    ["*", item]        one row for each recipient of the request
    ["*ids", item]     one row for each value kept in the list `ids`
    {"{address}": …}   a member for each recipient

Inside a row a kept list stands for its value in that row. A row that lacks a value is left out; where there is nothing
to make rows of, the template can't be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from email.utils import getaddresses
from typing import Any

from attrs import field, frozen

from retrypolicy._validate import integer, strict
from retrypolicy.errors import PolicyError
from retrypolicy.providers.pointer import ELEMENTS, MEMBERS, MISSING, at, document, walk

ID = r"[A-Za-z0-9_.:/+=-]{1,128}"
"""The form of a kept string unless a profile gives another: an id without spaces and without an address."""

_ADDRESSES = ("somebody@example.com", "<somebody@example.com>", "Some Body <somebody@example.com>")
_PLACEHOLDER = re.compile(r"\{(?P<name>[a-z_]+|request:[^?}]*)(?P<optional>\?(?P<default>[^}]*))?\}")
_SOURCES = re.compile(r"(header:[^/]+|(request:)?(/.*)?)\Z", re.DOTALL)


def _source(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not _SOURCES.match(value):
        raise PolicyError.of("Kept.at", value, 'a JSON Pointer, "header:Name", or "request:" and a JSON Pointer')


def _form(instance: Any, attribute: Any, value: Any) -> None:
    try:
        form = re.compile(value)
    except (re.error, TypeError) as error:
        raise PolicyError.of("Kept.form", value, f"a regular expression ({error})") from None
    if any(form.fullmatch(address) for address in _ADDRESSES):
        raise PolicyError.of("Kept.form", value, "a form that no e-mail address has")


@strict
@frozen(kw_only=True)
class Kept:
    """One value to keep of an answer.

    Fields:
        at: a JSON Pointer into the body (with `*`: a list of values), "header:Name", or "request:" and a JSON
            Pointer into the request's body.
        form: a regular expression that a string must match as a whole, else it is not kept.

    Raises `PolicyError` for a form that lets an address through.
    """

    at: str = field(validator=_source)
    form: str = field(default=ID, validator=_form)

    def value(self, answer: Any, headers: Mapping[str, str], request: Any) -> Any:
        """The value if there is one and it may be kept, else None."""
        if self.at.startswith("header:"):
            wanted = self.at.removeprefix("header:").lower()
            return self.clean(next((value for name, value in headers.items() if name.lower() == wanted), None))
        source, pointer = (request, self.at[8:]) if self.at.startswith("request:") else (answer, self.at)
        if "*" not in pointer:
            return self.clean(at(source, pointer))
        values = [self.clean(value) for _, value in walk(source, pointer)]
        return values if any(value is not None for value in values) else None

    def clean(self, value: Any) -> Any:
        """The value itself if it may be kept, else None."""
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**63 else None
        if isinstance(value, str):
            return value if len(value) <= 256 and re.fullmatch(self.form, value) else None
        if isinstance(value, list):
            values = [self.clean(element) for element in value if not isinstance(element, list)]
            return values if any(element is not None for element in values) else None
        return None


def _kept(values: Mapping[str, Any]) -> dict[str, Kept]:
    return {name: Kept(at=value) if isinstance(value, str) else value for name, value in dict(values).items()}


@strict
@frozen(kw_only=True)
class Template:
    """How to make an answer: used if every name in `need` was kept."""

    need: tuple[str, ...] = field(default=(), converter=tuple)
    status: int = field(default=200, validator=integer(200))
    headers: Mapping[str, str] = field(factory=lambda: {"Content-Type": "application/json"}, converter=dict)
    body: Any = None

    def placeholders(self) -> Iterator[str]:
        """The names that it uses."""
        yield from self.need
        yield from _names(dict(self.headers))
        yield from _names(self.body)


@strict
@frozen(kw_only=True)
class Answers:
    """What is kept of the answers of one API, and the answers that can be made of it.

    Fields:
        keep: names, and what is kept under them.
        recipients: JSON Pointers to the addresses in a request, in order.
        address: the JSON Pointer to an address in an answer (ending in `*#`: the name of a member).
        each: names, and what is kept of each recipient: pointers whose stars take the place of those in `address`.
            Needs the request: values are kept in the order of its recipients, without their addresses.
        replay: templates; the first that can be filled is used.
    """

    keep: Mapping[str, Kept] = field(factory=dict, converter=_kept)
    recipients: tuple[str, ...] = field(default=(), converter=tuple)
    address: str | None = None
    each: Mapping[str, Kept] = field(factory=dict, converter=_kept)
    replay: tuple[Template, ...] = field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        names = {"address", *self.keep, *self.each}
        for name in ("status", "address"):
            if name in self.keep or name in self.each:
                raise PolicyError.of("Answers.keep", name, "another name: this one has a meaning of its own")
        if self.each and (self.address is None or not self.recipients):
            raise PolicyError.of("Answers.each", sorted(self.each), "given with `recipients` and `address`")
        for template in self.replay:
            for name in template.placeholders():
                if not name.startswith("request:") and name not in names:
                    raise PolicyError.of("Answers.replay", name, "one of " + ", ".join(sorted(names)))

    def summary(
        self, status: int, body: bytes | None, headers: Mapping[str, str], request: bytes | str | None
    ) -> dict[str, Any]:
        """What may be kept of this answer."""
        answer = document(body)
        # A message with attachments is large: it is parsed only where something of it is asked for.
        asks = self.each or any(wanted.at.startswith("request:") for wanted in self.keep.values())
        asked = document(request) if asks else MISSING
        kept: dict[str, Any] = {"status": status}
        for name, wanted in self.keep.items():
            value = wanted.value(answer, headers, asked)
            if value is not None:
                kept[name] = value
        if self.each and self.address is not None:
            named = self.address.endswith(MEMBERS)
            found = {
                address.casefold(): stars
                for stars, value in walk(answer, self.address)
                for address in (stars[-1] if named else value,)
                if isinstance(address, str)
            }
            order = [found.get(address.casefold()) for address in self._addresses(asked)]
            for name, wanted in self.each.items():
                values = [None if stars is None else wanted.clean(at(answer, wanted.at, stars)) for stars in order]
                if any(value is not None for value in values):
                    kept[name] = values
        return kept

    def made(self, kept: Mapping[str, Any], request: bytes | str | None) -> tuple[int, dict[str, str], bytes] | None:
        """The answer to replay: status, headers and body; None where none can be made."""
        asked = document(request)
        filler = _Filler(kept, asked, self._addresses(asked))
        for template in self.replay:
            if any(kept.get(name) is None for name in template.need):
                continue
            headers = filler.fill(dict(template.headers))
            body = None if template.body is None else filler.fill(template.body)
            if headers is not MISSING and body is not MISSING:
                content = b"" if body is None or body is _LEFT_OUT else json.dumps(body).encode()
                return template.status, {name: str(value) for name, value in headers.items()}, content
        return None

    def _addresses(self, asked: Any) -> list[str]:
        """The bare addresses of a request's recipients."""
        texts = [value for pointer in self.recipients for _, value in walk(asked, pointer) if isinstance(value, str)]
        return [address for text in texts for _, address in getaddresses([text]) if address]


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        match = _PLACEHOLDER.fullmatch(node)
        if match:
            yield match["name"]
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _names(name)
            yield from _names(value)
    elif isinstance(node, list):
        if node and isinstance(node[0], str) and node[0].startswith("*") and node[0] != "*":
            yield node[0][1:]
        for value in node:
            yield from _names(value)


_LEFT_OUT: Any = object()


@frozen
class _Filler:
    """Fills templates with what was kept and with the recipients of a request."""

    kept: Mapping[str, Any]
    asked: Any
    addresses: list[str]

    def fill(self, node: Any, row: int | None = None) -> Any:
        """The value of a part of a template; MISSING where it lacks one."""
        if isinstance(node, str):
            match = _PLACEHOLDER.fullmatch(node)
            return self._value(match, row) if match else node
        if isinstance(node, list):
            return self._list(node, row)
        if isinstance(node, dict):
            return self._table(node, row)
        return node

    def _list(self, node: list[Any], row: int | None) -> Any:
        if len(node) == 2 and isinstance(node[0], str) and node[0].startswith("*"):
            values = self.addresses if node[0] == ELEMENTS else self.kept.get(node[0][1:])
            if not values or not isinstance(values, list):
                return MISSING
            return [item for item in (self.fill(node[1], row) for row in range(len(values))) if item is not MISSING]
        items = [self.fill(item, row) for item in node]
        return MISSING if any(item is MISSING for item in items) else [i for i in items if i is not _LEFT_OUT]

    def _table(self, node: dict[str, Any], row: int | None) -> Any:
        if list(node) == ["{address}"]:
            if not self.addresses:
                return MISSING
            rows = ((self.addresses[row], self.fill(node["{address}"], row)) for row in range(len(self.addresses)))
            return {address: value for address, value in rows if value is not MISSING}
        filled = {name: self.fill(value, row) for name, value in node.items()}
        if any(value is MISSING for value in filled.values()):
            return MISSING
        return {name: value for name, value in filled.items() if value is not _LEFT_OUT}

    def _value(self, match: re.Match[str], row: int | None) -> Any:
        name = match["name"]
        if name.startswith("request:"):
            value = at(self.asked, name.removeprefix("request:"))
        elif name == "address":
            value = self._in_row(self.addresses, row)
        else:
            value = self.kept.get(name)
            value = self._in_row(value, row) if row is not None and isinstance(value, list) else value
        if value is not None and value is not MISSING:
            return value
        if match["optional"] is None:
            return MISSING
        return {"": _LEFT_OUT, "null": None}.get(match["default"], match["default"])

    @staticmethod
    def _in_row(values: list[Any], row: int | None) -> Any:
        return values[row] if row is not None and row < len(values) else None
