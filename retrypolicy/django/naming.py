"""What a message is called: its key, from the first place that has one, and what else its call must know."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from email.message import Message
from typing import TYPE_CHECKING, Any

from attrs import frozen
from django.utils.timezone import is_naive, make_aware

from retrypolicy.django import settings
from retrypolicy.django.keys import normal_key
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard.key import Key
from retrypolicy.guard.operation import current_operation
from retrypolicy.policy import RetryPolicy

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

KEY_HEADER = "X-Retrypolicy-Key"
"""A message's key, where an attribute would get lost: it survives pickling and mail queues, and is never sent."""

_KEPT = "_retrypolicy_key"
_SENT = "_retrypolicy_sent"
"""Key and content of a message that went out before a later one of the same go failed."""
_FIELDS = (
    "from_email", "to", "cc", "bcc", "reply_to", "subject", "body", "content_subtype", "alternatives", "attachments",
    "envelope_sender", "metadata", "send_at", "tags", "template_id", "merge_data", "merge_global_data",
    "merge_headers", "merge_metadata", "esp_extra",
)  # fmt: skip


@frozen(kw_only=True)
class Name:
    """What the call that sends a message is told about it."""

    key: str | None
    yields: bool = False  # to a key that stands in the request itself
    label: str = ""
    policy: RetryPolicy | None = None
    not_after: float | None = None


def name_of(message: EmailMessage, *, remembers: bool) -> Name:
    """The message's key: its own; the header's; the enclosing operation's; by content, if the setting says so; random.

    `remembers` False: nothing would use a made-up key, so that there is none. A key that is made here stays on the
    message until the message is known to be settled (`settle`).
    Raises `ConfigurationError` for a key that can't be one, and `KeyReused` for another message in one operation.
    """
    outer = current_operation()
    label = str(getattr(message, "retry_label", None) or "")  # it may be a translation, which comes lazily
    not_after = _not_after(getattr(message, "not_after", None))
    policy = None
    if outer is not None:
        policy = outer.policy
        label = label or outer.label
        ends = [end for end in (not_after, outer.not_after) if end is not None]
        not_after = min(ends, default=None)
    key, yields = _key(message, remembers)
    return Name(key=key, yields=yields, label=label, policy=policy, not_after=not_after)


def _key(message: EmailMessage, remembers: bool) -> tuple[str | None, bool]:
    for place, given in (
        ("message.idempotency_key", getattr(message, "idempotency_key", None)),
        (f"the header {KEY_HEADER}", _header(message)),
    ):
        if given is not None:
            if not isinstance(given, str):
                raise ConfigurationError(f"{place}: {type(given).__name__} is not allowed; must be a str")
            return normal_key(given), False
    outer = current_operation()
    if outer is not None and outer.key is not None:
        bound = outer.key_for(content(message))
        assert bound is not None
        return normal_key(bound.value), False
    kept = message.__dict__.get(_KEPT)
    if kept is None and (sent := message.__dict__.pop(_SENT, None)) is not None and sent[1] == content(message):
        kept = message.__dict__[_KEPT] = sent[0]
    if kept is not None:
        return str(kept), True
    derived = None if outer is None else outer.key_for(content(message))
    if derived is None and not remembers:
        return None, True
    if derived is not None:
        made = derived.value
    elif settings.keys() == "content":
        made = Key.derived("message", content(message), 0).value
    else:
        made = str(uuid.uuid4())
    message.__dict__[_KEPT] = made
    return made, True


def settle(message: EmailMessage, *, applied: bool) -> None:
    """The message's outcome is known: a made-up key has served.

    Inside a scope only success counts: after a refusal the same message must get the same key, or a job that is run
    again would take the two for two messages.
    """
    outer = current_operation()
    if applied or outer is None or outer.scope is None:
        key, going = message.__dict__.pop(_KEPT, None), _going.get()
        if applied and key is not None and going is not None:
            going.append((message, key))


_going: ContextVar[list[tuple[EmailMessage, str]] | None] = ContextVar("retrypolicy_going", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Messages that go out in one go: if it fails, those that went keep the keys that were made for them.

    So whoever sends all of them once more sends none of them twice.
    """
    if _going.get() is not None:  # a part of a larger go
        yield
        return
    going: list[tuple[EmailMessage, str]] = []
    token = _going.set(going)
    try:
        yield
    except BaseException:
        for message, key in going:
            message.__dict__[_SENT] = (key, content(message))
        raise
    finally:
        _going.reset(token)


def public_headers(message: EmailMessage) -> dict[str, str] | None:
    """The message's headers without ours; None if ours is not among them."""
    headers: Mapping[str, str] = getattr(message, "extra_headers", None) or {}
    kept = {name: value for name, value in headers.items() if name.lower() != KEY_HEADER.lower()}
    return None if len(kept) == len(headers) else kept


def _header(message: EmailMessage) -> Any:
    headers: Mapping[str, str] = getattr(message, "extra_headers", None) or {}
    return next((value for name, value in headers.items() if name.lower() == KEY_HEADER.lower()), None)


def _not_after(given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, datetime):
        return (make_aware(given) if is_naive(given) else given).timestamp()
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    raise ConfigurationError(
        f"message.not_after: {type(given).__name__} is not allowed; must be a datetime, or seconds since the epoch"
    )


def content(message: EmailMessage) -> bytes:
    """What the message says and to whom, as a digest: equal for two builds of the same message."""
    headers = public_headers(message)
    parts = [("headers", _canonical(getattr(message, "extra_headers", None) if headers is None else headers) or None)]
    parts += [(name, _canonical(getattr(message, name, None)) or None) for name in _FIELDS]
    said = [part for part in parts if part[1] is not None]  # what is empty says no more than what is absent
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).digest()


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, type):
        return None  # Anymail's own message class has a marker for "not set", which is a class
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return hashlib.sha256(value).digest()
    if isinstance(value, Mapping):
        return sorted((str(name), _canonical(item)) for name, item in value.items())
    if isinstance(value, Message):  # an attachment in MIME; its boundary would be random
        if value.is_multipart():
            return [_canonical(part) for part in value.walk() if not part.is_multipart()]
        return [sorted(value.items()), value.get_payload()]
    if isinstance(value, Iterable):
        return [_canonical(item) for item in value]
    return str(value)  # a lazy translation, a date
