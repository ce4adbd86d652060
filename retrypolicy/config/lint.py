"""What looks wrong in a policy that is allowed: fields that do not go together, promises that can't be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from attrs import frozen

from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.policy import LONGEST_ATTEMPT, RetryPolicy
from retrypolicy.providers import Provider, load

WEB_WAIT = 5.0
"""Seconds that somebody in front of a browser may be kept waiting by one sleep, and no more."""
WEB_TOTAL = 30.0
"""Seconds after which the usual web servers and proxies in front give a request up."""
STACKED = 10
"""Attempts in all, over stacked layers, beyond which a server in trouble is pushed over."""


@frozen
class Finding:
    """One thing that looks wrong: a stable id, its name, the field, what it is, and what to do about it."""

    id: str
    name: str
    field: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.id} {self.name} ({self.field}): {self.message}. {self.hint}"


@frozen
class _Place:
    """Where a policy is to be used."""

    provider: Provider | None
    around: int


Found = tuple[str, str, str]
_Check = Callable[[RetryPolicy, _Place], Iterator[Found]]


def lint(policy: RetryPolicy, provider: Provider | str | None = None, *, around: int = 1) -> list[Finding]:
    """What looks wrong in this policy, in the order of the ids; an empty list if nothing does.

    provider: the profile that it will be used with, or its name. around: how often a layer around it (a queue, an SDK)
    makes the same call again, the first time included. Raises `ConfigurationError` for an unknown provider.
    """
    place = _Place(None if provider is None else load(provider), around)
    return [
        Finding(number, name, field, message, hint)
        for number, (name, check) in CHECKS.items()
        for field, message, hint in check(policy, place)
    ]


def schedule(policy: RetryPolicy, retries: int) -> tuple[float, float]:
    """The least and the most seconds that so many waits take by the backoff; infinite where it does not say."""
    bounds = getattr(policy.backoff, "bounds", None)
    if bounds is None:
        return 0.0, math.inf if retries else 0.0
    least = most = 0.0
    for retry in range(1, min(retries, 1000) + 1):
        low, high = bounds(retry)
        least, most = least + low, most + high
    return (least, most) if retries <= 1000 else (least, math.inf)


def _attempt_above_total(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    attempt, total = policy.attempt_timeout, policy.total_timeout
    if attempt is not None and total is not None and attempt > total:
        yield (
            "attempt_timeout",
            f"one attempt may take {attempt:g} s, the whole run {total:g} s",
            "Set it below total_timeout, so that there is time for another attempt",
        )


def _window_too_short(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    key = None if place.provider is None else place.provider.key
    if key is None or policy.max_attempts == 1:
        return
    retries = policy.max_attempts - 1
    most = schedule(policy, retries)[1] + retries * (policy.attempt_timeout or 0.0)
    longest = most if policy.lifetime is None else min(most, policy.lifetime)
    window = key.window - key.margin
    if longest > window:
        assert place.provider is not None
        yield (
            "lifetime",
            f"attempts may go on for {longest:g} s, longer than {place.provider.name} honours a key ({window:g} s)",
            f"Set lifetime to at most {window:g}, or make fewer attempts",
        )


def _accepts_duplicates(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    unsafe = sorted(policy.idempotent_methods - IDEMPOTENT)
    if unsafe and (place.provider is None or place.provider.key is None):
        yield (
            "idempotent_methods",
            f"{', '.join(unsafe)} is sent again when its effect is unknown, with no key that anybody honours",
            "Take it out and give each call a key, or be sure that the server can bear duplicates",
        )
    if policy.guard.on_unknown == "resend":
        yield (
            "guard.on_unknown",
            "a call of unknown effect is sent again: duplicates are accepted",
            'Use "hold", and resolve what is held',
        )


def _slow_for_web(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    if (policy.name or "").split("-")[0].split("_")[0].lower() != "web":
        return
    if policy.max_wait > WEB_WAIT:
        yield (
            "max_wait",
            f"a web request may sleep {policy.max_wait:g} s at once, with its worker",
            f"Set it to at most {WEB_WAIT:g}, and leave longer waits to a queue",
        )
    if policy.total_timeout is None or policy.total_timeout > WEB_TOTAL:
        most = "for ever" if policy.total_timeout is None else f"{policy.total_timeout:g} s"
        yield (
            "total_timeout",
            f"a web request may take {most}",
            f"Set it to at most {WEB_TOTAL:g}: whoever is in front has given up by then",
        )


def _short_lease(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    lease = policy.guard.lease
    limits = [t for t in (policy.attempt_timeout, policy.total_timeout) if t is not None]
    longest = min(limits, default=LONGEST_ATTEMPT)
    if lease is not None and lease < longest:
        what = f"{longest:g} s" if limits else f"{longest:g} s and more, since nothing limits it"
        yield (
            "guard.lease",
            f"an attempt may take {what}, but is believed dead after {lease:g} s: its key is then held for nothing",
            "Leave lease to None, or set attempt_timeout below it",
        )


def _stacked(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    if place.around > 1 and place.around * policy.max_attempts > STACKED and policy.lifetime is None:
        yield (
            "max_attempts",
            f"{place.around} runs of {policy.max_attempts} attempts: {place.around * policy.max_attempts} for one call",
            "Retry in one layer only, or give the calls a key and the policy a lifetime",
        )


def _never_retried(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    never = {status for status in policy.status_forcelist if status < 300 or status == 303}
    for rule in policy.rules:
        if rule.retry and rule.status:  # as `from_urllib3` makes of a 202 in the forcelist
            never -= {s for s in never if s in rule.status or f"{s // 100}xx" in rule.status}
    for rule in policy.rules:
        if rule.retry is False and rule.status and not rule.looks_inside and rule.tainted is None:
            ruled = {s for s in policy.status_forcelist if s in rule.status or f"{s // 100}xx" in rule.status}
            never |= ruled
    if never:
        yield (
            "status_forcelist",
            f"{', '.join(map(str, sorted(never)))} can never be retried: it is a success, or a rule says no",
            "Take it out; to retry a success that is none, write a rule that says what it means",
        )


def _never_slept(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    least = schedule(policy, 1)[0] if policy.max_attempts > 1 else 0.0
    if least > policy.max_wait:
        yield (
            "backoff",
            f"the first wait is at least {least:g} s, above max_wait ({policy.max_wait:g} s): none is ever slept",
            "Without a queue no retry happens at all; raise max_wait, or begin with a shorter wait",
        )


def _wait_above_deadline(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    for name in ("total_timeout", "lifetime"):
        end = getattr(policy, name)
        if end is not None and policy.max_wait > end and policy.pushback != "ignore":
            yield (
                "max_wait",
                f"a server's hint of up to {policy.max_wait:g} s would be obeyed, but {name} is {end:g} s",
                f"Set it below {name}",
            )


def _out_of_reach(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    total = policy.total_timeout
    if total is None or policy.max_attempts < 2 or policy.lifetime is not None:
        return
    least = schedule(policy, policy.max_attempts - 1)[0]
    if least >= total:
        yield (
            "max_attempts",
            f"the waits before the last attempt take at least {least:g} s, but a run ends after {total:g} s",
            "Make fewer attempts, or wait less between them",
        )


def _endless(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    if policy.max_attempts > 100 and policy.total_timeout is None and policy.lifetime is None:
        yield (
            "max_attempts",
            f"a call may be made {policy.max_attempts} times, and nothing else ends it",
            "Set lifetime or total_timeout",
        )


def _open_for_nothing(policy: RetryPolicy, place: _Place) -> Iterator[Found]:
    honoured = place.provider is not None and place.provider.key is not None
    if policy.guard.on_ledger_down == "open" and not honoured:
        yield (
            "guard.on_ledger_down",
            '"open" counts only where the provider honours keys, and here none does',
            'Leave it "closed", or name the provider',
        )


CHECKS: dict[str, tuple[str, _Check]] = {
    "RP01": ("attempt-timeout-above-total", _attempt_above_total),
    "RP02": ("window-shorter-than-schedule", _window_too_short),
    "RP03": ("accepts-duplicates", _accepts_duplicates),
    "RP04": ("too-slow-for-web", _slow_for_web),
    "RP05": ("lease-shorter-than-attempt", _short_lease),
    "RP06": ("stacked-retries", _stacked),
    "RP07": ("status-never-retried", _never_retried),
    "RP08": ("backoff-above-max-wait", _never_slept),
    "RP09": ("max-wait-above-deadline", _wait_above_deadline),
    "RP10": ("attempts-out-of-reach", _out_of_reach),
    "RP11": ("endless", _endless),
    "RP12": ("open-for-nothing", _open_for_nothing),
}
"""Every check by its id; ids are never given to another check."""
