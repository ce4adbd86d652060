"""What is put on a message before it is pickled into the queue: its key and its Message-ID."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.mail import make_msgid
from django.core.mail.utils import DNS_NAME
from mailer.models import Message, get_message_id

from retrypolicy.django.naming import KEY_HEADER, name_of, settle
from retrypolicy.errors import RetryPolicyError

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

M = TypeVar("M", bound="EmailMessage")


class Unreadable(RetryPolicyError):
    """A row of the queue can't be unpickled. Nothing was sent."""


class NotStamped(RetryPolicyError):
    """A message without a stable key came out of the queue. Nothing was sent; the error handler stamps it."""


def stamp(message: M) -> M:
    """A copy of the message that can be sent many times and is still the same: with a key, and with a Message-ID.

    The caller's own message stays as it is, so that it may be changed and queued again, as another one.
    Raises `ConfigurationError` for a key that can't be one, and `KeyReused` for another message in one operation.
    """
    name = name_of(message, remembers=True)
    settle(message, applied=True)  # to its caller it is sent
    stamped = copy.copy(message)
    headers = dict(message.extra_headers or {})
    headers[KEY_HEADER] = str(name.key)
    if get_message_id(message) is None:
        headers["Message-ID"] = make_msgid(domain=str(DNS_NAME))
    changes = {"retry_label": name.label or None, "not_after": name.not_after}
    vars(stamped).update({attribute: value for attribute, value in changes.items() if value is not None})
    stamped.extra_headers = headers
    stamped.connection = None
    scrub(stamped)
    return stamped


def is_stamped(email: EmailMessage) -> bool:
    """Has it a key that every run finds again?"""
    return KEY_HEADER in email.extra_headers


def scrub(message: EmailMessage) -> None:
    """Take the provider's answer off: the request and its API key hang on it, and would be pickled into a table."""
    status: Any = getattr(message, "anymail_status", None)
    if getattr(status, "esp_response", None) is not None:
        status = copy.copy(status)
        status.esp_response = None
        vars(message)["anymail_status"] = status


def readable(row: Message) -> EmailMessage | None:
    """The row's message; None if it can't be unpickled, for instance since its class is gone."""
    try:
        email: Any = row.email
    except Exception:
        return None
    return email if isinstance(getattr(email, "extra_headers", None), Mapping) else None
