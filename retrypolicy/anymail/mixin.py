"""RetryMixin: makes an Anymail backend retry what is safe, and send no message twice."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from retrypolicy.anymail.messages import MessageMixin
from retrypolicy.anymail.sharing import shared_adapter
from retrypolicy.engine import Engine
from retrypolicy.outcome import Report
from retrypolicy.reports import report

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    class _Backend(MessageMixin):
        """What the mixin needs of Anymail's requests-based backends (they ship no types)."""

        api_url: str

        def create_session(self) -> requests.Session: ...

else:
    _Backend = MessageMixin


class RetryMixin(_Backend):
    """Put before a requests-based Anymail backend: `class EmailBackend(RetryMixin, resend.EmailBackend): ...`.

    Each message is one call. Its key is the first that is there: `message.idempotency_key`; its header
    `X-Retrypolicy-Key`, which is never sent; the enclosing `operation`; a digest of its content, if the setting `KEYS`
    says so; else a random one that stays on the message until its outcome is known. `message.retry_label` names it in
    lists of held keys; keep it free of addresses. After `message.not_after` (a datetime) it is not sent any more.

    Options (keywords, or `MAILERS[...]["OPTIONS"]`), each overriding the entry in `settings.RETRYPOLICY`:
        retry_policy: a `RetryPolicy` or a name; the default is `WEB`.
        retry_ledger: a ledger, its URL, or the alias of a Django database.
        retry_provider: the profile's name; the default is the backend's own.

    Raises `ConfigurationError` or `PolicyError` when the backend is made: never silenced by `fail_silently`.
    """

    def _api_host(self) -> str | None:
        return urlsplit(self.api_url).hostname

    def _make_engine(self, options: dict[str, Any]) -> Engine:
        self._retry_adapter = shared_adapter(options)
        return self._retry_adapter.engine

    def create_session(self) -> requests.Session:
        """Anymail's session, on the `RetryAdapter` of all backends that are configured as this one is."""
        session = super().create_session()
        session.mount("https://", self._retry_adapter)
        session.mount("http://", self._retry_adapter)
        return session

    def post_to_esp(self, payload: Any, message: EmailMessage) -> requests.Response:
        """Post the message as one call under its key. Called once per payload: attempts repeat the same request."""
        response: requests.Response = super().post_to_esp(payload, message)
        ids = getattr(payload, "message_ids", None)
        if ids and (found := report(response)) is not None and found.replayed:
            self._restore(ids, found, response.request.body)
        return response

    def _restore(self, ids: MutableMapping[str, str], found: Report, body: Any) -> None:
        """Some backends make up their ids: those that went out the first time are the ones that events will name."""
        ledger, provider = self.retry_engine.ledger, self.retry_engine.provider
        if ledger is None or provider is None or found.key_digest is None:
            return
        record, _ = ledger.read(bytes.fromhex(found.key_digest))
        first = (record.result or {}).get("ids") if record is not None else None
        now = provider.summary(200, None, request=body).get("ids")
        if isinstance(first, list) and isinstance(now, list) and len(first) == len(now):
            renamed = dict(zip(now, first, strict=True))
            for recipient, made in list(ids.items()):
                ids[recipient] = renamed.get(made) or made
