"""Anymail's postal backend, with retries and the guard."""

from anymail.backends.postal import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.postal.EmailBackend` with `RetryMixin`."""

    retry_provider = "postal"
