"""What Acme Inc. adds to retrypolicy: one thing of every kind that can be found by name."""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen, validators

from retrypolicy import Effect, Rule
from retrypolicy.backoff import Seconds
from retrypolicy.clock import Clock
from retrypolicy.guard import MemoryLedger
from retrypolicy.guard.reconcile import HeldSend
from retrypolicy.providers import KeyPlacement, Provider


@frozen(kw_only=True)
class Fibonacci:
    """Waits of 1, 1, 2, 3, 5, ... times `unit`.

    unit: the first wait.
    cap: the longest wait.
    """

    unit: Seconds = field(default=1.0, validator=validators.ge(0))
    cap: Seconds = field(default=60.0, validator=validators.ge(0))

    def delay(self, retry: int, previous: float | None, random: float) -> float:
        before, now = 0, 1
        for _ in range(min(retry - 1, 100)):
            before, now = now, before + now
        return min(self.cap, now * self.unit) * random

    def bounds(self, retry: int) -> tuple[float, float]:
        return 0.0, self.delay(retry, None, 1.0)


ACME = Provider(
    name="acme",
    hosts=("api.acme.example",),
    key=KeyPlacement(header="Acme-Idempotency-Key", window=86400.0),
    rules=(Rule(status=409, json={"/code": "seen_before"}, effect=Effect.APPLIED, from_key_layer=True),),
)


def classify(found: object) -> Effect | None:
    """For work with Acme's own client, whose errors carry a code."""
    return Effect.NOT_APPLIED if getattr(found, "code", None) == "busy" else None


def reconcile(held: HeldSend) -> Literal["applied", "not_applied", "unknown"]:
    """Would ask Acme's log for the key."""
    return "unknown"


class AcmeLedger(MemoryLedger):
    """A ledger for URLs such as `acme:tests`."""

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> AcmeLedger:
        return cls(clock=clock)
