"""A web application that gunicorn loads before it forks; its session has a warm connection by then."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import requests

from retrypolicy import Exponential, RetryPolicy, report
from retrypolicy.requests import mount

UPSTREAM = os.environ["UPSTREAM"]

session = requests.Session()
session.trust_env = False
mount(session, RetryPolicy(backoff=Exponential(base=0.05)), ledger="memory:", max_idle=None)
session.get(f"{UPSTREAM}warm").raise_for_status()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Ask upstream, on behalf of whoever asks us."""
    response = session.post(UPSTREAM + environ["PATH_INFO"][1:], data=str(os.getpid()))
    found = report(response)
    assert found is not None
    waits = [attempt.wait for attempt in found.attempts[:-1]]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"process": os.getpid(), "answer": response.text, "waits": waits}).encode()]
