"""What would mend a policy: for each law the changes to try, the likeliest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrs import evolve, frozen

from retrypolicy.backoff import Exponential
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.http.statuses import FORCELIST, REFUSALS
from retrypolicy.outcome import Effect
from retrypolicy.policy import RetryPolicy


@frozen
class Fix:
    """A change of a policy: what is wrong by its name, what to do in words, and the fields that change."""

    cause: str | None
    words: str
    changes: dict[str, Any]


UNKNOWN = Fix(None, "no single change of the policy mends this; if all its parts are ours, please report the story", {})


def mending(policy: RetryPolicy, law: str, mended: Callable[[RetryPolicy], bool]) -> Fix:
    """The first change under which all is well."""
    for fix in _FIXES.get(law, _nothing)(policy):
        if mended(policy.with_(**fix.changes)):
            return fix
    return UNKNOWN


def _nothing(policy: RetryPolicy) -> Iterator[Fix]:
    return iter(())


def _beliefs(policy: RetryPolicy) -> Iterator[Fix]:
    believed = sorted(policy.refusal_statuses - REFUSALS)
    if believed:
        listed = ", ".join(map(str, believed))
        yield Fix(
            "believes a status",
            f"take {listed} out of refusal_statuses: servers and proxies answer so after having acted, too; where "
            "yours says by a header or in its body that it did not act, write a rule that looks there",
            {"refusal_statuses": policy.refusal_statuses & REFUSALS},
        )
    for number, rule in enumerate(policy.rules):
        if rule.effect in (Effect.NOT_APPLIED, Effect.APPLIED):
            yield Fix(
                "believes a rule",
                f"take out rules[{number}] ({rule.effect.value}), or let it look at a header or the body: what it goes "
                "by is seen in other cases, too",
                {"rules": policy.rules[:number] + policy.rules[number + 1 :]},
            )


def _duplicate(policy: RetryPolicy) -> Iterator[Fix]:
    unsafe = sorted(policy.idempotent_methods - IDEMPOTENT)
    if unsafe:
        listed = ", ".join(unsafe)
        yield Fix(
            "accepts duplicates",
            f"take {listed} out of idempotent_methods, which accepts duplicates; what was not sent, or was refused, is "
            "retried all the same. To retry more, give each call a key, and the provider's profile or a ledger",
            {"idempotent_methods": policy.idempotent_methods & IDEMPOTENT},
        )
    if policy.guard.on_unknown == "resend":
        yield Fix(
            "accepts duplicates",
            'set guard.on_unknown to "hold": "resend" accepts duplicates; what is held can be resolved',
            {"guard": evolve(policy.guard, on_unknown="hold")},
        )
    if policy.guard.on_ledger_down == "open":
        yield Fix(
            "sends without a record",
            'set guard.on_ledger_down to "closed": what was sent without a record is sent again by a queue that '
            "delivers it after the provider forgot the key",
            {"guard": evolve(policy.guard, on_ledger_down="closed")},
        )
    yield from _beliefs(policy)


def _pushback(policy: RetryPolicy) -> Iterator[Fix]:
    if policy.pushback == "ignore":
        yield Fix("reads no hints", 'set pushback to "defer"', {"pushback": "defer"})
    yield Fix(None, 'set pushback to "defer", and limits to None', {"pushback": "defer", "limits": None})


def _endless(policy: RetryPolicy) -> Iterator[Fix]:
    if policy.max_attempts > 10:
        yield Fix("nothing ends it", "set max_attempts to 10 or so, or lifetime", {"max_attempts": 10})


def _waits(policy: RetryPolicy) -> Iterator[Fix]:
    yield Fix("its backoff", f"use another backoff than {type(policy.backoff).__name__}", {"backoff": Exponential()})


def _in_flight(policy: RetryPolicy) -> Iterator[Fix]:
    if policy.guard.lease is not None:
        yield Fix(
            "lease too long",
            "leave guard.lease to None: it is then a little longer than the longest attempt",
            {"guard": evolve(policy.guard, lease=None)},
        )
    yield Fix(
        "attempts too long",
        "set attempt_timeout to a minute or so: a key is believed in use as long as an attempt may take",
        {"attempt_timeout": 60.0, "guard": evolve(policy.guard, lease=None)},
    )


def _broken(policy: RetryPolicy) -> Iterator[Fix]:
    yield from _waits(policy)
    yield Fix("its rules", "mend the rules", {"rules": ()})


def _never(policy: RetryPolicy) -> Iterator[Fix]:
    if policy.max_attempts == 1:
        yield Fix("one attempt", "set max_attempts to 2 or more", {"max_attempts": 3})
    yield Fix("never slept", "set max_wait above the first wait of the backoff", {"max_wait": 60.0})
    yield Fix("no time", "set total_timeout above the first wait of the backoff", {"total_timeout": None})
    yield Fix("no budget", "give the budget at least the cost of a retry", {"budget": None})
    yield Fix("no limits", "let limits allow a retry", {"limits": None})
    yield Fix("nothing to retry", "put statuses into status_forcelist", {"status_forcelist": FORCELIST})
    yield Fix("its rules", "take out the rules that say no to everything", {"rules": ()})
    yield Fix("refuses calls", 'give calls a key, or set guard.unkeyed to "pass"', {
        "guard": evolve(policy.guard, unkeyed="pass"), "max_attempts": max(3, policy.max_attempts),
    })  # fmt: skip


_FIXES: dict[str, Callable[[RetryPolicy], Iterator[Fix]]] = {
    "duplicate": _duplicate,
    "false-report": _beliefs,
    "pushback": _pushback,
    "endless": _endless,
    "long-wait": _waits,
    "in-flight": _in_flight,
    "broken": _broken,
    "never-retries": _never,
}
