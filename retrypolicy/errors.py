"""Every exception that a user may catch.

A transport raises subclasses of these that are also its own errors (`requests.RequestException`
for requests), so existing `except` clauses keep working. All of them can be pickled, and none
carries a header, a body or an address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrypolicy.outcome import Report


class RetryPolicyError(Exception):
    """Base of every error of this library.

    `report` is the report on the call (`retrypolicy.report(error)`), where there was a call.
    """

    report: Report | None = None
    _fields: tuple[str, ...] = ("report",)

    def __init__(self, *args: object, **kwargs: Any) -> None:
        # Cooperative on purpose: libraries mix our classes into theirs (Anymail builds a class of
        # its own error and ours, and passes its own keywords).
        for name in self._fields:
            if name in kwargs:
                setattr(self, name, kwargs.pop(name))
        super().__init__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # Only our own fields travel: a transport's base class may hold the request, credentials included.
        state = {name: getattr(self, name) for name in self._fields if name in self.__dict__}
        return _rebuild, (type(self), self.args, state)


def _rebuild(cls: type[RetryPolicyError], args: tuple[object, ...], state: dict[str, Any]) -> RetryPolicyError:
    return cls(*args, **state)


class PolicyError(RetryPolicyError, ValueError):
    """A policy value is not allowed. `field`, `value` and `allowed` say which and why."""

    field: str = ""
    value: object = None
    allowed: str = ""
    _fields: tuple[str, ...] = ("report", "field", "value", "allowed")

    @classmethod
    def of(cls, field: str, value: object, allowed: str) -> PolicyError:
        """The error for one bad value, in the form that all of them have."""
        return cls(f"{field}: {value!r} is not allowed; must be {allowed}", field=field, value=value, allowed=allowed)


class PolicyFileError(PolicyError):
    """Policies as data with something wrong. `errors` has a `PolicyError` for each thing, its `field` is the path.

    `source` is where the data came from: a file's name, or "policies".
    """

    errors: tuple[PolicyError, ...] = ()
    source: str = ""
    _fields: tuple[str, ...] = (*PolicyError._fields, "errors", "source")


class ConfigurationError(RetryPolicyError):
    """Parts that do not fit together: found before anything is sent."""


class CallRefused(RetryPolicyError):
    """A call was stopped before this attempt put a byte on the wire.

    `key_digest` names the ledger's record (never the key itself); `retry_at` is when it makes sense
    to ask again (wall-clock seconds since the epoch), or None.
    """

    retry_at: float | None = None
    key_digest: str | None = None
    _fields: tuple[str, ...] = ("report", "retry_at", "key_digest")


class SendInProgress(CallRefused):
    """Another thread, process or machine has this key on the wire right now. Nothing was sent."""


class SendHeld(CallRefused):
    """An earlier attempt with this key has an unknown effect; it waits for evidence. Nothing was sent.

    Resolve it with `retrypolicy ledger resolve`, from the provider's webhook, or by hand.
    """


class SendDeferred(CallRefused):
    """The call is not due before `retry_at`. Nothing was sent."""


class AlreadyDone(CallRefused):
    """The call with this key took effect earlier, and no response can be made from the record.

    `result` is what the ledger kept of it. Nothing was sent.
    """

    result: dict[str, Any] | None = None
    _fields: tuple[str, ...] = ("report", "retry_at", "key_digest", "result")


class KeyReused(CallRefused):
    """The same key was given to another content, or twice inside one `operation`. Nothing was sent."""


class LedgerUnavailable(CallRefused):
    """The ledger can't be reached, or refused the write: the guard fails closed. Nothing was sent."""


class CircuitOpen(CallRefused):
    """The circuit breaker for this host is open until `retry_at`. Nothing was sent."""


class DeadlineExceeded(CallRefused):
    """The call's lifetime, or the time of its `operation`, is over. This attempt sent nothing."""


class SendFailed(RetryPolicyError):
    """A queue's job is over, and its call did not succeed: all that a queue keeps of the error that said so.

    `error` is the name of that error's class, `report` what became of the call, where there was one. Never the error
    itself: those of HTTP libraries and of Anymail hold the request, with its credentials.
    """

    error: str = ""
    _fields: tuple[str, ...] = ("report", "error")

    @property
    def status(self) -> int | None:
        """The last answer's status, if the last attempt was answered."""
        return self.report.attempts[-1].status if self.report is not None and self.report.attempts else None


class NotPublished(SendFailed):
    """A job was to come back later, and its queue could not be told so. What its call came to is in the ledger."""


class DuplicateRisk(UserWarning):
    """A setting taken over from elsewhere would send a request again whose effect is unknown."""


class UnprotectedKey(UserWarning):
    """A key was given where nothing uses it: no ledger, and no provider that honours keys."""
