"""Beside OpenTelemetry's instrumentation of requests (a span for a call) and of urllib3 (a span for an attempt)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import requests
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from requests.adapters import HTTPAdapter

from retrypolicy.telemetry.opentelemetry import OpenTelemetryListener
from retrypolicy.testing import Answer, Close, FaultServer
from tests.companions.laws import BUSY, Opened, check_laws, opened_around, plain

SHAPES: list[Opened] = [plain, opened_around(HTTPAdapter)]
shapes = pytest.mark.parametrize("opened", SHAPES, ids=["inherited", "around"])
Instrument = Callable[..., Callable[[], Sequence[ReadableSpan]]]


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider()


@pytest.fixture
def instrument(provider: TracerProvider) -> Iterator[Instrument]:
    """Instrument these, and get a function that tells the spans that have ended."""
    exporter, used = InMemorySpanExporter(), []
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def start(*instrumentors: Any) -> Callable[[], Sequence[ReadableSpan]]:
        for make in instrumentors:
            used.append(make())
            used[-1].instrument(tracer_provider=provider)
        return exporter.get_finished_spans

    yield start
    for each in used:
        each.uninstrument()


def statuses(spans: Sequence[ReadableSpan]) -> list[Any]:
    return [(span.attributes or {}).get("http.status_code") for span in spans]


def parents(server: FaultServer) -> list[str]:
    """The span that each request at the server says it comes from."""
    return [(request.header("traceparent") or "--").split("-")[2] for request in server.requests]


@shapes
@pytest.mark.parametrize("instrumentor", [RequestsInstrumentor, URLLib3Instrumentor])
def test_laws(instrument: Instrument, opened: Opened, instrumentor: Any) -> None:
    instrument(instrumentor)
    check_laws(opened)


@shapes
def test_requests_has_a_span_for_the_call(instrument: Instrument, opened: Opened) -> None:
    spans = instrument(RequestsInstrumentor, URLLib3Instrumentor)  # the first one silences the second one
    with FaultServer([BUSY, Answer(200)]) as server, opened() as session:
        session.post(server.url(), data=b"pay")
        [span] = spans()
        assert statuses([span]) == [200]
        assert parents(server) == [f"{span.context.span_id:016x}"] * 2


@shapes
def test_urllib3_has_a_span_for_each_attempt(instrument: Instrument, opened: Opened) -> None:
    spans = instrument(URLLib3Instrumentor)
    with FaultServer([BUSY, Close("request"), Answer(200)]) as server, opened() as session:
        session.get(server.url())
        assert statuses(spans()) == [503, None, 200]
        assert parents(server) == [f"{span.context.span_id:016x}" for span in spans()]
        assert spans()[1].status.is_ok is False


@shapes
def test_a_lost_answer_is_an_error_on_the_span(instrument: Instrument, opened: Opened) -> None:
    spans = instrument(RequestsInstrumentor)
    with FaultServer([Close("request")]) as server, opened() as session:
        with pytest.raises(requests.ConnectionError):
            session.post(server.url(), data=b"pay")
        assert server.complete == 1
    [span] = spans()
    assert span.status.is_ok is False


def test_our_span_is_inside_that_of_the_call(instrument: Instrument, provider: TracerProvider) -> None:
    spans = instrument(RequestsInstrumentor)
    listener = OpenTelemetryListener(tracer=provider.get_tracer("retrypolicy"))
    with FaultServer([BUSY, Answer(200)]) as server, plain(listeners=[listener]) as session:
        session.post(server.url(), data=b"pay")
    ours, theirs = spans()
    assert ours.name == "retrypolicy POST"
    assert ours.parent is not None
    assert ours.parent.span_id == theirs.context.span_id
