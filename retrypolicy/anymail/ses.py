"""Amazon SES: our policy in the place of botocore's own retries, which send again after a read timeout.

Nobody can look into botocore while it sends: the guard is armed before each attempt, and what is not proven unsent by
its error counts as unknown.
"""

from __future__ import annotations

import json
import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore import exceptions
from botocore.client import Config

from retrypolicy.anymail.messages import MessageMixin
from retrypolicy.call import Call, Replay
from retrypolicy.django.naming import content
from retrypolicy.engine import Engine
from retrypolicy.errors import CallRefused
from retrypolicy.outcome import Answered, Failed, Outcome, Stage
from retrypolicy.reports import attach, attach_call

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    class _Backend(MessageMixin):
        """What the mixin needs of Anymail's backend."""

        client: Any
        client_params: dict[str, Any]

        def open(self) -> bool | None: ...

else:
    _Backend = MessageMixin

_UNREACHED = (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyConnectionError)
_UNUSABLE = (
    exceptions.ParamValidationError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.NoRegionError,
    exceptions.InvalidRegionError,
)
"""Errors of preparing a request: nothing is sent, and another try would end the same way."""

_message: ContextVar[bytes] = ContextVar("retrypolicy_ses_message", default=b"")
"""The content of the message that is being sent: the MIME text differs from build to build."""


class SESMixin(_Backend):
    """Put before Anymail's Amazon SES backend. Messages are named, and the options are given, as for `RetryMixin`.

    botocore's retries are off, whatever the config says; its time limits are no longer than the policy's.
    """

    retry_provider = "amazon_ses"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        policy, config = self.retry_engine.policy, self.client_params["config"]
        limits = [limit for limit in (policy.attempt_timeout, policy.total_timeout) if limit is not None]
        self.client_params["config"] = config.merge(
            Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=min([config.connect_timeout, *limits]),
                read_timeout=min([config.read_timeout, *limits]),
            )
        )

    def _api_host(self) -> str | None:
        return urlsplit(str(self.client_params.get("endpoint_url") or "")).hostname

    def open(self) -> bool | None:
        """Anymail's client, behind ours."""
        opened = super().open()
        if opened and self.client is not None:
            self.client = GuardedClient(self.client, self.retry_engine)
        return opened

    def post_to_esp(self, payload: Any, message: EmailMessage) -> Any:
        """Post the message as one call under its key."""
        token = _message.set(content(message))
        try:
            return super().post_to_esp(payload, message)
        finally:
            _message.reset(token)


class Answer(dict[str, Any]):
    """What the API answered, with room for a report."""


class GuardedClient:
    """A boto3 client whose sends are calls of an engine. Everything else goes to the client itself."""

    def __init__(self, client: Any, engine: Engine) -> None:
        self._client = client
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def send_email(self, **params: Any) -> Any:
        """SendEmail, as often as the policy allows and the evidence makes safe."""
        return self._send("send_email", params)

    def send_bulk_email(self, **params: Any) -> Any:
        """SendBulkEmail, likewise."""
        return self._send("send_bulk_email", params)

    def _send(self, operation: str, params: dict[str, Any]) -> Any:
        engine = self._engine
        send = getattr(self._client, operation)
        if engine.mode == "off":
            return send(**params)
        said = operation.encode() + _message.get()
        call = engine.begin("POST", self._client.meta.endpoint_url, content=lambda provider: said)
        last: list[Any] = []

        def attempt(call: Call) -> Outcome:
            last[:] = [None, None]
            try:
                last[0] = send(**params)
            except BaseException as error:
                last[1] = error
                return _failed(error)
            return _answered(last[0])

        try:
            engine.drive(call, attempt)
        except Replay as done:
            return _replayed(call, done)
        except CallRefused as refusal:
            call.refused(refusal)
            raise
        answer, error = last
        if error is not None:
            attach(error, call.report())
            raise error
        return _reported(answer, call)


def _answered(answer: dict[str, Any]) -> Answered:
    meta = answer.get("ResponseMetadata", {})
    body = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
    return Answered(
        status=meta.get("HTTPStatusCode", 200),
        headers=dict(meta.get("HTTPHeaders", {})),
        body=json.dumps(body, default=str).encode(),
    )


def _failed(error: BaseException) -> Outcome:
    if isinstance(error, exceptions.ClientError):
        meta = error.response.get("ResponseMetadata", {})
        return Answered(
            status=meta.get("HTTPStatusCode", 500),
            headers=dict(meta.get("HTTPHeaders", {})),
            body=json.dumps(error.response.get("Error", {}), default=str).encode(),
        )
    if isinstance(error, _UNREACHED):
        return Failed(error=error, stage=Stage.NOT_CONNECTED)
    if isinstance(error, exceptions.SSLError) and _is_bad_certificate(error):
        return Failed(error=error, stage=Stage.NOT_CONNECTED, retry_limit=0)
    if isinstance(error, _UNUSABLE):
        return Failed(error=error, stage=Stage.NOT_SENT, retry_limit=0)
    return Failed(error=error)


def _is_bad_certificate(error: exceptions.SSLError) -> bool:
    found: Any = error.kwargs.get("error")
    while isinstance(found, BaseException) and not isinstance(found, ssl.SSLCertVerificationError):
        found = (
            getattr(found, "reason", None) or getattr(found, "__cause__", None) or getattr(found, "__context__", None)
        )
    return isinstance(found, ssl.SSLCertVerificationError)


def _replayed(call: Call, done: Replay) -> Answer:
    made = None if call.provider is None else call.provider.replay(done.record.result or {}, None)
    if made is None:
        raise call.already_done(done.record) from None
    return _reported(json.loads(made[2]), call)


def _reported(answer: dict[str, Any], call: Call) -> Answer:
    answer = Answer(answer)
    attach_call(answer, call)
    return answer
