"""Anymail's mailersend backend, with retries and the guard."""

from anymail.backends.mailersend import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.mailersend.EmailBackend` with `RetryMixin`."""

    retry_provider = "mailersend"
