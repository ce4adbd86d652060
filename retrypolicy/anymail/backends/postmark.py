"""Anymail's postmark backend, with retries and the guard."""

from anymail.backends.postmark import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.postmark.EmailBackend` with `RetryMixin`."""

    retry_provider = "postmark"
