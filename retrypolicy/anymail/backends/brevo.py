"""Anymail's brevo backend, with retries and the guard."""

from anymail.backends.brevo import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.brevo.EmailBackend` with `RetryMixin`."""

    retry_provider = "brevo"
