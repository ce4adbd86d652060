"""Anymail's mailtrap backend, with retries and the guard."""

from anymail.backends.mailtrap import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.mailtrap.EmailBackend` with `RetryMixin`."""

    retry_provider = "mailtrap"
