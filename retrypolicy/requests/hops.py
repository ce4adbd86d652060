"""Hops: what requests or an auth handler re-sends for one call (redirects, digest, NTLM) belongs to that call.

Every copy that requests makes of a PreparedRequest shares its `hooks` dict: that ties the hops of a call together,
through whatever code re-sends them.
"""

from __future__ import annotations

from typing import Any

import requests

from retrypolicy.call import Call
from retrypolicy.http.origins import origin

_NAME = "retrypolicy"


class Hop:
    """A call that the next request of the same chain goes on with."""

    def __init__(self, call: Call, url: str) -> None:
        self.call = call
        self._origin = origin(url)

    def bind(self, request: requests.PreparedRequest) -> None:
        request.hooks[_NAME] = [self]

    def same_origin(self, url: str) -> bool:
        return self._origin == origin(url)

    def __call__(self, response: Any, *args: Any, **kwargs: Any) -> None:
        """A hook of no effect, for code that calls all hooks."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()  # a pickled response must not carry the call


def _nothing() -> None:
    return None


def hop_of(request: requests.PreparedRequest) -> Hop | None:
    """The call that this request goes on with, taken from it: each hop is used once."""
    found = request.hooks.pop(_NAME, None) if request.hooks else None
    return found[0] if found and isinstance(found[0], Hop) else None
