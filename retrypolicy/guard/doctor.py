"""The command `retrypolicy doctor`: is the ledger reachable, durable, shared; is the secret set; is the clock right?"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any, Literal

from attrs import asdict, frozen

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import RetryPolicyError
from retrypolicy.events import clean
from retrypolicy.guard import upkeep
from retrypolicy.guard.commands import ledger_url, span
from retrypolicy.guard.key import SECRET_VARIABLE, Secret
from retrypolicy.guard.ledger import ARM_TIMEOUT, Ledger
from retrypolicy.guard.opening import LEDGER_VARIABLE, open_existing

MOST_SKEW = 2.0
"""Seconds by which this machine's clock may differ from the ledger's before it is worth a word."""

_REACH = {
    "MemoryLedger": ("warning", "this process only: every other one, and the next start, knows nothing of its sends"),
    "SQLiteLedger": ("good", "all processes of this machine; jobs that another machine may get need another ledger"),
    "RedisLedger": ("good", "every machine that uses this server and database"),
    "PostgresLedger": ("good", "every machine that uses this database"),
}
_MODES = ("", "enforce", "observe", "off")


@frozen(kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["good", "warning", "bad"]
    text: str


def add_parser(subparsers: Any) -> None:
    """Add `doctor`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="say what of a ledger, its secret and its clock is not as it should be",
        description="Say what of a ledger, its secret and its clock is not as it should be. Changes nothing.",
        epilog="Exit code 0: nothing is bad (there may be warnings); 1: something is.",
    )
    parser.add_argument("--ledger", metavar="URL", help=f"which ledger (default: {LEDGER_VARIABLE})")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    found = list(examine(options.ledger))
    for finding in found:
        if options.json:
            print(json.dumps(asdict(finding)))
        else:
            print(f"{finding.state:<8} {finding.what + ':':<11} {clean(finding.text)}")
    return 1 if any(finding.state == "bad" for finding in found) else 0


def examine(url: str | None = None, clock: Clock | None = None) -> Iterator[Finding]:
    """Look at everything, the environment first; never raises for what it finds."""
    clock = clock or SystemClock()
    yield _mode()
    yield _secret()
    began = clock.monotonic()
    try:
        ledger = open_existing(ledger_url(url))
    except RetryPolicyError as error:
        yield Finding(what="reachable", state="bad", text=str(error))
        return
    try:
        theirs = upkeep.time_of(ledger)
        took = clock.monotonic() - began
        yield Finding(
            what="reachable",
            state="good" if took < ARM_TIMEOUT / 2 else "warning",
            text=f"yes, opened and read in {took * 1000:.0f} ms",
        )
        yield from _durable(ledger)
        yield _shared(ledger)
        yield _clock(theirs - clock.now())
        yield _held(ledger)
    except RetryPolicyError as error:
        yield Finding(what="reachable", state="bad", text=str(error))
    finally:
        ledger.close()


def _mode() -> Finding:
    mode = os.environ.get("RETRYPOLICY_MODE", "").strip().lower()
    if mode not in _MODES:
        return Finding(what="mode", state="bad", text=f"RETRYPOLICY_MODE={mode} is not one of enforce, observe, off")
    if mode in ("observe", "off"):
        return Finding(what="mode", state="warning", text=f"RETRYPOLICY_MODE={mode}: nothing is guarded")
    return Finding(what="mode", state="good", text="enforce")


def _secret() -> Finding:
    try:
        secret = Secret.of(None)
    except RetryPolicyError as error:
        return Finding(what="secret", state="bad", text=str(error))
    if secret.missing:
        text = f"{SECRET_VARIABLE} is not set here: unless the application gives one, keys can be guessed from digests"
        return Finding(what="secret", state="warning", text=text)
    # Ten digits of a digest: enough to compare machines by, useless for anything else.
    text = f"set; its mark is {secret.digest(b'mark').hex()[:10]}, and must be the same on every machine"
    older = len(secret.values) - 1
    if older:
        text += f"; {older} older one(s) still read, at one read more for each call: drop them after the retention"
    return Finding(what="secret", state="good", text=text)


def _durable(ledger: Ledger) -> Iterator[Finding]:
    problems = ledger.problems()
    for problem in problems:
        yield Finding(what="durable", state="bad", text=problem)
    if not problems:
        yield Finding(what="durable", state="good", text="an acknowledged arm survives a crash")


def _shared(ledger: Ledger) -> Finding:
    state, text = _REACH.get(type(ledger).__name__, ("warning", "not known: ask who made this kind of ledger"))
    return Finding(what="shared", state=state, text=text)  # type: ignore[arg-type]  # the table has no other words


def _clock(skew: float) -> Finding:
    if abs(skew) <= MOST_SKEW:
        return Finding(what="clock", state="good", text=f"this machine and the ledger differ by {abs(skew):.1f} s")
    side = "behind" if skew > 0 else "ahead of"
    text = f"this machine is {span(abs(skew))} {side} the ledger; waits and the windows of keys will be off by that"
    return Finding(what="clock", state="warning", text=text)


def _held(ledger: Ledger) -> Finding:
    providers, oldest = upkeep.held(ledger)
    if not providers:
        return Finding(what="held", state="good", text="nothing waits for evidence")
    age = span(oldest or 0.0)
    text = f"{providers.total()} send(s) wait for evidence, the oldest for {age}: retrypolicy ledger list --phase held"
    return Finding(what="held", state="warning", text=text)
