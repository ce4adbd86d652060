"""A response that is built when somebody looks at it: most answers that will be retried are never looked at."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter


class Unbuilt(requests.Response):
    """Stands for `adapter.build_response(request, raw)`, and becomes it at the first question it can't answer."""

    def __init__(self, adapter: HTTPAdapter, request: requests.PreparedRequest, raw: Any) -> None:
        # Not Response.__init__: what it would set is what is saved.
        self.raw = raw
        self.status_code = raw.status
        self.request = request
        self.connection = adapter
        self._content = False
        self._content_consumed = False

    def __getattr__(self, name: str) -> Any:
        build(self)
        return getattr(self, name)


def build(response: requests.Response) -> None:
    """Make it what it stands for, if it is not yet."""
    if type(response) is Unbuilt:
        content = response._content, response._content_consumed
        built = HTTPAdapter.build_response(response.connection, response.request, response.raw)
        object.__setattr__(response, "__class__", requests.Response)
        response.__dict__.update(built.__dict__)
        response._content, response._content_consumed = content
