"""Anymail's scaleway backend, with retries and the guard."""

from anymail.backends.scaleway import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.scaleway.EmailBackend` with `RetryMixin`."""

    retry_provider = "scaleway"
