"""For django-anymail: `RetryMixin`, and a ready backend for every provider in `retrypolicy.anymail.backends`."""

from retrypolicy.anymail.mixin import RetryMixin
from retrypolicy.django.naming import KEY_HEADER

__all__ = ["KEY_HEADER", "RetryMixin"]
