"""Anymail's sparkpost backend, with retries and the guard."""

from anymail.backends.sparkpost import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.sparkpost.EmailBackend` with `RetryMixin`."""

    retry_provider = "sparkpost"
