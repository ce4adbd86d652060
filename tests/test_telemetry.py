"""What an engine tells OpenTelemetry and Prometheus."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from retrypolicy import Answered, Constant, Effect, Engine, RetryPolicy, operation
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import AlreadyDone
from retrypolicy.events import Event
from retrypolicy.guard import MemoryLedger
from retrypolicy.requests import mount
from retrypolicy.telemetry.opentelemetry import OpenTelemetryListener
from retrypolicy.telemetry.prometheus import PrometheusListener
from retrypolicy.testing import Answer, FaultServer

POLICY = RetryPolicy(name="receipts", backoff=Constant(seconds=2.0))
SECRETS = ("secret-body", "secret-key", "secret-header", "secret-label", "secret-path")


class Telemetry:
    """An engine's listeners, and what reached the other end of them."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        meters = MeterProvider(metric_readers=[self.reader])
        self.registry = CollectorRegistry()
        self.listeners = [
            OpenTelemetryListener(tracer=provider.get_tracer("test"), meter=meters.get_meter("test")),
            PrometheusListener(registry=self.registry),
        ]

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"policy": "receipts", "provider": "", **labels})

    def metrics(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        [resource] = data.resource_metrics
        return {m.name: list(m.data.data_points) for scope in resource.scope_metrics for m in scope.metrics}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def test_a_call_over_the_wire(telemetry: Telemetry) -> None:
    with FaultServer([Answer(429), Answer(200)]) as server, requests.Session() as session:
        clock = VirtualClock()
        ledger = MemoryLedger(clock=clock)
        mount(session, POLICY, ledger=ledger, secret="for tests", listeners=telemetry.listeners, clock=clock)
        with operation(scope="secret-key", label="secret-label"):
            session.post(server.url("/secret-path"), data=b"secret-body", headers={"X-Token": "secret-header"})
    [span] = telemetry.spans
    assert span.name == "retrypolicy POST"
    assert span.status.status_code is not StatusCode.ERROR
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "retrypolicy.policy": "receipts",
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
        "retrypolicy.effect": "applied",
        "retrypolicy.reason": "success",
    }
    names = "AttemptStarted attempt decided waiting AttemptStarted attempt decided"
    assert " ".join(e.name for e in span.events) == names
    assert dict(span.events[1].attributes or {}) == {
        "number": 1,
        "effect": "not_applied",
        "http.response.status_code": 429,
    }
    counted = {p.attributes["retrypolicy.effect"]: p.value for p in telemetry.metrics()["retrypolicy.attempts"]}
    assert counted == {"not_applied": 1, "applied": 1}
    [waits] = telemetry.metrics()["retrypolicy.wait.duration"]
    assert (waits.count, waits.sum) == (1, 2.0)
    assert telemetry.sample("retrypolicy_attempts_total", effect="not_applied") == 1
    assert telemetry.sample("retrypolicy_calls_total", effect="applied", reason="success") == 1
    assert telemetry.sample("retrypolicy_wait_seconds_sum") == 2.0
    told = span.to_json() + str(telemetry.metrics()) + str(list(telemetry.registry.collect()))
    assert not [secret for secret in SECRETS if secret in told]


def test_calls_that_end_badly(telemetry: Telemetry) -> None:
    clock = VirtualClock()
    ledger = MemoryLedger(clock=clock)
    engine = Engine(POLICY, ledger=ledger, clock=clock, secret="for tests", listeners=telemetry.listeners)

    def lost() -> None:
        raise TimeoutError

    with operation(key="held"), pytest.raises(TimeoutError):
        engine.run(lost)
    with operation(key="done"):
        engine.run(len, "x")
    with operation(key="done"), pytest.raises(AlreadyDone):
        engine.run(len, "x")
    with operation(key="later"):
        engine.run(len, "x", classify=lambda result: Answered(status=429, headers={"Retry-After": "600"}))
    for event in ("Held", "Replayed", "Deferred"):
        assert telemetry.sample("retrypolicy_events_total", event=event) == 1
    by_effect = {str((s.attributes or {}).get("retrypolicy.effect")): s for s in telemetry.spans}
    assert by_effect["unknown"].status.status_code is StatusCode.ERROR
    [attempt] = [e for e in by_effect["unknown"].events if e.name == "attempt"]
    assert dict(attempt.attributes or {}) == {
        "number": 1,
        "effect": "unknown",
        "error.type": "TimeoutError",
        "stage": "unobserved",
    }
    assert {e.name for s in telemetry.spans for e in s.events} >= {"held", "deferred"}


def test_a_span_is_ended_for_every_call_that_began(telemetry: Telemetry) -> None:
    """Whatever ends it: a refusal by the guard, an interrupt, an error."""
    clock = VirtualClock()
    engine = Engine(
        POLICY, ledger=MemoryLedger(clock=clock), clock=clock, secret="for tests", listeners=telemetry.listeners
    )
    began = 0

    class Count:
        def on_event(self, event: Event) -> None:
            nonlocal began
            began += type(event).__name__ == "CallStarted"

    engine.listeners = (*engine.listeners, Count())
    for error in (OSError, KeyboardInterrupt, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            raise error

        with operation(key=error.__name__), pytest.raises(BaseException):  # noqa: B017 - whatever it is
            engine.run(fail, classify=lambda e: Effect.NOT_APPLIED)
    assert began == 3
    assert len(telemetry.spans) == began
