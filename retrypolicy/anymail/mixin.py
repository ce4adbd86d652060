"""RetryMixin: makes an Anymail backend retry what is safe, and send no message twice."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from retrypolicy.django import settings
from retrypolicy.engine import Engine, attach, report
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard.key import check_key
from retrypolicy.guard.operation import operation
from retrypolicy.outcome import Effect
from retrypolicy.requests.adapter import RetryAdapter

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    class _Backend:
        """What the mixin needs of Anymail's requests-based backends (they ship no types)."""

        api_url: str

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def create_session(self) -> requests.Session: ...
        def post_to_esp(self, payload: Any, message: Any) -> requests.Response: ...

else:
    _Backend = object

_RANDOM_KEY = "_retrypolicy_key"


def _status(message: EmailMessage) -> object:
    """Anymail puts its status on the message before anything else."""
    return getattr(message, "anymail_status", None)


class RetryMixin(_Backend):
    """Put before a requests-based Anymail backend: `class EmailBackend(RetryMixin, resend.EmailBackend): ...`.

    Each message is one call: its key is `message.idempotency_key`, or a random one that protects only the attempts of
    this process. `message.retry_label` names it in lists of held keys; keep it free of addresses.

    Options (keywords, or `MAILERS[...]["OPTIONS"]`), each overriding the entry in `settings.RETRYPOLICY`:
        retry_policy: a `RetryPolicy` or a name; the default is `WEB`.
        retry_ledger: a ledger or its URL.
        retry_provider: the profile's name; the default is the backend's own.

    Raises `ConfigurationError` or `PolicyError` when the backend is made: never silenced by `fail_silently`.
    """

    retry_provider: str | None = None

    def __init__(
        self,
        *args: Any,
        retry_policy: Any = None,
        retry_ledger: Any = None,
        retry_provider: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._retry_options: dict[str, Any] = {
            "policy": settings.policy(retry_policy),
            "ledger": settings.ledger(retry_ledger),
            "provider": retry_provider or self.retry_provider,
            "secret": settings.secret(),
        }
        if self._retry_options["provider"] is not None:
            # Whoever configures another address for this API speaks this API there.
            host = urlsplit(self.api_url).hostname
            self._retry_options["hosts"] = (host,) if host else ()
        engine = Engine(**self._retry_options)  # what can't be used is said now, not while sending
        provider = engine.provider
        self._remembers = engine.ledger is not None or (provider is not None and provider.key is not None)

    def create_session(self) -> requests.Session:
        """Anymail's session, with a `RetryAdapter` on it."""
        session = super().create_session()
        adapter = RetryAdapter(**self._retry_options)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    def post_to_esp(self, payload: Any, message: EmailMessage) -> requests.Response:
        """Post the message as one call under its key. Called once per payload: attempts repeat the same request."""
        with operation(key=self.key_of(message), label=getattr(message, "retry_label", "")) as op:
            op.yields = getattr(message, "idempotency_key", None) is None
            try:
                response = super().post_to_esp(payload, message)
            except Exception as error:
                found = report(error)
                if found is not None:
                    attach(_status(message), found)
                    if found.effect is Effect.NOT_APPLIED:
                        message.__dict__.pop(_RANDOM_KEY, None)
                raise
        found = report(response)
        if found is not None:
            attach(_status(message), found)
        message.__dict__.pop(_RANDOM_KEY, None)
        return response

    def key_of(self, message: EmailMessage) -> str | None:
        """The message's own key, else a random one, kept on the message until its outcome is known.

        None where nothing would use a random one: no ledger, and no provider that honours keys.
        """
        key = getattr(message, "idempotency_key", None)
        if key is not None:
            if not isinstance(key, str):
                raise ConfigurationError(f"message.idempotency_key: {type(key).__name__} is not allowed; must be a str")
            return check_key(key)
        if not self._remembers:
            return None
        random = message.__dict__.setdefault(_RANDOM_KEY, str(uuid.uuid4()))
        return str(random)
