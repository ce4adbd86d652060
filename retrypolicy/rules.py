"""What an answer or an error means: the table of the safety rule, and rules of users and providers before it.

`meaning()` says what an attempt did on the server, never whether to try again: that is `decide()`'s part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from retrypolicy._validate import (
    Seconds,
    flag,
    instance_or_none,
    member,
    optional_number,
    strict,
    text,
)
from retrypolicy.errors import PolicyError
from retrypolicy.http.pushback import read_pushback
from retrypolicy.outcome import NOTHING_SENT, Answered, Effect, Outcome, Stage

ANY = "*"
"""As a header's or JSON value in a rule: present, with any value."""

_CLASS = re.compile(r"[1-5]xx\Z")


def _status(value: Any) -> frozenset[int | str] | None:
    """Accept one status, a class ("5xx"), or a collection of both."""
    if value is None:
        return None
    if not isinstance(value, Iterable) and not isinstance(value, int):
        raise PolicyError.of("Rule.status", value, 'a status from 100 to 599, a class such as "5xx", or several')
    items = (value,) if isinstance(value, (int, str)) else tuple(value)
    for item in items:
        known = (
            _CLASS.match(item) is not None
            if isinstance(item, str)
            else isinstance(item, int) and not isinstance(item, bool) and 100 <= item <= 599
        )
        if not known:
            raise PolicyError.of("Rule.status", item, 'a status from 100 to 599, or a class such as "5xx"')
    if not items:
        raise PolicyError.of("Rule.status", value, "None (any answer), or at least one status")
    return frozenset(items)


def _headers(value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise PolicyError.of("Rule.header", value, 'header names and their values, such as {"x-error": "*"}')
    return {name.lower(): wanted for name, wanted in value.items()}


def _pointer(_: Any, attribute: Any, value: Mapping[Any, Any]) -> None:
    if not isinstance(value, Mapping):
        raise PolicyError.of("Rule.json", value, 'JSON Pointers and values, such as {"/name": "quota"}')
    for pointer in value:
        if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
            raise PolicyError.of(f"Rule.{attribute.name}", pointer, 'a JSON Pointer (RFC 6901): "" or "/name/0"')


def _says_something(rule: Rule, attribute: Any, value: Any) -> None:
    if rule.stage is None and rule.status is None and not rule.looks_inside:
        raise PolicyError.of("Rule", "no condition", "given a stage, status, header, json or body to match")
    if rule.stage is not None and (rule.status is not None or rule.looks_inside):
        raise PolicyError.of("Rule.stage", rule.stage, "alone: an attempt that failed has no answer to look at")
    if rule.effect is None and rule.retry is None and rule.pushback is None:
        raise PolicyError.of("Rule", "no verdict", "given an effect, retry or pushback to say")


@strict
@frozen(kw_only=True)
class Rule:
    """One line of a table that says what an answer means. Every condition given must hold; the first match wins.

    Conditions:
        status: a status, a class ("5xx"), or several.
        header: names and values (`"*"`: any value), compared without case.
        json: JSON Pointers (RFC 6901) into the body and values (`"*"`: present; a list: any of these).
        body: a text that is part of the body, for answers that are not JSON. Empty: any body.
        tainted: only when an earlier attempt of the call has an unknown effect (True), or has none (False).
        stage: for an attempt that failed: this stage.
    Verdict:
        effect: what it means for the server. None: as the standard table says.
        retry: True or False. None: as `status_forcelist` says.
        pushback: seconds to wait, or a JSON Pointer to a number of seconds in the body.
        from_key_layer: the answer comes from the provider's idempotency layer, so that it speaks of every
            attempt under this key, not only of the last one.

    Raises `PolicyError` for a condition or verdict that can't be.
    """

    status: frozenset[int | str] | None = field(default=None, converter=_status)
    header: Mapping[str, str] = field(factory=dict, converter=_headers)
    json: Mapping[str, Any] = field(factory=dict, validator=_pointer)
    body: str = field(default="", validator=text)  # not None, which files write as a text, too
    tainted: bool | None = field(default=None, validator=instance_or_none(bool))
    stage: Stage | None = field(default=None, validator=member(Stage, optional=True))
    effect: Effect | None = field(default=None, validator=member(Effect, optional=True))
    retry: bool | None = field(default=None, validator=instance_or_none(bool))
    pushback: Seconds | str | None = field(default=None)
    from_key_layer: bool = field(default=False, validator=flag)
    source: str = field(default="", validator=[text, _says_something])  # where the rule is written down

    @pushback.validator  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    def _check_pushback(self, attribute: Any, value: float | str | None) -> None:
        if isinstance(value, str):
            if not value.startswith("/"):
                raise PolicyError.of("Rule.pushback", value, 'seconds, or a JSON Pointer such as "/reset_seconds"')
        else:
            optional_number(0)(self, attribute, value)

    def __hash__(self) -> int:
        return hash((self.status, self.stage, self.effect, self.retry, tuple(self.header), tuple(self.json)))

    @property
    def looks_inside(self) -> bool:
        """Does it look at more of an answer than its status?"""
        return bool(self.header or self.json or self.body)

    def matches(self, outcome: Outcome, tainted: bool, document: _Document) -> bool:
        """Does every condition hold? `document` is the answer's JSON body, parsed at most once."""
        if self.tainted is not None and self.tainted is not tainted:
            return False
        if not isinstance(outcome, Answered):
            return self.stage is outcome.stage
        if self.stage is not None:
            return False
        if self.status is not None and not (
            outcome.status in self.status or f"{outcome.status // 100}xx" in self.status
        ):
            return False
        if self.header:
            seen = {name.lower(): value for name, value in outcome.headers.items()}
            for name, wanted in self.header.items():
                if name not in seen or (wanted != ANY and seen[name].strip().lower() != wanted.lower()):
                    return False
        if self.body and self.body.encode("utf-8", "surrogatepass") not in (outcome.body or b""):
            return False
        return all(_equal(document.at(pointer), wanted) for pointer, wanted in self.json.items())


class _Document:
    """An answer's JSON body, parsed when first asked for."""

    _missing = object()

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._parsed: Any = None
        self._tried = False

    def at(self, pointer: str) -> Any:
        if not self._tried:
            self._tried = True
            body = self._outcome.body if isinstance(self._outcome, Answered) else None
            try:
                self._parsed = json.loads(body) if body else self._missing
            except (ValueError, RecursionError):
                self._parsed = self._missing
        value = self._parsed
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return self._missing
        return value

    def number(self, pointer: str) -> float | None:
        value = self.at(pointer)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if 0 <= value < 1e9 else None


def _equal(value: Any, wanted: Any) -> bool:
    if value is _Document._missing:
        return False
    if wanted == ANY:
        return True
    if isinstance(wanted, (list, tuple)):
        return any(_equal(value, one) for one in wanted)
    return type(value) is type(wanted) and bool(value == wanted)


@frozen(kw_only=True)
class Meaning:
    """What an attempt did, and what a rule said of repeating it."""

    effect: Effect
    retry: bool | None = None  # None: the policy's status_forcelist decides
    pushback: float | None = None
    sure: bool = False  # speaks of every attempt under this key


_APPLIED = Meaning(effect=Effect.APPLIED, retry=False)
_REFUSED = Meaning(effect=Effect.NOT_APPLIED)
_UNKNOWN = Meaning(effect=Effect.UNKNOWN)


def meaning(
    outcome: Outcome,
    *,
    rules: Sequence[Rule] = (),
    refusal_statuses: frozenset[int] = frozenset({408, 421, 425, 429}),
    unsafe: bool = True,
    tainted: bool = False,
    now: float | None = None,
) -> Meaning:
    """What the attempt did on the server.

    `unsafe`: the method is not GET or HEAD (a 301 or 302 then turns into a GET at most clients, RFC 9110 15.4.2).
    `tainted`: an earlier attempt of the call has an unknown effect.
    `now`: wall-clock seconds since the epoch, against which a date in Retry-After is read.
    """
    base = standard(outcome, refusal_statuses, unsafe, now)
    if not rules:
        return base
    document = _Document(outcome)
    for rule in rules:
        if rule.matches(outcome, tainted, document):
            hint = document.number(rule.pushback) if isinstance(rule.pushback, str) else rule.pushback
            return Meaning(
                effect=base.effect if rule.effect is None else rule.effect,
                retry=base.retry if rule.retry is None else rule.retry,
                pushback=hint,
                sure=rule.from_key_layer,
            )
    return base


def standard(outcome: Outcome, refusal_statuses: frozenset[int], unsafe: bool, now: float | None) -> Meaning:
    """`meaning` where there are no rules: the standard table."""
    if not isinstance(outcome, Answered):
        return _REFUSED if outcome.stage in NOTHING_SENT else _UNKNOWN
    status = outcome.status
    if 200 <= status < 300 or status == 303:
        return _APPLIED
    if status in refusal_statuses:
        return _REFUSED
    if status == 503 and _has_retry_after(outcome.hints, now):
        return _REFUSED
    if 400 <= status < 500 or status in (501, 505):
        return _REFUSED
    if 300 <= status < 400 and not (unsafe and status in (301, 302)):
        return _REFUSED  # 307, 308: ask elsewhere; 304 and the redirects of safe methods: nothing changed
    return _UNKNOWN


def _has_retry_after(hints: Mapping[str, str], now: float | None) -> bool:
    """A hint that can't be read, or lies decades away, is none: nothing says that the server refused on purpose."""
    if not hints:
        return False
    value = hints.get("retry-after")
    if value is None:
        return False
    # Without a clock a date is measured from itself: whether it is far away can't be known.
    hint = {"retry-after": value} if now is not None else {"retry-after": value, "date": value}
    return read_pushback(hint, now or 0.0) is not None
