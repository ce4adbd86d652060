"""The model's server: what it acted on is the truth that all laws go by."""

from __future__ import annotations

from attrs import define, evolve, field

from retrypolicy.clock import Clock
from retrypolicy.guard.reconcile import HeldSend, Verdict
from retrypolicy.providers import Provider
from retrypolicy.testing.check.faults import FINE, Fault, busy_answer, duplicate_answer


@define
class Effect:
    """The server acts on a call."""

    call: object
    attempt: object
    at: float


@define
class _Known:
    first: float  # when the key first came
    acts: float  # when its request takes effect


@define
class Server:
    """Acts on requests as the faults say, and on a key that it honours only once within the key's window."""

    provider: Provider | None
    effects: list[Effect] = field(factory=list)
    _keys: dict[str, _Known] = field(factory=dict)

    def receive(self, fault: Fault, *, call: object, attempt: object, key: str | None, now: float) -> Fault:
        """A request comes in; returns what really becomes of it."""
        known = None if key is None else self._keys.get(key)
        if known is not None and now < known.first + self._window():
            return self._again(fault, known, now)
        if fault.applies:
            self.effects.append(Effect(call, attempt, now + fault.late))
            if key is not None:
                self._keys[key] = _Known(now, now + fault.late)
        return fault

    def _window(self) -> float:
        return self.provider.key.window if self.provider is not None and self.provider.key is not None else 0.0

    def _again(self, fault: Fault, known: _Known, now: float) -> Fault:
        """It has this key: it does not act again, and where it would say so, it says what it says then."""
        said: Fault | None = None
        if fault.stage is None and fault.applies and not fault.body_lost and self.provider is not None:
            said = busy_answer(self.provider) if now < known.acts else duplicate_answer(self.provider)
            said = said or FINE
        return evolve(said or fault, seconds=fault.seconds, applies=False)

    def of(self, call: object, until: float) -> list[Effect]:
        """How often it has acted on this call by then."""
        return [effect for effect in self.effects if effect.call == call and effect.at <= until]


@define
class ModelReconciler:
    """Asks the server's log, which lags behind, about the one call that is made with a key."""

    clock: Clock
    server: Server
    quiet: float = 600.0
    lag: float = 60.0

    def __call__(self, held: HeldSend, /) -> Verdict:
        return "applied" if self.server.of(0, self.clock.monotonic() - self.lag) else "not_applied"
