"""from_urllib3: a policy that decides as a urllib3 `Retry` would, and stops where urllib3 may send twice."""

from __future__ import annotations

import warnings
from typing import Any

from urllib3.util import Retry

from retrypolicy.backoff import Urllib3Backoff
from retrypolicy.errors import ConfigurationError, DuplicateRisk
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.policy import Limits, RetryPolicy
from retrypolicy.rules import Rule

_MANY = 1_000_000
"""Attempts where urllib3 has no counter at all."""


def from_urllib3(retry: Retry | int | bool | None) -> RetryPolicy:
    """The policy for a `Retry`, or for what `HTTPAdapter(max_retries=...)` takes besides.

    It makes the same decisions (counters, methods, statuses, waits, Retry-After, `raise_on_status`), but where urllib3
    could send a request again whose effect is unknown it stops; a `DuplicateRisk` warning says where these settings
    differ. Raises `ConfigurationError` for anything else than a Retry or a number.
    """
    if isinstance(retry, bool) or retry is None or isinstance(retry, int):
        if isinstance(retry, int) and retry < 0:
            raise ConfigurationError(
                f"max_retries: {retry!r} is not allowed; must be a number >= 0, or a urllib3 Retry"
            )
        retry = Retry.from_int(retry)
    if not isinstance(retry, Retry):
        raise ConfigurationError(f"max_retries: {retry!r} is not allowed; must be a number >= 0, or a urllib3 Retry")
    allowed: Any = retry.allowed_methods
    methods = None if not allowed else frozenset(str(m).upper() for m in allowed)
    _warn(retry, methods)
    hinted = retry.respect_retry_after_header
    rules: tuple[Rule, ...] = ()
    if hinted and retry.total:
        rules = (Rule(status=Retry.RETRY_AFTER_STATUS_CODES, header={"retry-after": "*"}, retry=True),)
    return RetryPolicy(
        name="urllib3",
        max_attempts=_attempts(retry),
        max_wait=max(retry.backoff_max, getattr(retry, "retry_after_max", 21600)),
        allowed_methods=methods,
        status_forcelist=frozenset(int(s) for s in retry.status_forcelist or ()),
        rules=rules,
        backoff=Urllib3Backoff(
            factor=float(retry.backoff_factor), cap=float(retry.backoff_max), jitter=float(retry.backoff_jitter)
        ),
        pushback="cap" if hinted else "ignore",
        limits=Limits(
            connect=_limit(retry.connect),
            read=_limit(retry.read),
            status=_limit(retry.status),
            other=_limit(retry.other),
        ),
        on_exhausted="raise" if retry.raise_on_status else "return",
    )


def _attempts(retry: Retry) -> int:
    if retry.total is None:
        return _MANY
    return 1 + max(0, int(retry.total))


def _limit(counter: Any) -> int | None:
    return None if counter is None else max(0, int(counter))


def _warn(retry: Retry, methods: frozenset[str] | None) -> None:
    if retry.total == 0 or retry.total is False:
        return
    risks = []
    if methods is None or methods - IDEMPOTENT:
        risks.append("it repeats methods that are not idempotent after read errors and 5xx answers")
    if retry.other is None or retry.other:
        risks.append("it repeats every method after TLS and proxy errors, even when the server has read the request")
    if risks:
        warnings.warn(
            "this Retry may send a request twice: "
            + "; ".join(risks)
            + ". The policy made from it stops there instead",
            DuplicateRisk,
            stacklevel=3,
        )
