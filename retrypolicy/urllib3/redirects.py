"""Redirects: what urllib3 counts of them, and what ties the hops of one request together."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

from urllib3.util import Retry
from urllib3.util.retry import RequestHistory

from retrypolicy.http.origins import origin

if TYPE_CHECKING:
    from retrypolicy.call import Call
    from retrypolicy.engine import Engine
    from retrypolicy.urllib3.body import Body


class Redirects(Retry):
    """Stands where urllib3 hands a request's `retries` on from hop to hop: in the calls of `urlopen`.

    It counts redirects as the `Retry` that it stands for, and carries the engine and the call along.
    """

    call: Call | None = None  # of the hop before
    url: str = ""
    body: Body | None = None

    def __init__(self, counter: Retry, engine: Engine, redirect: bool) -> None:
        self.engine = engine
        self.counter = counter
        self.redirect_wanted = redirect
        self._show()

    def _show(self) -> None:
        """Look like the counter, for urllib3's questions."""
        self.__dict__.update(self.counter.__dict__)

    @property
    def followed(self) -> bool:
        """Would urllib3 follow a redirect, or make an error of it?"""
        return self.redirect_wanted and (self.raise_on_redirect or self.redirect != 0)

    def over(self, call: Call, url: str, body: Body, past: tuple[RequestHistory, ...]) -> None:
        """A hop is over: the next one goes on with its call."""
        self.call, self.url, self.body = call, url, body
        if past:
            self.counter = copy.copy(self.counter)
            self.counter.history = self.counter.history + past
            self._show()

    def same_origin(self, url: str) -> bool:
        """Is this at the origin of the hop before?"""
        return origin(self.url) == origin(url)

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        """For the next hop. Raises MaxRetryError if there were too many."""
        counter = self.counter.increment(*args, **kwargs)
        following = copy.copy(self)
        following.counter = counter
        following._show()
        return following
