"""For django-anymail: `RetryMixin`, and a ready backend for every provider in `retrypolicy.anymail.backends`."""

from retrypolicy.anymail.mixin import RetryMixin

__all__ = ["RetryMixin"]
