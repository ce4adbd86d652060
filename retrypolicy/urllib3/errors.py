"""Our errors as errors of urllib3, too: existing `except urllib3.exceptions.HTTPError` clauses see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urllib3 import exceptions

from retrypolicy import errors


class SendInProgress(errors.SendInProgress, exceptions.HTTPError):
    """`retrypolicy.errors.SendInProgress`, for urllib3."""


class SendHeld(errors.SendHeld, exceptions.HTTPError):
    """`retrypolicy.errors.SendHeld`, for urllib3."""


class SendDeferred(errors.SendDeferred, exceptions.HTTPError):
    """`retrypolicy.errors.SendDeferred`, for urllib3."""


class AlreadyDone(errors.AlreadyDone, exceptions.HTTPError):
    """`retrypolicy.errors.AlreadyDone`, for urllib3."""


class KeyReused(errors.KeyReused, exceptions.HTTPError):
    """`retrypolicy.errors.KeyReused`, for urllib3."""


class LedgerUnavailable(errors.LedgerUnavailable, exceptions.HTTPError):
    """`retrypolicy.errors.LedgerUnavailable`, for urllib3."""


class CircuitOpen(errors.CircuitOpen, exceptions.HTTPError):
    """`retrypolicy.errors.CircuitOpen`, for urllib3."""


class DeadlineExceeded(errors.DeadlineExceeded, exceptions.TimeoutError):
    """`retrypolicy.errors.DeadlineExceeded`, for urllib3."""


class ConfigurationError(errors.ConfigurationError, exceptions.HTTPError):
    """`retrypolicy.errors.ConfigurationError`, for urllib3."""


Kinds = Mapping[type[errors.RetryPolicyError], type[errors.RetryPolicyError]]


def kinds(*classes: type[errors.RetryPolicyError]) -> Kinds:
    """A transport's classes, each by the error of ours that it stands for."""
    return {cls.__mro__[1]: cls for cls in classes}


def recast(error: errors.RetryPolicyError, known: Kinds, **more: Any) -> errors.RetryPolicyError:
    """The same error as the transport's users expect it; one that the transport has no class for stays as it is."""
    kind = known.get(type(error))
    if kind is None:
        return error
    fields = {name: getattr(error, name) for name in error._fields if name in error.__dict__}
    return kind(*error.args, **more, **fields).with_traceback(error.__traceback__)


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


def as_urllib3_error(error: errors.RetryPolicyError) -> errors.RetryPolicyError:
    """The same error, as urllib3's users expect it."""
    return recast(error, _OURS)
