"""Anymail's unisender_go backend, with retries and the guard."""

from anymail.backends.unisender_go import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.unisender_go.EmailBackend` with `RetryMixin`."""

    retry_provider = "unisender_go"
