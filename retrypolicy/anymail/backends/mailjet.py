"""Anymail's mailjet backend, with retries and the guard."""

from anymail.backends.mailjet import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.mailjet.EmailBackend` with `RetryMixin`."""

    retry_provider = "mailjet"
