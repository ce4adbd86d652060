"""What happened in one play: runs, attempts and notes, in the order of time."""

from __future__ import annotations

from attrs import Factory, define

from retrypolicy.call import Call
from retrypolicy.outcome import Decision, Reason, Report


@define(eq=False)
class Attempt:
    """One attempt, told as people want to know it. Times are seconds after the play began."""

    run: Run
    number: int
    at: float
    sent: str = "nothing"
    received: str = "nothing"
    answered: str = ""
    ended: float | None = None  # the client knows what came of it
    hint: float | None = None  # the server asked to be left alone so long
    forbids: bool = False  # the server said not to try again
    action: str = ""  # retry, defer or stop; empty: its process died before that
    reason: Reason | None = None
    put_off: float | None = None  # seconds until the next run
    waited: float | None = None


@define(eq=False)
class Run:
    """One pass of one caller through the engine. `call` tells which call it is: callers with one key make one call."""

    caller: int
    identity: int
    began: float
    ended: float | None = None  # None: its process died
    ledger_seconds: float = 0.0  # spent in waiting for the ledger
    attempts: list[Attempt] = Factory(list)
    call: Call | None = None
    decision: Decision | None = None
    refusal: Exception | None = None  # the guard's
    error: Exception | None = None  # of the policy's own parts: a backoff, say
    report: Report | None = None
    retry_at: float | None = None
    follows: Run | None = None  # the run that was deferred to this one


@define(eq=False)
class Note:
    """Anything else that belongs to the story."""

    at: float
    text: str


Moment = Attempt | Note
