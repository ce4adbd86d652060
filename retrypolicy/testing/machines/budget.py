"""Any retry budget against an ideal account: nobody spends what was not paid in, nor is refused what is there."""

from __future__ import annotations

from typing import ClassVar, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from hypothesis.strategies import SearchStrategy

from retrypolicy.budget import Kind, RetryBudget
from retrypolicy.clock import VirtualClock
from retrypolicy.testing.machines.coverage import Machine
from retrypolicy.testing.strategies.parts import budgets

_KINDS: SearchStrategy[Kind] = st.sampled_from(["transient", "timeout", "throttled"])
_HAIR = 2e-6  # budgets count in millionths: one may be lost at each step, and floats lose a little


class Spending(Protocol):
    """What an engine asks of a budget; `retrypolicy.budget` says when."""

    def on_call(self) -> None: ...
    def on_failure(self, kind: Kind = "transient") -> None: ...
    def permit(self, kind: Kind = "transient") -> bool: ...
    def on_success(self, last: Kind | None = None) -> None: ...


class BudgetMachine(Machine):
    """Calls begin, fail, succeed and ask for retries, in any order, while time passes.

    A retry is permitted exactly if the account holds what it costs: so that over any time retries cost at most the
    capacity, what was paid in, and what came for free; a refusal costs nothing; the bucket never runs over or below 0.
    Override `open` for a budget of another make, and `budgets` for those to try.
    """

    budgets: ClassVar[SearchStrategy[RetryBudget]] = budgets()

    def open(self, budget: RetryBudget, clock: VirtualClock) -> Spending:
        """The budget at its beginning, for each example."""
        return budget.state("api.example.com", clock)

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.budget = data.draw(self.budgets, "budget")
        self.clock = VirtualClock()
        self.state = self.open(self.budget, self.clock)
        self.account = _Account(self.budget)
        self.was = "full"

    @rule()
    def call_begins(self) -> None:
        self.state.on_call()
        if self.budget.deposit_on == "call":
            self.account.change(self.budget.deposit)
        self._moved("call")

    @rule(kind=_KINDS)
    def attempt_fails(self, kind: Kind) -> None:
        self.state.on_failure(kind)
        if self.budget.charge == "failure":
            self.account.change(-self.account.cost(kind))
        self._moved("failure")

    @rule(last=st.none() | _KINDS)
    def attempt_succeeds(self, last: Kind | None) -> None:
        self.state.on_success(last)
        if last is not None and self.budget.refund:
            self.account.change(self.account.cost(last))
        elif self.budget.deposit_on == "success":
            self.account.change(self.budget.deposit)
        self._moved("success")

    @rule(kind=_KINDS)
    def retry_is_asked_for(self, kind: Kind) -> None:
        self._ask(kind)

    @precondition(lambda self: self.budget.charge == "retry")
    @rule(kind=_KINDS)
    def all_is_spent(self, kind: Kind) -> None:
        """What takes many draws otherwise."""
        for _ in range(50):
            if not self._ask(kind):
                break

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 7.0, 60.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.account.wait(seconds)
        self._moved("time")

    def _ask(self, kind: Kind) -> bool:
        low, high = self.account.bounds()
        permitted = self.state.permit(kind)
        need = self.account.capacity / 2 if self.budget.charge == "failure" else self.account.cost(kind)
        assert not (permitted and high < need), f"{kind}: permitted with {high:g} in hand, of {need:g}"
        assert permitted or low <= need, f"{kind}: refused with {low:g} in hand, of {need:g}"
        if permitted and self.budget.charge == "retry":
            self.account.change(-self.account.cost(kind))
        self._moved("permitted" if permitted else "refused")
        return permitted

    def _moved(self, step: str) -> None:
        low, high = self.account.bounds()
        now = "empty" if high < self.account.cost("transient") else "full" if low >= self.account.capacity else "part"
        self.moved(step, self.was, now)
        self.was = now


class _Account:
    """An ideal account. What it holds is known within bounds: a step may round, and a window forgets in slots."""

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._rate = budget.per_second * self.cost("transient")
        self._window = budget.window
        reserve = 0.0 if self._window is None else self._rate * self._window
        self.capacity = reserve if budget.capacity is None else budget.capacity
        self._level = self.capacity
        self._changes: list[tuple[float, float]] = []
        self._now = 0.0
        self._doubt = _HAIR

    def cost(self, kind: Kind) -> float:
        """Tokens for one retry, or one failure, of this kind."""
        costs = {"timeout": self._budget.timeout_cost, "throttled": self._budget.throttled_cost}
        cost = costs.get(kind)
        return self._budget.cost if cost is None else cost

    def wait(self, seconds: float) -> None:
        self._now += seconds
        if self._window is None:
            self._level = min(self.capacity, self._level + self._rate * seconds)
        self._doubt += _HAIR

    def change(self, amount: float) -> None:
        self._changes.append((self._now, amount))
        if self._window is None:
            self._level = max(0.0, min(self.capacity, self._level + amount))
        self._doubt += _HAIR

    def bounds(self) -> tuple[float, float]:
        """The least and the most that it can hold."""
        low = high = self._level
        if self._window is not None:
            # The window moves in steps of a tenth: what is that near to its end is forgotten, or not yet.
            ages = [(self._now - at, amount) for at, amount in self._changes]
            sure = sum(amount for age, amount in ages if age < self._window * 0.9 - _HAIR)
            some = [amount for age, amount in ages if self._window * 0.9 - _HAIR <= age <= self._window + _HAIR]
            low += sure + sum(amount for amount in some if amount < 0)
            high += sure + sum(amount for amount in some if amount > 0)
        return low - self._doubt, high + self._doubt
