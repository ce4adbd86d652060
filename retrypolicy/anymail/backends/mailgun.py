"""Anymail's mailgun backend, with retries and the guard."""

from anymail.backends.mailgun import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.mailgun.EmailBackend` with `RetryMixin`."""

    retry_provider = "mailgun"
