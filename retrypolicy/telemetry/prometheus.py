"""A listener for Prometheus: counters of attempts, decisions and endings, and the time spent waiting."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from retrypolicy.events import AttemptEnded, BudgetAlone, Deferred, Done, Event, Held, LedgerDown, Replayed, Waiting


class PrometheusListener:
    """Counts what an engine does. Make one for each registry, and give it to every engine.

    Labels are few and bounded: policy, provider, and a word of this library; no host, key, label, header or body.

    registry: None: prometheus_client's own.
    """

    def __init__(self, *, registry: CollectorRegistry | None = None) -> None:
        registry = REGISTRY if registry is None else registry
        call = ["policy", "provider"]
        self._attempts = Counter(
            "retrypolicy_attempts", "Attempts, by what each did on the server.", [*call, "effect"], registry=registry
        )
        self._calls = Counter(
            "retrypolicy_calls", "Runs of calls, by how they ended.", [*call, "effect", "reason"], registry=registry
        )
        self._waits = Histogram(
            "retrypolicy_wait_seconds",
            "Waits between the attempts of a call.",
            call,
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self._events = Counter(
            "retrypolicy_events",
            "Deferred, held and replayed calls, ledgers down, budgets alone.",
            [*call, "event"],
            registry=registry,
        )

    def on_event(self, event: Event) -> None:
        call = (event.policy or "", event.provider or "")
        match event:
            case AttemptEnded():
                self._attempts.labels(*call, event.effect.value).inc()
            case Done():
                self._calls.labels(*call, event.effect.value, event.reason.value).inc()
            case Waiting():
                self._waits.labels(*call).observe(event.seconds)
            case Deferred() | Held() | Replayed() | LedgerDown() | BudgetAlone():
                self._events.labels(*call, type(event).__name__).inc()
            case _:
                pass
