"""A response made from what the ledger kept: the call was done earlier, and nothing was sent."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import requests
from urllib3 import HTTPResponse

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

REPLAYED_HEADER = "X-Retrypolicy-Replayed"


def replayed_response(
    adapter: HTTPAdapter, request: requests.PreparedRequest, made: tuple[int, dict[str, str], bytes]
) -> requests.Response:
    """A whole response, marked by a header of its own. `made`: status, headers, body."""
    status, headers, body = made
    raw = HTTPResponse(
        body=io.BytesIO(body),
        headers={**headers, REPLAYED_HEADER: "true"},
        status=status,
        preload_content=False,
        request_method=request.method,
    )
    response = adapter.build_response(request, raw)
    _ = response.content  # at hand, as after any attempt
    return response
