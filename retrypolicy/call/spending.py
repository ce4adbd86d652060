"""What a call tells its retry budget and its circuit breaker, and what they let through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrypolicy.budget import BudgetState
from retrypolicy.decision import Decision, Retry, Stop
from retrypolicy.events import BudgetAlone
from retrypolicy.outcome import Answered, Outcome, Reason, interrupts

if TYPE_CHECKING:
    from retrypolicy.call.state import State

_RETRIED_OTHERWISE = frozenset({Reason.ATTEMPTS_EXHAUSTED, Reason.BUDGET_EXHAUSTED, Reason.SERVER_SAID_NO})


def opened(call: State) -> None:
    """Tell the budget of a call that begins."""
    _spending(call).on_call()


def _spending(call: State) -> BudgetState:
    state = call.spending
    if state is None:
        assert call.policy.budget is not None
        state = call.spending = call.policy.budget.state(call.host, call.engine.clock, call.engine.shared)
    return state


def not_made(call: State) -> None:
    """Tell the breaker that an attempt it let through was not made."""
    if call.policy.breaker is not None:
        call.policy.breaker.state(call.host, call.engine.clock).record(None, call.began)


def breaker_wait(call: State) -> float | None:
    """Seconds until the breaker lets a call to this host through again; None: now."""
    assert call.policy.breaker is not None
    return call.policy.breaker.state(call.host, call.engine.clock).before()


def account(call: State, outcome: Outcome, decision: Decision) -> Decision:
    """Tell budget and breaker what an attempt produced; a retry that the budget refuses becomes a Stop."""
    policy = call.policy
    healthy = _healthy(outcome)
    if policy.breaker is not None:
        policy.breaker.state(call.host, call.engine.clock).record(healthy, call.began)
    if policy.budget is None:
        return decision
    state = _spending(call)
    kind = _kind(outcome)
    if isinstance(decision, Stop) and decision.reason is Reason.SUCCESS:
        state.on_success(call.last_kind)
    elif not isinstance(decision, Stop) or decision.reason in _RETRIED_OTHERWISE:
        state.on_failure(kind)
    if isinstance(decision, Retry):
        if state.permit(kind):
            call.last_kind = kind
        else:
            decision = Stop(reason=Reason.BUDGET_EXHAUSTED)
    engine = call.engine
    if engine.shared is not None and state.alone is not engine.alone:
        engine.alone = state.alone
        if engine.alone:
            call.tell(BudgetAlone)
    return decision


def _healthy(outcome: Outcome) -> bool | None:
    """What an outcome says of the server's health; None: nothing (it refused us, or we were at fault)."""
    if isinstance(outcome, Answered):
        if outcome.status >= 500:
            return False
        return None if outcome.status == 429 else True
    if interrupts(outcome.error) or outcome.retry_limit == 0:
        return None
    return False


def _kind(outcome: Outcome) -> Any:
    if isinstance(outcome, Answered):
        return "throttled" if outcome.status == 429 else "transient"
    return "timeout" if "timeout" in type(outcome.error).__name__.lower() else "transient"
