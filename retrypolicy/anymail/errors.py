"""Our errors as errors of Anymail, too: existing `except AnymailAPIError` clauses and `fail_silently` see them.

For refusals that no requests adapter had a part in; Anymail makes those of an adapter into its own errors by itself.
"""

from __future__ import annotations

from typing import Any

from anymail.exceptions import AnymailAPIError

from retrypolicy import errors


class SendInProgress(errors.SendInProgress, AnymailAPIError):
    """`retrypolicy.errors.SendInProgress`, for Anymail."""


class SendHeld(errors.SendHeld, AnymailAPIError):
    """`retrypolicy.errors.SendHeld`, for Anymail."""


class SendDeferred(errors.SendDeferred, AnymailAPIError):
    """`retrypolicy.errors.SendDeferred`, for Anymail."""


class AlreadyDone(errors.AlreadyDone, AnymailAPIError):
    """`retrypolicy.errors.AlreadyDone`, for Anymail."""


class KeyReused(errors.KeyReused, AnymailAPIError):
    """`retrypolicy.errors.KeyReused`, for Anymail."""


class LedgerUnavailable(errors.LedgerUnavailable, AnymailAPIError):
    """`retrypolicy.errors.LedgerUnavailable`, for Anymail."""


class CircuitOpen(errors.CircuitOpen, AnymailAPIError):
    """`retrypolicy.errors.CircuitOpen`, for Anymail."""


class DeadlineExceeded(errors.DeadlineExceeded, AnymailAPIError):
    """`retrypolicy.errors.DeadlineExceeded`, for Anymail."""


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
    )
}


def as_anymail_error(error: errors.CallRefused, **facts: Any) -> errors.RetryPolicyError:
    """The same error, as Anymail's users expect it. `facts`: what Anymail puts on its errors."""
    kind = _OURS.get(type(error))
    if kind is None:
        return error
    fields = {name: getattr(error, name) for name in error._fields if name in error.__dict__}
    return kind(*error.args, **facts, **fields).with_traceback(error.__traceback__)
