"""MessageMixin: what every backend here does with a message, whatever it is sent through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import apps

from retrypolicy.anymail.errors import as_anymail_error
from retrypolicy.django import settings
from retrypolicy.django.keys import METADATA
from retrypolicy.django.naming import Name, name_of, public_headers, settle, together
from retrypolicy.engine import Engine
from retrypolicy.errors import CallRefused, KeyReused
from retrypolicy.guard.operation import operation
from retrypolicy.outcome import Effect
from retrypolicy.reports import attach, report

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    class _Backend:
        """What the mixin needs of Anymail's backends (they ship no types)."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def send_messages(self, email_messages: Sequence[EmailMessage]) -> int: ...
        def build_message_payload(self, message: EmailMessage, defaults: Any) -> Any: ...
        def post_to_esp(self, payload: Any, message: EmailMessage) -> Any: ...

else:
    _Backend = object

_NAME = "_retrypolicy_name"
_METADATA_LIMITS = {"postmark": 80}
"""Characters of one value, where it is less than a key may have. https://postmarkapp.com/support/article/1125"""


class MessageMixin(_Backend):
    """Names each message and makes it one call. `RetryMixin` and the Amazon SES backend build on it."""

    retry_provider: str | None = None
    retry_defers = True  # False: nobody comes back later, so that a wait beyond the policy's limits ends the call

    def __init__(
        self,
        *args: Any,
        retry_policy: Any = None,
        retry_ledger: Any = None,
        retry_provider: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        options: dict[str, Any] = {
            "policy": settings.policy(retry_policy),
            "ledger": settings.ledger(retry_ledger),
            "provider": retry_provider or self.retry_provider,
            "hosts": (),
            "secret": settings.secret(),
        }
        if options["provider"] is not None:
            # Whoever configures another address for this API speaks this API there.
            host = self._api_host()
            options["hosts"] = (host,) if host else ()
        engine = self.retry_engine = self._make_engine(options)  # what can't be used is said now, not while sending
        provider = engine.provider
        self.retry_provider = None if provider is None else provider.name
        self.retry_remembers = engine.ledger is not None or (provider is not None and provider.key is not None)
        self._tracks = 0  # the longest key that goes into the metadata
        if engine.ledger is not None and provider is not None and provider.metadata:
            self._tracks = _METADATA_LIMITS.get(provider.name, 255) if apps.is_installed("retrypolicy.anymail") else 0

    def _make_engine(self, options: dict[str, Any]) -> Engine:
        return Engine(**options)

    def _api_host(self) -> str | None:
        """The host that this backend is configured to send to."""
        return None

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send the messages, and return how many were. All of them sent again after a failure: none goes twice."""
        with together():
            return super().send_messages(email_messages)

    def build_message_payload(self, message: EmailMessage, defaults: Any) -> Any:
        """Anymail's payload: without our header, and with the key in the metadata where events report them back."""
        try:
            name = name_of(message, remembers=self.retry_remembers)
        except KeyReused as refusal:
            raise self._anymail_error(refusal, None, message) from None
        changes: dict[str, Any] = {}
        headers = public_headers(message)
        if headers is not None:
            changes["extra_headers"] = headers
        if name.key is not None and len(name.key) <= self._tracks:
            given = getattr(message, "metadata", None)  # Anymail's own message class has a marker for "not set"
            changes["metadata"] = {**(given if isinstance(given, Mapping) else {}), METADATA: name.key}
        with changed(message, changes):
            payload = super().build_message_payload(message, defaults)
        setattr(payload, _NAME, name)
        return payload

    def post_to_esp(self, payload: Any, message: EmailMessage) -> Any:
        """Post the message as one call under its key. Called once per payload: attempts repeat the same request."""
        name: Name | None = getattr(payload, _NAME, None)
        if name is None:  # somebody's own way to build payloads
            name = name_of(message, remembers=self.retry_remembers)
        try:
            with operation(key=name.key, policy=name.policy, label=name.label, not_after=name.not_after) as op:
                op.yields, op.defers = name.yields, self.retry_defers
                response = super().post_to_esp(payload, message)
        except Exception as error:
            found = report(error)
            if found is not None:
                attach(_status(message), found)
                if found.effect is Effect.NOT_APPLIED:
                    settle(message, applied=False)
            if isinstance(error, CallRefused):
                raise self._anymail_error(error, payload, message) from None
            raise
        found = report(response)
        if found is not None:
            attach(_status(message), found)
        if found is None or found.effect is not Effect.UNKNOWN:
            # A refusal may be an answer to Anymail, too: Postmark's and Mailjet's 4xx speak of single recipients.
            settle(message, applied=found is None or found.effect is Effect.APPLIED)
        return response

    def _anymail_error(self, refusal: CallRefused, payload: Any, message: EmailMessage) -> Exception:
        return as_anymail_error(refusal, backend=self, email_message=message, payload=payload)


@contextlib.contextmanager
def changed(message: EmailMessage, changes: dict[str, Any]) -> Iterator[None]:
    """The message with other attributes for a moment: it is the caller's, and may be sent again."""
    before = {name: message.__dict__[name] for name in changes if name in message.__dict__}
    for name, value in changes.items():
        setattr(message, name, value)
    try:
        yield
    finally:
        for name in changes:
            if name in before:
                setattr(message, name, before[name])
            else:
                delattr(message, name)


def _status(message: EmailMessage) -> object:
    """Anymail puts its status on the message before anything else."""
    return getattr(message, "anymail_status", None)
