"""Mail messages as text, and back: JSON that holds plain data only, so that whoever writes the table runs no code.

Anymail's attributes, attachments and alternatives come along. A connection, and what a provider answered, do not: they
hold API keys.
"""

from __future__ import annotations

import base64
import email.policy
import json
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from email.parser import BytesParser
from typing import Any
from uuid import UUID

from django.core.mail import EmailAlternative, EmailAttachment, EmailMessage
from django.utils.functional import Promise
from django.utils.module_loading import import_string

from retrypolicy.django.naming import public_headers
from retrypolicy.errors import ConfigurationError

FORMAT = 1

_CONNECTION = ("connection", "_connection")  # before Django 6.1, and since
_LEFT_OUT = frozenset({*_CONNECTION, "anymail_status", "idempotency_key", "retry_label"})
"""What a connection is, a provider said, or has a column of its own."""


def dump(message: EmailMessage, **changed: Any) -> str:
    """The message as text. `changed`: attributes that are stored with another value.

    Raises `ConfigurationError` for what can't be stored, or would not be the same when it is read back.
    """
    text = json.dumps({"format": FORMAT, **_as_dict(message, changed)}, allow_nan=False)
    load(text)
    return text


def load(text: str) -> EmailMessage:
    """The message again. Raises `ConfigurationError` for a text that is none."""
    try:
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise ConfigurationError(f"the stored message can't be read back: it has format {stored['format']!r}")
        return _as_message(stored)
    except ConfigurationError:
        raise
    except Exception as error:
        # Its own words may be the message's.
        raise ConfigurationError(f"the stored message can't be read back ({type(error).__name__})") from None


def _as_dict(message: EmailMessage, changed: dict[str, Any]) -> dict[str, Any]:
    kind = type(message)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if _class(path) is not kind:
        raise ConfigurationError(f"message: {path} can't be stored; it must be a class that its module names")
    if any(vars(message).get(name) is not None for name in _CONNECTION):
        raise ConfigurationError(
            "message.connection: a connection can't be stored, it holds credentials; set it to None, and name a "
            "mailer of MAILERS if it is not the default one"
        )
    found = {name: value for name, value in vars(message).items() if not name.startswith("_retrypolicy")} | changed
    headers = public_headers(message)
    if headers is not None:
        found["extra_headers"] = headers
    kept = {
        name: value
        for name, value in sorted(found.items())
        # Anymail's own message class has a marker for "not set", which is a class.
        if name not in _LEFT_OUT and not isinstance(value, type)
    }
    return {"class": path, "attributes": {name: _plain(value, f"message.{name}") for name, value in kept.items()}}


def _as_message(stored: Mapping[str, Any]) -> EmailMessage:
    kind = _class(stored["class"])
    if kind is None:
        raise ConfigurationError(f"the stored message can't be read back: there is no class {stored['class']!r}")
    message = kind()
    for name, value in stored["attributes"].items():
        setattr(message, name, _value(value))
    return message


def _class(path: str) -> type[EmailMessage] | None:
    try:
        found = import_string(path)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, EmailMessage) else None


# -- values -----------------------------------------------------------------------------------------------------------

_TYPE = "$type"
"""Marks an object that is not a dict. A dict that has this name in it is written as pairs."""


class _Part(MIMEBase):
    """A part in the older form of Python's mail library, as Django 5.2 wants it, of text."""

    def __init__(self, policy: Any = email.policy.compat32) -> None:
        Message.__init__(self, policy=policy)


def _old_part(text: str) -> Message:
    return BytesParser(_Part, policy=email.policy.compat32).parsebytes(_bytes(text))


def _new_part(text: str) -> Message:
    return BytesParser(MIMEPart, policy=email.policy.default).parsebytes(_bytes(text))  # type: ignore[arg-type]  # the same


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


_FORMS: tuple[tuple[str, type, Any, Any], ...] = (
    ("attachment", EmailAttachment, list, lambda v: EmailAttachment(*v)),
    ("alternative", EmailAlternative, list, lambda v: EmailAlternative(*v)),
    ("tuple", tuple, list, tuple),
    ("bytes", bytes, _base64, _bytes),
    ("bytearray", bytearray, _base64, lambda v: bytearray(_bytes(v))),
    ("datetime", datetime, datetime.isoformat, datetime.fromisoformat),
    ("date", date, date.isoformat, date.fromisoformat),
    ("seconds", timedelta, timedelta.total_seconds, lambda v: timedelta(seconds=v)),
    ("decimal", Decimal, str, Decimal),
    ("uuid", UUID, str, UUID),
    ("part", MIMEPart, lambda v: _base64(v.as_bytes()), _new_part),
    ("old part", Message, lambda v: _base64(v.as_bytes()), _old_part),
)
"""Names, types, and the way into plain data and back. The first type that fits counts."""

_READERS = {name: read for name, _, _, read in _FORMS}


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (str, Promise)):
        return str(value)
    if isinstance(value, float):
        if value - value != 0.0:
            raise ConfigurationError(f"{where}: {value!r} can't be stored")
        return value
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping):
        pairs = [(_plain(name, where), _plain(item, where)) for name, item in value.items()]
        if all(isinstance(name, str) and name != _TYPE for name, _ in pairs):
            return dict(pairs)
        return {_TYPE: "dict", "value": pairs}
    if isinstance(value, EmailMessage):
        return {_TYPE: "message", "value": _as_dict(value, {})}
    for name, kind, write, _ in _FORMS:
        if isinstance(value, kind):
            return {_TYPE: name, "value": _plain(write(value), where)}
    raise ConfigurationError(
        f"{where}: {type(value).__name__} can't be stored; "
        "must be text, a number, bytes, a date, or lists and dicts of these"
    )


def _value(stored: Any) -> Any:
    if isinstance(stored, list):
        return [_value(item) for item in stored]
    if not isinstance(stored, dict):
        return stored
    if _TYPE not in stored:
        return {name: _value(item) for name, item in stored.items()}
    name, value = stored[_TYPE], stored["value"]
    if name == "message":
        return _as_message(value)
    if name == "dict":
        return {_value(key): _value(item) for key, item in value}
    return _READERS[name](_value(value))
