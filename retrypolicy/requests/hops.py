"""Hops: what requests or an auth handler re-sends for one call (redirects, digest, NTLM) belongs to that call.

Every copy that requests makes of a PreparedRequest shares its `hooks` dict: that ties the hops of a call together,
through whatever code re-sends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
from requests.sessions import SessionRedirectMixin

from retrypolicy.call import Call
from retrypolicy.http.origins import same_origin

if TYPE_CHECKING:
    _Response = requests.Response
else:
    _Response = object  # mixed into whatever class the response has

_NAME = "retrypolicy"


class Hop:
    """A call that the next request of the same chain goes on with."""

    def __init__(self, call: Call, url: str) -> None:
        self.call = call
        self._url = url

    def bind(self, request: requests.PreparedRequest) -> None:
        request.hooks[_NAME] = [self]

    def same_origin(self, url: str) -> bool:
        return same_origin(self._url, url)

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


def method_after(response: requests.Response, method: str) -> str:
    """The method with which requests follows this redirect."""
    following = requests.PreparedRequest()
    following.method = method
    SessionRedirectMixin().rebuild_method(following, response)
    return following.method


class _Stays(_Response):
    """Mixed in front of a response's class."""

    @property
    def is_redirect(self) -> bool:
        """No: what it answers may have taken effect, and is not sent again to where it leads."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return _usual, (type(self).__mro__[2], self.__getstate__())  # pickle finds no class that was made on the way


def _usual(cls: type[requests.Response], state: Any) -> requests.Response:
    response = cls.__new__(cls)
    response.__setstate__(state)
    return response


def stay(response: requests.Response) -> None:
    """Have a redirect returned to the caller, instead of followed by requests."""
    cls = type(response)
    response.__class__ = type(cls.__name__, (_Stays, cls), {"__module__": cls.__module__})
