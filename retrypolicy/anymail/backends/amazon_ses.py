"""Anymail's amazon_ses backend, with our policy in the place of botocore's retries, and the guard."""

from anymail.backends.amazon_ses import EmailBackend as AnymailBackend

from retrypolicy.anymail.ses import SESMixin


class EmailBackend(SESMixin, AnymailBackend):
    """`anymail.backends.amazon_ses.EmailBackend` with `SESMixin`."""
