"""A response made from what the ledger kept: the call was done earlier, and nothing was sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests

from retrypolicy.urllib3.answers import replayed

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter


def replayed_response(
    adapter: HTTPAdapter, request: requests.PreparedRequest, made: tuple[int, dict[str, str], bytes]
) -> requests.Response:
    """A whole response, marked by a header of its own. `made`: status, headers, body."""
    response = adapter.build_response(request, replayed(request.method or "GET", made))
    _ = response.content  # at hand, as after any attempt
    return response
