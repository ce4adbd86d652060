"""Our errors as errors of requests, too: existing `except requests.RequestException` clauses see them."""

from __future__ import annotations

import requests

from retrypolicy import errors
from retrypolicy.urllib3.errors import kinds, recast


class SendInProgress(errors.SendInProgress, requests.RequestException):
    """`retrypolicy.errors.SendInProgress`, for requests."""


class SendHeld(errors.SendHeld, requests.RequestException):
    """`retrypolicy.errors.SendHeld`, for requests."""


class SendDeferred(errors.SendDeferred, requests.RequestException):
    """`retrypolicy.errors.SendDeferred`, for requests."""


class AlreadyDone(errors.AlreadyDone, requests.RequestException):
    """`retrypolicy.errors.AlreadyDone`, for requests."""


class KeyReused(errors.KeyReused, requests.RequestException):
    """`retrypolicy.errors.KeyReused`, for requests."""


class LedgerUnavailable(errors.LedgerUnavailable, requests.RequestException):
    """`retrypolicy.errors.LedgerUnavailable`, for requests."""


class CircuitOpen(errors.CircuitOpen, requests.ConnectionError):
    """`retrypolicy.errors.CircuitOpen`, for requests."""


class DeadlineExceeded(errors.DeadlineExceeded, requests.Timeout):
    """`retrypolicy.errors.DeadlineExceeded`, for requests."""


class ConfigurationError(errors.ConfigurationError, requests.RequestException):
    """`retrypolicy.errors.ConfigurationError`, for requests."""


_OURS = kinds(
    SendInProgress,
    SendHeld,
    SendDeferred,
    AlreadyDone,
    KeyReused,
    LedgerUnavailable,
    CircuitOpen,
    DeadlineExceeded,
    ConfigurationError,
)


def as_requests_error(error: errors.RetryPolicyError, request: requests.PreparedRequest) -> errors.RetryPolicyError:
    """The same error, as requests' users expect it: with the request that it is about."""
    return recast(error, _OURS, request=request)
