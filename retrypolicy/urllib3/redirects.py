"""Redirects: what urllib3 counts of them, and what ties the hops of one request together."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry
from urllib3.util.retry import RequestHistory

from retrypolicy.http.origins import same_origin
from retrypolicy.reports import attach

if TYPE_CHECKING:
    from retrypolicy.call import Call
    from retrypolicy.policy import RetryPolicy
    from retrypolicy.urllib3.body import Body


class Redirects(Retry):
    """Stands where urllib3 hands a request's `retries` on from hop to hop: in the calls of `urlopen`.

    It counts redirects as the `Retry` that it stands for does, and carries policy and call along.
    """

    call: Call | None = None  # of the hop before
    url: str = ""
    body: Body | None = None
    stays = False  # the redirect is not followed: its answer is returned

    def __init__(self, counter: Retry, policy: RetryPolicy | None, redirect: bool) -> None:
        # Not Retry.__init__: what urllib3 asks for is the counter's.
        self.counter = counter
        self.policy = policy
        self._redirect = redirect

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["counter"], name)

    @property
    def raise_on_redirect(self) -> bool:  # type: ignore[override]  # urllib3 only reads it  # pyright: ignore[reportIncompatibleVariableOverride]
        """What becomes of a redirect that is one too many: an error, or what is returned?"""
        return not self.stays and bool(self.counter.raise_on_redirect)

    @property
    def followed(self) -> bool:
        """Would urllib3 follow a redirect, or make an error of it?"""
        return self._redirect and not self.stays and (self.raise_on_redirect or self.redirect != 0)

    def over(self, call: Call, url: str, body: Body, past: tuple[RequestHistory, ...]) -> None:
        """A hop is over: the next one goes on with its call."""
        self.call, self.url, self.body = call, url, body
        if past:
            self.counter = copy.copy(self.counter)
            self.counter.history = self.counter.history + past

    def same_origin(self, url: str) -> bool:
        """Is this at the origin of the hop before?"""
        return same_origin(self.url, url)

    def increment(self, *args: Any, **kwargs: Any) -> Redirects:
        """For the next hop. Raises MaxRetryError if there were too many, or the last one is not followed."""
        if self.stays:
            raise MaxRetryError(kwargs["_pool"], self.url)
        try:
            counter = self.counter.increment(*args, **kwargs)
        except MaxRetryError as error:
            if self.call is not None:
                attach(error, self.call.report())
            raise
        following = Redirects(counter, self.policy, self._redirect)
        following.call, following.url, following.body = self.call, self.url, self.body
        return following
