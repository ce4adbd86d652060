"""Anymail's resend backend, with retries and the guard."""

from anymail.backends.resend import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.resend.EmailBackend` with `RetryMixin`."""

    retry_provider = "resend"
