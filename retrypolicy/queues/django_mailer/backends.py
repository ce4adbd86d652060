"""The two ends of the queue: `DbBackend` puts stamped messages in, `EmailBackend` sends them under the policy."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mailer
from anymail.exceptions import AnymailError, AnymailRecipientsRefused
from django.conf import settings as django_settings
from django.core.mail.backends.base import BaseEmailBackend
from django.utils.module_loading import import_string
from mailer.backend import DbBackend as MailerBackend

from retrypolicy.anymail.failover import EmailBackend as FailoverBackend
from retrypolicy.anymail.messages import MessageMixin
from retrypolicy.backoff import Exponential
from retrypolicy.django import settings
from retrypolicy.errors import ConfigurationError
from retrypolicy.outcome import Effect
from retrypolicy.policy import WORKER, RetryPolicy
from retrypolicy.queues.django_mailer import lock
from retrypolicy.queues.django_mailer.stamp import NotStamped, is_stamped, scrub, stamp
from retrypolicy.reports import report

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

SETTING = "DJANGO_MAILER"
"""The entry of `RETRYPOLICY` that says through what the queue is sent."""

POLICY = WORKER.with_(
    name="mail-queue",
    max_attempts=60,
    max_wait=2.0,
    total_timeout=60.0,
    attempt_timeout=30.0,
    backoff=Exponential(base=1.0, factor=2.0, cap=3600.0, jitter="equal"),
)
"""Messages are sent one after the other: one that has to wait is put off, since the others stand behind it. There are
attempts enough for the whole lifetime of a day, should the provider be away for so long."""

logger = logging.getLogger("retrypolicy")


class DbBackend(MailerBackend):
    """For `EMAIL_BACKEND`: `mailer.backend.DbBackend`, which gives each message its key and its Message-ID first.

    The key is found as `retrypolicy.anymail.RetryMixin` finds it. Raises `ConfigurationError` when it is made, if
    django-mailer could never send what is queued (`check_mailers`): else mail would pile up, and nobody be told.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_mailers()
        super().__init__(*args, **kwargs)

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Put the messages into the queue, in the caller's transaction; returns how many."""
        return int(super().send_messages([stamp(message) for message in email_messages]))


class EmailBackend(BaseEmailBackend):
    """For `MAILER_EMAIL_BACKEND`: sends through the backend that `RETRYPOLICY["DJANGO_MAILER"]` names.

    That is the path of a backend with `RetryMixin` or of `retrypolicy.anymail.failover.EmailBackend`, or a dict with
    `BACKEND` and `OPTIONS`. Its policy is `POLICY`, unless the options have a `retry_policy`. Raises
    `ConfigurationError` when it is made for one that can't be used. Is never silent: the error handler must hear it.
    """

    def __init__(self, fail_silently: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kind, options = sender()
        self.policy: RetryPolicy = options["retry_policy"]
        self._backend = kind(**options)
        lock.hold(self)

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send messages that were stamped; returns how many. Raises `NotStamped`, and what the backend raises."""
        return sum(self._send(message) for message in email_messages)

    def _send(self, message: EmailMessage) -> int:
        if not is_stamped(message):
            raise NotStamped("the message has no stable key; nothing was sent")
        try:
            return int(self._backend.send_messages([message]) or 0)
        except AnymailError:
            raise
        except Exception as error:
            status: Any = getattr(message, "anymail_status", None)
            found = report(status)
            if found is None or found.effect is not Effect.APPLIED:
                raise
            logger.error("the provider has a message, but what came after that failed (%s)", type(error).__name__)
            if status.status and status.status <= {"invalid", "rejected"}:
                raise AnymailRecipientsRefused(email_message=message) from None  # as Anymail would have
            return 1
        finally:
            scrub(message)


def sender() -> tuple[type[Any], dict[str, Any]]:
    """The class and options that `DJANGO_MAILER` gives, the policy among them. Raises `ConfigurationError`."""
    given = settings.setting(SETTING)
    config: Any = {"BACKEND": given} if isinstance(given, str) else given
    place = f"RETRYPOLICY[{SETTING!r}]"
    if not isinstance(config, Mapping) or not isinstance(config.get("BACKEND"), str):
        raise ConfigurationError(f"{place}: must be the path of a backend, or a dict with BACKEND and OPTIONS")
    try:
        kind = import_string(config["BACKEND"])
    except ImportError as error:
        raise ConfigurationError(f"{place}: {config['BACKEND']!r} can't be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, (MessageMixin, FailoverBackend))):
        raise ConfigurationError(
            f"{place}: {config['BACKEND']!r} is not allowed; must be a backend with RetryMixin, such as those in "
            "retrypolicy.anymail.backends: with another one a key protects nothing"
        )
    options = dict(config.get("OPTIONS") or {})
    options["retry_policy"] = settings.policy(options.get("retry_policy") or POLICY)
    return kind, options


def check_mailers() -> None:
    """Raises `ConfigurationError` where django-mailer can't send: with Django's `MAILERS`, up to release 2.3."""
    release = [int(part) for part in re.findall(r"\d+", mailer.__version__)[:2]]
    if getattr(django_settings, "MAILERS", None) and release <= [2, 3]:
        raise ConfigurationError(
            f"django-mailer {mailer.__version__} can't send where the setting MAILERS is defined: it reads "
            "EMAIL_BACKEND, which Django then refuses. Use EMAIL_BACKEND and MAILER_EMAIL_BACKEND without MAILERS"
        )
