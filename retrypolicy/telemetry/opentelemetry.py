"""A listener for OpenTelemetry: a span for each call, an event on it for each thing that happened, and two metrics."""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from retrypolicy.events import (
    AttemptEnded,
    CallStarted,
    Decided,
    Deferred,
    Done,
    Event,
    Held,
    Replayed,
    Waiting,
)
from retrypolicy.outcome import Effect, Reason


class OpenTelemetryListener:
    """Tells OpenTelemetry what an engine does. Names of attributes follow its semantic conventions where there are any.

    A call is a span `retrypolicy <method>`, current while it runs are the spans of the HTTP client's instrumentation:
    `http.request.method`, `server.address`, `http.request.resend_count`, `http.response.status_code`, `error.type`, and
    `retrypolicy.policy`, `.provider`, `.effect`, `.reason`. No key, label, header or body is told.

    tracer, meter: for tests; None: those of the global providers.
    """

    def __init__(self, *, tracer: Tracer | None = None, meter: metrics.Meter | None = None) -> None:
        self._tracer = trace.get_tracer("retrypolicy") if tracer is None else tracer
        meter = metrics.get_meter("retrypolicy") if meter is None else meter
        self._attempts = meter.create_counter(
            "retrypolicy.attempts", unit="{attempt}", description="Attempts, by what each did on the server."
        )
        self._waits = meter.create_histogram(
            "retrypolicy.wait.duration", unit="s", description="Waits between the attempts of a call."
        )
        self._lock = threading.Lock()
        self._spans: dict[str, Span] = {}  # of the calls that run

    def on_event(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            span = self._tracer.start_span(
                f"retrypolicy {event.method}", kind=SpanKind.INTERNAL, attributes=_of_call(event)
            )
            with self._lock:
                self._spans[event.call] = span
            return
        with self._lock:
            found = self._spans.pop(event.call, None) if isinstance(event, Done) else self._spans.get(event.call)
        self._count(event)
        if found is not None:
            _tell(found, event)

    def _count(self, event: Event) -> None:
        if isinstance(event, AttemptEnded):
            self._attempts.add(1, {**_of_call(event), "retrypolicy.effect": event.effect.value})
        elif isinstance(event, Waiting):
            self._waits.record(event.seconds, {**_of_call(event), "retrypolicy.reason": event.reason.value})


def _tell(span: Span, event: Event) -> None:
    match event:
        case AttemptEnded():
            facts: dict[str, Any] = {"number": event.number, "effect": event.effect.value}
            if event.status is not None:
                facts["http.response.status_code"] = event.status
                span.set_attribute("http.response.status_code", event.status)
            if event.error is not None:
                facts["error.type"] = event.error
            if event.stage is not None:
                facts["stage"] = event.stage.value
            span.add_event("attempt", facts)
        case Decided():
            span.add_event("decided", {"action": event.action, "reason": event.reason.value})
        case Waiting():
            span.add_event("waiting", {"seconds": event.seconds, "reason": event.reason.value})
        case Deferred():
            span.add_event("deferred", {"until": event.until, "reason": event.reason.value})
        case Held() | Replayed():
            span.add_event(type(event).__name__.lower())
        case Done():
            span.set_attribute("http.request.resend_count", max(0, event.attempts - 1))
            span.set_attribute("retrypolicy.effect", event.effect.value)
            span.set_attribute("retrypolicy.reason", event.reason.value)
            if event.reason is not Reason.SUCCESS and event.effect is not Effect.APPLIED:
                span.set_status(Status(StatusCode.ERROR, event.reason.value))
            span.end()
        case _:
            span.add_event(type(event).__name__)


def _of_call(event: Event) -> dict[str, Any]:
    facts = {
        "http.request.method": event.method,
        "server.address": event.host,
        "retrypolicy.policy": event.policy,
        "retrypolicy.provider": event.provider,
    }
    return {name: value for name, value in facts.items() if value}
