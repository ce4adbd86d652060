"""Anymail's sendgrid backend, with retries and the guard."""

from anymail.backends.sendgrid import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.sendgrid.EmailBackend` with `RetryMixin`."""

    retry_provider = "sendgrid"
