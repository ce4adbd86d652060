"""Our errors as errors of requests, too: existing `except requests.RequestException` clauses see them."""

from __future__ import annotations

import requests

from retrypolicy import errors


class SendInProgress(errors.SendInProgress, requests.RequestException):
    __doc__ = errors.SendInProgress.__doc__


class SendHeld(errors.SendHeld, requests.RequestException):
    __doc__ = errors.SendHeld.__doc__


class SendDeferred(errors.SendDeferred, requests.RequestException):
    __doc__ = errors.SendDeferred.__doc__


class AlreadyDone(errors.AlreadyDone, requests.RequestException):
    __doc__ = errors.AlreadyDone.__doc__


class KeyReused(errors.KeyReused, requests.RequestException):
    __doc__ = errors.KeyReused.__doc__


class LedgerUnavailable(errors.LedgerUnavailable, requests.RequestException):
    __doc__ = errors.LedgerUnavailable.__doc__


class CircuitOpen(errors.CircuitOpen, requests.ConnectionError):
    __doc__ = errors.CircuitOpen.__doc__


class DeadlineExceeded(errors.DeadlineExceeded, requests.Timeout):
    __doc__ = errors.DeadlineExceeded.__doc__


class ConfigurationError(errors.ConfigurationError, requests.RequestException):
    __doc__ = errors.ConfigurationError.__doc__


_OURS: dict[type[errors.RetryPolicyError], type[errors.RetryPolicyError]] = {
    cls.__mro__[1]: cls
    for cls in (
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
}


def as_requests_error(error: errors.RetryPolicyError, request: requests.PreparedRequest) -> errors.RetryPolicyError:
    """The same error, as requests' users expect it: with the request that it is about."""
    kind = _OURS.get(type(error))
    if kind is None:
        return error
    fields = {name: getattr(error, name) for name in error._fields if name in error.__dict__}
    made = kind(*error.args, request=request, **fields)
    return made.with_traceback(error.__traceback__)
