"""Safe failover: a second provider, but only for a message that the first one provably did not take.

EMAIL_BACKEND = "retrypolicy.anymail.failover.EmailBackend"
RETRYPOLICY = {
    "FAILOVER": [
        "retrypolicy.anymail.backends.resend.EmailBackend",
        "retrypolicy.anymail.backends.postmark.EmailBackend",
    ],
    "LEDGER": "default",
}
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anymail.exceptions import AnymailError
from django.core.mail.backends.base import BaseEmailBackend
from django.utils.module_loading import import_string

from retrypolicy.anymail.errors import as_anymail_error
from retrypolicy.anymail.messages import MessageMixin, changed
from retrypolicy.django import settings
from retrypolicy.django.naming import name_of, together
from retrypolicy.errors import CallRefused, CircuitOpen, ConfigurationError, KeyReused, LedgerUnavailable
from retrypolicy.guard.key import find
from retrypolicy.guard.ledger import Phase
from retrypolicy.outcome import Effect, Reason
from retrypolicy.reports import report

if TYPE_CHECKING:
    from django.core.mail import EmailMessage


class EmailBackend(BaseEmailBackend):
    """Tries its backends in order; to the next one goes only what the one before did not take.

    Not taken: nothing was sent, or the provider refused, or its circuit is open. An unknown outcome goes nowhere: the
    message is held, under one key and one record, whoever it was tried with. Use a ledger, so that this holds for the
    next process as well. No backend but the last one defers: whoever comes next is there at once.

    Options (keywords, or `MAILERS[...]["OPTIONS"]`):
        backends: in order, each the path of a backend with `RetryMixin` (all of `retrypolicy.anymail.backends`), or
            a dict with `BACKEND` and `OPTIONS`; the default is `settings.RETRYPOLICY["FAILOVER"]`.
        retry_policy, retry_ledger: for all of them.

    Raises `ConfigurationError` when it is made for backends that can't be used.
    """

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        backends: Sequence[str | Mapping[str, Any]] | None = None,
        retry_policy: Any = None,
        retry_ledger: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fail_silently = fail_silently
        shared = {"retry_policy": retry_policy, "retry_ledger": retry_ledger}
        shared = {name: value for name, value in shared.items() if value is not None}
        self.backends = [kind(**(shared | options)) for kind, options in kinds(backends)]

    def open(self) -> bool:
        """Open all of them; True if any was opened by this."""
        opened = [backend.open() for backend in self.backends]
        return any(opened)

    def close(self) -> None:
        """Close all of them."""
        for backend in self.backends:
            backend.close()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send the messages; returns how many were. The first failure ends it, as with Anymail's backends."""
        sent = 0
        with together():
            for message in email_messages:
                with contextlib.suppress(AnymailError) if self.fail_silently else contextlib.nullcontext():
                    sent += self._send(message)
        return sent

    def _send(self, message: EmailMessage) -> int:
        try:
            name = name_of(message, remembers=any(backend.retry_remembers for backend in self.backends))
        except KeyReused as refusal:
            raise as_anymail_error(refusal, backend=self.backends[0], email_message=message) from None
        # One key for all attempts, wherever it came from.
        with changed(message, {} if name.key is None else {"idempotency_key": name.key}):
            *others, last = self._order(name.key)
            for backend in others:
                backend.retry_defers = False  # whoever comes next is there at once
                try:
                    return int(backend.send_messages([message]))
                except Exception as error:
                    if not was_not_taken(error):
                        raise
            last.retry_defers = True
            return int(last.send_messages([message]))

    def _order(self, key: str | None) -> list[Any]:
        """First the backend that has the message already, or may have it: it is no other one's before that refuses."""
        record = None
        engine = self.backends[0].retry_engine
        if key is not None and engine.ledger is not None and engine.mode == "enforce":
            with contextlib.suppress(LedgerUnavailable):  # then nothing will be sent anyway
                record, _ = find(engine.ledger, settings.the_secret(), key)
        if record is None or record.phase is Phase.FAILED:
            return self.backends
        has = [backend for backend in self.backends if backend.retry_provider == record.provider][:1]
        return has + [backend for backend in self.backends if backend not in has]


def was_not_taken(error: Exception) -> bool:
    """Does this error prove that the provider did not take the message, now or earlier?"""
    found = report(error)
    if found is None or found.effect is not Effect.NOT_APPLIED:
        return False
    if isinstance(error, CallRefused):
        return isinstance(error, CircuitOpen)  # every other refusal is about the message itself
    return found.reason not in (Reason.STOPPED, Reason.INTERRUPTED, Reason.OBSERVED)


def kinds(backends: Any = None) -> list[tuple[type[Any], dict[str, Any]]]:
    """The classes and options of the backends; None: those of `FAILOVER`. Raises `ConfigurationError`."""
    given = backends if backends is not None else settings.setting("FAILOVER")
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable) or not given:
        raise ConfigurationError("failover: `backends`, or RETRYPOLICY['FAILOVER'], must be a list of backends")
    return [_kind({"BACKEND": config} if isinstance(config, str) else config) for config in given]


def _kind(config: Any) -> tuple[type[Any], dict[str, Any]]:
    if not isinstance(config, Mapping) or not isinstance(config.get("BACKEND"), str):
        raise ConfigurationError("failover: each backend must be a path, or a dict with BACKEND and OPTIONS")
    path = config["BACKEND"]
    try:
        kind = import_string(path)
    except ImportError as error:
        raise ConfigurationError(f"failover: {path!r} can't be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, MessageMixin)):
        raise ConfigurationError(
            f"failover: {path!r} is not allowed; must be a backend with RetryMixin, such as those in "
            "retrypolicy.anymail.backends: without evidence there is no safe failover"
        )
    return kind, dict(config.get("OPTIONS") or {})
