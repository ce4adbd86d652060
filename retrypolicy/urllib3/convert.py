"""from_urllib3: a policy that decides as a urllib3 `Retry` would, and stops where urllib3 may send twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from urllib3.util import Retry

from retrypolicy.backoff import Urllib3Backoff
from retrypolicy.errors import ConfigurationError, DuplicateRisk
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.outcome import Answered, Effect
from retrypolicy.policy import Limits, RetryPolicy
from retrypolicy.rules import Rule, meaning

_MANY = 1_000_000
"""Attempts where urllib3 has no counter at all."""


def from_urllib3(retry: Retry | int | bool | None) -> RetryPolicy:
    """The policy for a `Retry`, or for what `HTTPAdapter(max_retries=...)` takes besides.

    It makes the same decisions (counters, methods, statuses, waits, Retry-After, `raise_on_status`), but where urllib3
    could send a request again whose effect is unknown it stops. For each way in which these settings can do that there
    is a `DuplicateRisk` warning. Two accidents of urllib3 are left out: a Retry-After that can't be read is ignored
    (there it destroys the request), and `redirect` is not counted (requests follows redirects itself).

    Raises `ConfigurationError` for anything else than a Retry or a number.
    """
    retry = as_retry(retry, "max_retries")
    methods = _methods(retry.allowed_methods)
    forcelist = frozenset(s for s in map(int, retry.status_forcelist or ()) if 100 <= s <= 599)
    for risk in _risks(retry, methods, forcelist):
        warnings.warn(
            f"this urllib3 Retry may send a request twice: {risk}. The policy made from it stops there instead",
            DuplicateRisk,
            stacklevel=2,
        )
    hinted = retry.respect_retry_after_header
    longest = getattr(retry, "retry_after_max", 21600)  # urllib3 before 2.6.3 has no limit; so long a sleep is none
    return RetryPolicy(
        name="urllib3",
        max_attempts=_MANY if retry.total is None else 1 + max(0, int(retry.total)),
        max_wait=max(retry.backoff_max, longest),
        allowed_methods=methods,
        status_forcelist=forcelist,
        rules=tuple(_rules(retry, forcelist)),
        backoff=Urllib3Backoff(
            factor=max(0.0, float(retry.backoff_factor)),
            cap=max(0.0, float(retry.backoff_max)),
            jitter=max(0.0, float(retry.backoff_jitter)),
        ),
        pushback="cap" if hinted else "ignore",
        limits=Limits(
            connect=_limit(retry.connect),
            read=_limit(retry.read),
            status=_limit(retry.status),
            other=_limit(retry.other),
            hint=longest,
        ),
        on_exhausted="raise" if retry.raise_on_status else "return",
    )


def as_retry(given: Any, name: str, redirect: bool = True) -> Retry:
    """What urllib3 makes of its `retries` argument. Raises `ConfigurationError` that `name` is neither of these."""
    if not isinstance(given, (Retry, int, type(None))) or (isinstance(given, int) and given < 0):
        raise ConfigurationError(f"{name}: {given!r} is not allowed; must be a number >= 0, or a urllib3 Retry")
    return Retry.from_int(given, redirect=redirect)


def _methods(allowed: Any) -> frozenset[str] | None:
    """The methods, as urllib3 compares them: with a request's method in upper case. None, and an empty one: all."""
    if not allowed:
        return None
    names = [allowed] if isinstance(allowed, str) else allowed
    return frozenset(name for name in names if isinstance(name, str) and name == name.upper())


def _limit(counter: Any) -> int | None:
    return None if counter is None else max(0, int(counter))


def _rules(retry: Retry, forcelist: frozenset[int]) -> Iterator[Rule]:
    successes = frozenset(s for s in forcelist if _effect(s) is Effect.APPLIED)
    if successes:  # such as 202, to ask again until there is a result
        yield Rule(status=successes, retry=True)
    if retry.respect_retry_after_header and retry.total:
        yield Rule(status=Retry.RETRY_AFTER_STATUS_CODES, header={"retry-after": "*"}, retry=True)


def _effect(status: int) -> Effect:
    return meaning(Answered(status=status)).effect


def _risks(retry: Retry, methods: frozenset[str] | None, forcelist: frozenset[int]) -> Iterator[str]:
    """Each way in which these settings would repeat a request whose effect is unknown."""
    if retry.total is not None and int(retry.total) <= 0:
        return
    unsafe = None if methods is None else sorted(methods - IDEMPOTENT)
    which = "methods that are not idempotent" if unsafe is None else ", ".join(unsafe)
    statuses = sorted(s for s in forcelist if _effect(s) is not Effect.NOT_APPLIED)
    if which and _counts(retry.read):
        yield f"it repeats {which} when the connection breaks or times out before the answer"
    if which and _counts(retry.status) and statuses:
        yield f"it repeats {which} after {', '.join(map(str, statuses))}, which do not say that nothing was done"
    if _counts(retry.other):
        yield "it repeats every method after TLS and proxy errors, even when the server has read the request"


def _counts(counter: Any) -> bool:
    return counter is None or int(counter) > 0
