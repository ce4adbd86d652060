"""Our errors as errors of Anymail, too: existing `except AnymailAPIError` clauses and `fail_silently` see them.

Anymail makes errors of requests into its own by a class made on the spot, which can't be pickled; these can.
"""

from __future__ import annotations

from typing import Any

from anymail.exceptions import AnymailRequestsAPIError

from retrypolicy import errors
from retrypolicy.requests import errors as ours


class SendInProgress(ours.SendInProgress, AnymailRequestsAPIError):
    """`retrypolicy.errors.SendInProgress`, for Anymail."""


class SendHeld(ours.SendHeld, AnymailRequestsAPIError):
    """`retrypolicy.errors.SendHeld`, for Anymail."""


class SendDeferred(ours.SendDeferred, AnymailRequestsAPIError):
    """`retrypolicy.errors.SendDeferred`, for Anymail."""


class AlreadyDone(ours.AlreadyDone, AnymailRequestsAPIError):
    """`retrypolicy.errors.AlreadyDone`, for Anymail."""


class KeyReused(ours.KeyReused, AnymailRequestsAPIError):
    """`retrypolicy.errors.KeyReused`, for Anymail."""


class LedgerUnavailable(ours.LedgerUnavailable, AnymailRequestsAPIError):
    """`retrypolicy.errors.LedgerUnavailable`, for Anymail."""


class CircuitOpen(ours.CircuitOpen, AnymailRequestsAPIError):
    """`retrypolicy.errors.CircuitOpen`, for Anymail."""


class DeadlineExceeded(ours.DeadlineExceeded, AnymailRequestsAPIError):
    """`retrypolicy.errors.DeadlineExceeded`, for Anymail."""


_KINDS: dict[str, type[errors.CallRefused]] = {
    cls.__name__: cls
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


def as_anymail_error(error: errors.CallRefused, **facts: Any) -> errors.CallRefused:
    """The same error, as Anymail's users expect it. `facts`: what Anymail puts on its errors."""
    made = next((_KINDS[base.__name__] for base in type(error).__mro__ if base.__name__ in _KINDS), None)
    if made is None:
        return error
    said = error.__cause__ if isinstance(error.__cause__, errors.CallRefused) else error
    fields = {name: getattr(said, name) for name in said._fields if name in said.__dict__}
    return made(*said.args, **facts, **fields)
