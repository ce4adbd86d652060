"""The real engine, set up for the model, and what all plays of one policy have in common."""

from __future__ import annotations

import functools
from typing import Any

from attrs import evolve

from retrypolicy.engine import Engine
from retrypolicy.guard.memory import MemoryLedger
from retrypolicy.guard.recorder import Recorder
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.policy import RetryPolicy
from retrypolicy.providers import Provider
from retrypolicy.testing.check.clock import ModelClock
from retrypolicy.testing.check.scenario import Mode
from retrypolicy.testing.check.server import ModelReconciler, Server

HOST = "api.example.com"


class Chores(Recorder):
    """What one process says again in the background: it has no thread, and ends with the process."""

    def _add(self, chore: Any) -> None:
        self._queue.append(chore)


class ModelEngine(Engine):
    """The real engine, deaf to the environment, with the chores of the process that runs."""

    chores = Chores()

    @property
    def mode(self) -> str:
        return "enforce"

    @property
    def _recorder(self) -> Recorder:
        return self.chores


class Space:
    """What all plays of one policy have in common. Made once: an engine costs more than a play."""

    def __init__(self, policy: RetryPolicy, provider: Provider | None) -> None:
        # To wait for a caller of the same process is not played: the model's callers are processes of their own.
        self.policy = evolve(policy, guard=evolve(policy.guard, join=0.0)) if policy.guard.join else policy
        self.provider = provider
        self.clock = ModelClock()
        key = None if provider is None else provider.key
        path = key.paths[0].replace("*", "x") if key is not None and key.paths else "/messages"
        extended = provider is not None and not provider.hosts
        host = provider.hosts[0].replace("*", "x") if provider is not None and provider.hosts else HOST
        self.url = f"https://{host}{path if path.startswith('/') else '/' + path}"
        self.reconciler = ModelReconciler(self.clock, Server(provider))
        self._engine = ModelEngine(
            self.policy,
            ledger=MemoryLedger(clock=self.clock),
            provider=provider,
            hosts=(HOST,) if extended else (),
            secret="model",  # noqa: S106 - of a ledger that lives as long as a play
            clock=self.clock,
            reconcilers={"*": self.reconciler},
        )

    def honours(self, method: str) -> bool:
        """Does the provider take keys on this method?"""
        host, path = self.url.removeprefix("https://").split("/", 1)
        provider = self._engine.provider
        return provider is not None and provider.honours(method, host, "/" + path)

    @functools.cached_property
    def ways(self) -> tuple[tuple[str, Mode], ...]:
        """Methods, and ways to make the call, that this policy can meet. The simplest first."""
        unsafe = ("POST", *sorted(self.policy.idempotent_methods - IDEMPOTENT - {"POST"}))
        keyed = tuple(method for method in unsafe if self.honours(method))
        methods: dict[Mode, tuple[str, ...]] = {
            "plain": (*unsafe, "PUT", "GET"),
            "keyed": keyed,
            "guarded": (*unsafe, "PUT"),
        }
        return tuple((method, mode) for mode in methods for method in methods[mode])

    def engine(self, mode: Mode) -> ModelEngine:
        """The engine as new, and the clock wound back."""
        engine, policy, clock = self._engine, self.policy, self.clock
        clock.wind_back()
        host = self.url.removeprefix("https://").split("/", 1)[0]
        if policy.budget is not None:
            policy.budget.state(host, clock).reset()
        if policy.breaker is not None:
            policy.breaker.state(host, clock).reset()
        engine.ledger = MemoryLedger(clock=clock) if mode == "guarded" else None
        return engine
