"""What can become of one attempt in the model: on the wire, on the server, and as the client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Literal

from attrs import evolve, frozen

from retrypolicy.http.pushback import Hint, pushback
from retrypolicy.http.statuses import REFUSALS
from retrypolicy.outcome import NOTHING_SENT, Answered, Effect, Failed, Outcome, Stage
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import Provider
from retrypolicy.rules import ANY, Rule, meaning

QUICK = 0.1
"""Seconds of an attempt that nothing delays."""
SLOW = 30.0
"""Seconds after which the model's client gives up an attempt, if nothing tells it to do so earlier."""
STUCK = 400.0
"""Seconds of an attempt that lasts longer than anybody believes it alive where the policy sets no time limits."""

HINTS = (1.0, 20.0, 3600.0, 200_000.0)
"""Seconds that the model's servers ask clients to wait."""

_TOLD_BY: dict[Stage, tuple[str, str]] = {
    Stage.NOT_CONNECTED: ("nothing", "the connection was refused"),
    Stage.NOT_SENT: ("nothing", "the connection broke before the first byte"),
    Stage.HEAD_UNFINISHED: ("part of the head", "the connection broke"),
    Stage.BODY_UNFINISHED: ("part of the body", "the connection broke"),
    Stage.SENT: ("all of it", "nothing: the connection broke"),
    Stage.ANSWERING: ("all of it", "half a head, then the connection broke"),
}


@frozen(kw_only=True)
class Fault:
    """One way in which an attempt may go. `sent` and `answered` are for people.

    stage: where the attempt failed; None: there was an answer. applies: the server acts on what it got, `late` seconds
    after it got it. seconds: until the client knows. hint: seconds that the server asks to be left alone, told in
    `form`. key: the answer of the provider's idempotency layer.
    """

    name: str
    sent: str = "all of it"
    answered: str = ""
    stage: Stage | None = None
    error: type[Exception] = ConnectionResetError
    retry_limit: int | None = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b"{}"
    body_lost: bool = False
    hint: float | None = None
    form: Hint | Literal["date"] | None = None
    forbids: bool = False
    applies: bool = False
    late: float = 0.0
    seconds: float = QUICK

    @property
    def reaches(self) -> bool:
        """Does the server get anything that it could act on?"""
        return self.stage not in NOTHING_SENT

    def outcome(self, *, now: float, server_now: float, hints: Iterable[Hint] = ()) -> Outcome:
        """As the client sees it. `now` is by its clock, `server_now` by the server's."""
        if self.stage is not None:
            return Failed(error=self.error(), stage=self.stage, retry_limit=self.retry_limit)
        headers = dict(self.headers)
        if self.hint is not None:
            headers |= _told(self.hint, self.form, server_now)
        own = pushback(headers, now, tuple(hints)) if self.status >= 400 and hints else None
        lost = EOFError() if self.body_lost else None
        return Answered(status=self.status, headers=headers, body=self.body, body_error=lost, pushback=own)


def _told(seconds: float, form: Hint | Literal["date"] | None, now: float) -> dict[str, str]:
    if form is None:
        return {"Retry-After": str(int(seconds))}
    if form == "date":
        return {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + seconds, usegmt=True)}
    until = now + seconds
    value = {
        "seconds": f"{seconds:.0f}",
        "milliseconds": f"{seconds * 1000:.0f}",
        "epoch": f"{until:.0f}",
        "epoch_ms": f"{until * 1000:.0f}",
        "http-date": formatdate(until, usegmt=True),
        "iso8601": datetime.fromtimestamp(until, UTC).isoformat(),
    }[form.unit]
    return {form.header: value} | ({form.when_header: "0"} if form.when_header else {})


FINE = Fault(name="fine", answered="200", applies=True)
DROPPED = Fault(
    name="dropped",
    stage=Stage.SENT,
    answered="nothing: the connection broke before the answer",
    applies=True,
)
TIMEOUT = Fault(
    name="timeout",
    stage=Stage.SENT,
    error=TimeoutError,
    answered=f"nothing within {SLOW:g} s",
    applies=True,
    seconds=SLOW,
)
REFUSED = Fault(name="refused", stage=Stage.NOT_CONNECTED, error=ConnectionRefusedError, sent="nothing",
                answered="the connection was refused")  # fmt: skip


UNREACHABLE = evolve(REFUSED, name="unreachable", error=TimeoutError, seconds=SLOW,
                     answered=f"no connection within {SLOW:g} s")  # fmt: skip


def _kinds() -> Iterator[Fault]:
    """Faults of every client and server; `applies` is added for those where it may be."""
    yield FINE
    yield DROPPED
    yield TIMEOUT
    yield evolve(TIMEOUT, name="timeout-late", late=SLOW + 15, answered=f"nothing within {SLOW:g} s (it acted later)")
    yield REFUSED
    yield evolve(REFUSED, name="unknown-name", retry_limit=1, answered="the name does not exist")
    yield evolve(REFUSED, name="bad-certificate", retry_limit=0, answered="the certificate is bad")
    yield UNREACHABLE
    for stage in (Stage.NOT_SENT, Stage.HEAD_UNFINISHED, Stage.BODY_UNFINISHED, Stage.ANSWERING):
        sent, answered = _TOLD_BY[stage]
        yield Fault(name=stage.value.replace("_", "-"), stage=stage, sent=sent, answered=answered)
    yield Fault(name="garbage", stage=Stage.ANSWERING, error=ValueError, answered="something that is no HTTP")
    yield Fault(name="body-lost", body_lost=True, answered="200, and half a body")
    yield Fault(name="fine-slowly", answered=f"200, after {STUCK:g} s", seconds=STUCK)
    for status in (500, 502, 503, 504, 429, 408, 425, 400, 409, 422, 302, 307):
        yield answer(status)
    for status in (503, 429):
        for hint in HINTS:
            yield answer(status, hint=hint)
    yield answer(503, hint=HINTS[1], form="date")
    yield answer(500, hint=HINTS[1])
    yield evolve(answer(503), name="503-no-more", headers=(("X-Should-Retry", "false"),), forbids=True,
                 answered="503 with X-Should-Retry: false")  # fmt: skip


def answer(status: int, *, hint: float | None = None, form: Hint | Literal["date"] | None = None) -> Fault:
    """An answer with this status, and a wish to be left alone for `hint` seconds."""
    name, words = str(status), str(status)
    if hint is not None:
        where = form.header if isinstance(form, Hint) else "Retry-After"
        name, words = f"{status}-{hint:.0f}", f"{status} with {where}: come back in {hint:g} s"
    return Fault(name=name, status=status, hint=hint, form=form, answered=words)


def catalogue(policy: RetryPolicy, provider: Provider | None) -> tuple[Fault, ...]:
    """All that may become of an attempt under this policy, by servers that are honest; the simplest first.

    Honest by the table of the safety rule, by the provider's rules, and by those rules of the policy that tell an
    answer by its header or body. That a bare status (a rule's, or one in `refusal_statuses`) means "nothing was done"
    is not believed: servers and the proxies before them answer it after having acted, too.
    """
    kinds = list(_kinds())
    known = {kind.status for kind in kinds}
    statuses = {s for s in policy.status_forcelist | policy.refusal_statuses if s not in known}
    kinds += [answer(status) for status in sorted(statuses)]
    hints = () if provider is None else provider.hints
    kinds += [answer(429, hint=HINTS[1], form=hint) for hint in hints]
    believed = _believed(policy, provider)
    kinds += [told for rule in believed for told in _by_rule(rule)]
    both = [evolve(kind, applies=applies) for kind in kinds for applies in (True, False)]
    return tuple(dict.fromkeys(fault for fault in both if _may_be(fault) and _honest(fault, believed)))


def _believed(policy: RetryPolicy, provider: Provider | None) -> tuple[Rule, ...]:
    own = (rule for rule in policy.rules if rule.looks_inside or rule.stage is Stage.BODY_UNFINISHED)
    return (*own, *(() if provider is None else provider.rules))


def _may_be(fault: Fault) -> bool:
    return fault.reaches or not fault.applies


def _honest(fault: Fault, rules: tuple[Rule, ...]) -> bool:
    """What the answer says of the call is so, whatever was there before it."""
    outcome = fault.outcome(now=0.0, server_now=0.0)
    for tainted in (False, True):
        said = meaning(outcome, rules=rules, refusal_statuses=REFUSALS, tainted=tainted, now=0.0).effect
        if said is not Effect.UNKNOWN and (said is Effect.APPLIED) is not fault.applies:
            return False
    return True


def duplicate_answer(provider: Provider) -> Fault | None:
    """What the provider answers to a key that it has acted on before; None: the first answer once more."""
    return _first(provider, lambda rule: rule.from_key_layer and rule.effect is Effect.APPLIED)


def busy_answer(provider: Provider) -> Fault | None:
    """What it answers while it still acts on an earlier request with this key; None: it waits."""
    return _first(provider, lambda rule: rule.retry is True and rule.effect is Effect.UNKNOWN and rule.json)


def _first(provider: Provider, wanted: Any) -> Fault | None:
    return next((fault for rule in provider.rules if wanted(rule) for fault in _by_rule(rule)), None)


def _by_rule(rule: Rule) -> Iterator[Fault]:
    """Answers that the rule is about."""
    if rule.stage is not None:
        return
    body: Any = {}
    for pointer, wanted in rule.json.items():
        value = wanted[0] if isinstance(wanted, (list, tuple)) else "x" if wanted == ANY else wanted
        body = _put(body, pointer.split("/")[1:], value)
    headers = tuple((name, "x" if value == ANY else value) for name, value in rule.header.items())
    for status in sorted(rule.status or {400}, key=str)[:1]:
        number = status if isinstance(status, int) else int(status[0]) * 100
        text = json.dumps(body) if rule.json or not rule.body else rule.body
        yield Fault(
            name=f"{number}-{text}",
            status=number,
            headers=headers,
            body=text.encode(),
            answered=f"{number} {text if rule.json or rule.body else ''}".strip(),
        )


def _put(node: Any, path: list[str], value: Any) -> Any:
    """The JSON document with a value at this place."""
    if not path:
        return value
    name = path[0]
    if name.isdigit():
        made = list(node) if isinstance(node, list) else []
        made += [{}] * (int(name) + 1 - len(made))
        made[int(name)] = _put(made[int(name)], path[1:], value)
        return made
    table = dict(node) if isinstance(node, dict) else {}
    table[name] = _put(table.get(name), path[1:], value)
    return table
