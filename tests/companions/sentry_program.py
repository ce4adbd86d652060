"""A program with Sentry in it, which patches http.client for good. Run by test_sentry.py; says "fine" at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import sentry_sdk
from requests.adapters import HTTPAdapter
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from retrypolicy import operation
from retrypolicy.errors import SendHeld
from retrypolicy.guard import MemoryLedger
from retrypolicy.testing import Answer, Close, FaultServer
from tests.companions.laws import BUSY, Opened, check_laws, opened_around, plain

recorded: list[dict[str, Any]] = []


class Recorder(Transport):
    """In the place of the network."""

    def capture_envelope(self, envelope: Envelope) -> None:
        recorded.extend(item.payload.json for item in envelope.items if item.payload.json)


@contextmanager
def transaction() -> Iterator[list[dict[str, Any]]]:
    """What Sentry is told within."""
    recorded.clear()
    with sentry_sdk.start_transaction(name="t", op="test"):
        yield recorded
    sentry_sdk.flush()


def every_attempt_has_a_span(opened: Opened) -> None:
    with FaultServer([BUSY, Close("request"), Answer(200)]) as server, opened() as session:
        with transaction() as told:
            session.get(server.url())
        spans = [span for each in told for span in each.get("spans", ()) if span["op"] == "http.client"]
        assert [span["data"].get("http.response.status_code") for span in spans] == [503, None, 200], spans
        traces = [request.header("sentry-trace") for request in server.requests]
        assert [trace.split("-")[1] for trace in traces if trace] == [span["span_id"] for span in spans]


def our_frames_show_no_secret(opened: Opened) -> None:
    """Sentry sends the local variables of every frame along. (The wire's stand between urllib3's, which have all.)"""
    headers = {"Authorization": "Bearer hush"}
    with FaultServer([Close("request")]) as server, opened(ledger=MemoryLedger()) as session, transaction() as told:
        for _ in range(2):
            try:
                with operation(key="secret-key"):
                    session.post(server.url("/?token=hidden"), data=b"a secret body", headers=headers)
            except (requests.ConnectionError, SendHeld) as error:
                sentry_sdk.capture_exception(error)
        sentry_sdk.flush()
        assert server.complete == 1
    stacks = [value["stacktrace"]["frames"] for each in told for value in each.get("exception", {}).get("values", ())]
    ours = [frame for frames in stacks for frame in frames if str(frame.get("module")).startswith("retrypolicy.")]
    assert len(ours) > 4
    for frame in ours:
        if frame["module"] == "retrypolicy.urllib3.wire":
            continue
        said = json.dumps(frame.get("vars", {}))
        for word in ("hush", "hidden", "secret"):
            assert word not in said, (frame["module"], frame["function"], word, said)


sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Recorder, traces_sample_rate=1.0)
for shape in (plain, opened_around(HTTPAdapter)):
    check_laws(shape)
    every_attempt_has_a_span(shape)
    our_frames_show_no_secret(shape)
print("fine")
