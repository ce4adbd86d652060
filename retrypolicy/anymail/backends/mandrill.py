"""Anymail's mandrill backend, with retries and the guard."""

from anymail.backends.mandrill import EmailBackend as AnymailBackend

from retrypolicy.anymail.mixin import RetryMixin


class EmailBackend(RetryMixin, AnymailBackend):
    """`anymail.backends.mandrill.EmailBackend` with `RetryMixin`."""

    retry_provider = "mandrill"
