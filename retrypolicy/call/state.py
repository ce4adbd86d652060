"""What is known of a call while it runs: its request, its key, its attempts so far; and the report on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from retrypolicy.decision import Decision, Retry
from retrypolicy.errors import AlreadyDone, CallRefused
from retrypolicy.events import Done, Event, publish
from retrypolicy.guard.ledger import Record
from retrypolicy.outcome import AttemptReport, Effect, Reason, Report, Stage
from retrypolicy.policy import RetryPolicy

if TYPE_CHECKING:
    from retrypolicy.budget import BudgetState
    from retrypolicy.engine import Engine
    from retrypolicy.guard.key import Key
    from retrypolicy.providers import Provider


# On Python 3.11 the members of an enumeration are properties, and slow.
_SUCCESS, _NOT_APPLIED = Reason.SUCCESS, Effect.NOT_APPLIED


class State:
    """The state of one run of a call. `judge` asks it as it would a `History`, which costs more to make."""

    __slots__ = (
        "_earlier",
        "_effect",
        "_end",
        "_first_armed",
        "_hops",
        "_over",
        "_reason",
        "_records",
        "_started",
        "attempts",
        "began",
        "deadline",
        "defers",
        "digest",
        "elapsed",
        "engine",
        "fingerprint",
        "first_seen",
        "generation",
        "guarded",
        "held",
        "honoured",
        "hooked",
        "host",
        "key",
        "last_kind",
        "let_go",
        "method",
        "not_after",
        "observed",
        "policy",
        "previous",
        "provider",
        "recorded",
        "replayable",
        "replayed",
        "retry_at",
        "sent",
        "spending",
        "spent",
        "streak",
        "tainted",
    )

    def __init__(
        self,
        engine: Engine,
        policy: RetryPolicy,
        # By their places: a class that is called with names makes a dictionary of them first.
        method: str = "CALL",
        host: str = "",
        key: Key | None = None,
        digest: bytes = b"",
        fingerprint: bytes = b"",
        provider: Provider | None = None,
        honoured: bool = False,
        hooked: bool = False,
        not_after: float | None = None,
        observed: bool = False,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.method = method
        self.host = host
        self.key = key
        self.digest = digest
        self.fingerprint = fingerprint
        self.provider = provider
        self.honoured = honoured  # the provider honours the key that goes out with this request
        self.hooked = hooked  # the transport calls `arm` itself, between "connected" and the first byte
        self.not_after = not_after
        self.guarded = key is not None and engine.ledger is not None
        self.observed = observed  # nothing is done, it is only said
        self.generation = 1  # which outgoing key
        self.attempts = 0  # over the whole call, as far as known
        self.defers = True  # somebody comes back later: what waits too long for this run is not over
        self.tainted = False  # an earlier attempt may have been applied
        self.replayable = True  # the body can be sent again; kept true or false by the transport
        self.deadline: float | None = None  # of the running attempt, on the monotonic clock
        self.held = False
        self.replayed = False
        self.recorded: bool | None = None
        self.retry_at: float | None = None
        self.began = 0.0  # when the running attempt began, on the monotonic clock
        self.elapsed = 0.0  # seconds of this run until the last decision
        self.sent: bytes | None = None  # the body that goes out, where the transport has it at hand
        self.spending: BudgetState | None = None  # what was spent of the policy's budget on this host
        self.let_go: Callable[[], None] | None = None  # called before a wait: the transport lets go of what it holds
        self.last_kind: Any = None  # of the last retry that the budget permitted
        self._over = False  # the listeners were told of its end
        self._reason = _SUCCESS
        self._effect = _NOT_APPLIED
        self._end: float | None = None
        self.first_seen: float | None = None
        self._first_armed: float | None = None
        self.previous: float | None = None
        self.streak = 0
        self.spent: Mapping[str, int] = MappingProxyType({})  # retries so far by kind of failure
        self._started = 0.0
        # What `attempt_report` takes. Not the outcomes: a call that holds an error and its traceback holds itself.
        self._records: list[tuple[Any, ...]] = []
        self._hops: tuple[tuple[Any, ...], ...] = ()  # the same of the call's earlier hops
        self._earlier = 0  # how many attempts they made that `attempts` does not count
        if self.guarded:
            self._begin_guard()

    if TYPE_CHECKING:

        def _begin_guard(self) -> None:
            """Make what only a call under the guard has."""

    @property
    def idempotent(self) -> bool:
        """Does the policy allow to repeat this method?"""
        return self.method in self.policy.idempotent_methods

    @property
    def cares(self) -> bool:
        """Does more of an answer count than its status?"""
        return self.guarded or self.provider is not None or bool(self.policy.rules)

    @property
    def accepts_duplicates(self) -> bool:
        """Was the policy told to re-send where the outcome is unknown?"""
        return self.guarded and self.policy.guard.on_unknown == "resend"

    @property
    def effect(self) -> Effect:
        """That of the call so far: of its worst attempt."""
        return self._effect

    @property
    def key_until(self) -> float | None:
        """Until when the provider honours the call's key on a repeat."""
        if not self.honoured or self.provider is None or self.provider.key is None:
            return None
        started = self._first_armed if self._first_armed is not None else self.first_seen
        if started is None:
            started = self.engine.clock.now()
        return started + self.provider.key.window - self.provider.key.margin

    def follows(self, before: State) -> None:
        """This hop belongs to a call: it shares its time and its prospects, and what it reports is about all of it."""
        self._started, self._end, self.defers = before._started, before._end, before.defers
        self.first_seen, self._first_armed = before.first_seen, before._first_armed
        self.tainted = before.tainted
        if before._effect is Effect.APPLIED:
            self._effect = before._effect
        self._hops = (*before._hops, *before._numbered())
        self._earlier = before._earlier + before.attempts

    def _numbered(self) -> list[tuple[Any, ...]]:
        """The attempts of this run, numbered over all hops."""
        return [(record[0] + self._earlier, *record[1:]) for record in self._records]

    def _key_is_forgotten(self) -> bool:
        """The wait took longer than planned, and a repeat is no longer covered by the key."""
        until = self.key_until
        return self.tainted and not self.idempotent and until is not None and self.engine.clock.now() >= until

    def over(self, reason: Reason | None = None) -> None:
        """The run has ended: the listeners are told, once."""
        if self.engine.listeners and not self._over:
            self._over = True
            self.tell(Done, attempts=self.attempts, effect=self._effect, reason=reason or self._reason)

    def refused(self, error: CallRefused) -> None:
        """The guard stopped the run: note it for the report."""
        if self._reason is Reason.SUCCESS:
            self._reason = Reason.GUARDED
        self.retry_at = error.retry_at
        error.report = self.report()
        self.over()

    def report(self) -> Report:
        """What became of the call so far."""
        return Report(
            attempts=tuple(attempt_report(*record) for record in (*self._hops, *self._numbered())),
            total_attempts=self._earlier + self.attempts,
            effect=self._effect,
            reason=self._reason,
            first_seen=self.first_seen,
            retry_at=self.retry_at,
            held=self.held,
            replayed=self.replayed,
            recorded=self.recorded,
            key_digest=self.digest.hex() if self.digest else None,
            policy=self.policy.name,
            provider=self._provider_name() or None,
        )

    def already_done(self, record: Record) -> AlreadyDone:
        """For a transport that can't make a response from what the ledger kept."""
        result = dict(record.result) if record.result is not None else {}
        error = AlreadyDone("this call was done earlier; nothing was sent", result=result, key_digest=self.digest.hex())
        self.refused(error)
        return error

    def tell(self, kind: type[Event], **facts: Any) -> None:
        """Tell the log and the listeners what happened to this call."""
        publish(
            kind(
                call=format(id(self), "x"),
                policy=self.policy.name,
                provider=self._provider_name() or None,
                host=self.host,
                method=self.method,
                label=self.key.label if self.key is not None else "",
                **facts,
            ),
            self.engine.listeners,
        )

    def _provider_name(self) -> str:
        return self.provider.name if self.provider is not None else ""


def attempt_report(
    number: int,
    status: int | None,
    error: type[BaseException] | None,
    stage: Stage | None,
    reused: bool,
    effect: Effect,
    decision: Decision,
    elapsed: float,
) -> AttemptReport:
    """One of the records that a call keeps of its attempts, as it is reported."""
    return AttemptReport(
        number=number,
        status=status,
        error=None if error is None else error.__name__,
        stage=stage,
        effect=effect,
        reason=decision.reason,
        wait=decision.delay if isinstance(decision, Retry) else 0.0,
        elapsed=elapsed,
        reused=reused,
    )
