"""Run: one `urlopen` of a pool, attempt by attempt. Binds a request of bare urllib3 to a Call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from urllib3 import HTTPHeaderDict
from urllib3.exceptions import DecodeError, HostChangedError, MaxRetryError, ResponseError, UnrewindableBodyError
from urllib3.util import Retry

from retrypolicy.call import Call
from retrypolicy.decision import Decision, raises
from retrypolicy.errors import RetryPolicyError
from retrypolicy.http.origins import DEFAULT_PORTS
from retrypolicy.outcome import Answered
from retrypolicy.reports import attach, attach_call
from retrypolicy.urllib3.answers import cut_short, discard, huge, replayed, set_retries
from retrypolicy.urllib3.errors import as_urllib3_error
from retrypolicy.urllib3.sending import ONE_ATTEMPT, Sending, clipped, drop_key

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from retrypolicy.providers import Provider
    from retrypolicy.urllib3.pool import RetryPool
    from retrypolicy.urllib3.redirects import Redirects

_UNWRAPPED = Retry(False)
"""One attempt, whose error is raised as it is: what `retries=False` asks for."""


def only_once(retries: Retry) -> Retry:
    """What makes urllib3 try once, and raise the kind of error that it would raise under these `retries`."""
    return _UNWRAPPED if retries.total is False else ONE_ATTEMPT


class Run(Sending):
    """One `urlopen` of a pool."""

    def __init__(
        self,
        pool: RetryPool,
        hops: Redirects,
        method: str,
        url: str,
        body: Any,
        headers: Mapping[str, str],
        options: dict[str, Any],
    ) -> None:
        stream = not options.get("preload_content", True)
        super().__init__(pool.terms.engine, method, _absolute(pool, url), body, stream, pool.terms.max_idle)
        if hops.body is not None and body is not None and hops.body.given is body:
            self.body = hops.body  # it knows where the body stood at first
        self.pool = pool
        self.retries = hops.counter
        self._hops = hops
        self._target = url
        self._headers = self._sent_headers = headers
        self._sent_body = body
        self._options = options
        if not stream:
            # Read by us, inside the attempt: so that a body that breaks is not taken for an answer that never came.
            self._options = {**options, "preload_content": False, "release_conn": False}

    # -- beginning and end, as `Sending` asks for them ----------------------------------------------------------------

    def begin(self) -> Call:
        before = self._hops.call
        if before is None:
            return self.engine.begin(
                self.method,
                self.url,
                own_key=self._own_key,
                content=self._contents,
                hooked=True,
                policy=self._hops.policy,
            )
        if self.body is self._hops.body and not before.replayable and not self.body.rewindable:
            error = UnrewindableBodyError("the body was read, and can't be sent again to where the redirect leads")
            attach(error, before.report())
            raise error
        same = self._hops.same_origin(self.url)
        if not same or self.method != before.method:
            self._sent_headers = self._headers = headers = HTTPHeaderDict(self._headers)
            drop_key(headers, before.provider)
        return self.engine.follow(
            before, self.method, self.url, same_origin=same, hooked=True, policy=self._hops.policy
        )

    def _own_key(self, provider: Provider | None) -> str | None:
        return self.own_key(HTTPHeaderDict(self._headers), provider)

    def _contents(self, provider: Provider | None) -> bytes:
        kind: str | bytes = HTTPHeaderDict(self._headers).get("Content-Type", "")
        return self.body.content(self.method, self.url, kind, provider)

    def finish(self, decision: Decision) -> BaseHTTPResponse:
        call = self.call
        response: BaseHTTPResponse = self.response
        sent_before = self.sent_before(decision, response.status)
        if sent_before is not None:
            response = sent_before
        elif self._unread and not self.stream:
            try:
                self._read(response)  # too large to be read for an answer that might have been retried
            except Exception as error:
                attach(error, call.report())
                raise
        if self._past:
            self.leave_traces(response)
        else:
            set_retries(response, self.retries)
        location = response.get_redirect_location()
        self._hops.over(call, self.url, self.body, self._past)
        following = "GET" if response.status == 303 else self.method
        self._hops.stays = bool(location) and not self.may_go_on(following, str(location))
        attach_call(response, call)
        if raises(call.policy, Answered(status=response.status), decision):
            raise self._exhausted(response)
        if self.stream and self.watch is not None and not (location and self._hops.followed):
            self.watch.deadline = None  # the body is the caller's to read, in their own time
        return response

    def _exhausted(self, response: BaseHTTPResponse) -> MaxRetryError:
        """What urllib3 makes of an answer when `raise_on_status` is set and its retries are used up."""
        if self.stream:
            discard(response)
        reason = ResponseError(ResponseError.SPECIFIC_ERROR.format(status_code=response.status))
        error = MaxRetryError(self.pool, self._target, reason)
        error.__dict__["response"] = response
        attach(error, self.call.report())
        return error

    def as_own(self, error: RetryPolicyError) -> RetryPolicyError:
        return as_urllib3_error(error)

    def replayed(self, made: tuple[int, dict[str, str], bytes]) -> BaseHTTPResponse:
        response = replayed(self.method, made)
        response.url = self._target
        set_retries(response, self.retries)
        if not self.stream:
            response.read(cache_content=True)
        return response

    # -- one attempt, as `Sending` asks for it -----------------------------------------------------------------------

    def transmit(self, left: float | None) -> BaseHTTPResponse:
        # What a watched pool raises before it takes a connection is about the request itself.
        self._pooled = not self.on_pool(self.pool)
        options = self._options
        if left is not None:
            options = {**options, "timeout": clipped(options["timeout"], left)}
        pool: RetryPool = self.pool
        return pool.transmit(
            self.method, self._target, self._sent_body, self._sent_headers, only_once(self.retries), **options
        )

    def before_any_pool(self, error: BaseException) -> bool:
        return isinstance(error, (ValueError, TypeError, HostChangedError))

    def status(self, response: BaseHTTPResponse) -> int:
        return response.status

    def headers(self, response: BaseHTTPResponse) -> Any:
        return response.headers

    def raw(self, response: BaseHTTPResponse) -> Any:
        return response

    def read(self, response: BaseHTTPResponse) -> bytes | None:
        return None if response.status >= 400 and huge(response) else self._read(response)

    def _read(self, response: BaseHTTPResponse) -> bytes:
        content = response.read(cache_content=True)
        if response.decode_content and cut_short(response, content):
            raise DecodeError("the body stopped before the end of its compressed stream")
        return content

    def place(self, provider: Provider, outgoing: str) -> None:
        headers = HTTPHeaderDict(self._headers)
        self._sent_body = provider.place(headers, self.body.given, outgoing)
        if self._sent_body is not self.body.given:
            headers.discard("Content-Length")  # urllib3 counts anew
        self._sent_headers = headers


def _absolute(pool: RetryPool, url: str) -> str:
    """The URL of a request: a pool gets the whole of it for a forward proxy only."""
    if not url.startswith("/"):
        return url
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    port = "" if pool.port in (None, DEFAULT_PORTS.get(pool.scheme or "")) else f":{pool.port}"
    return f"{pool.scheme}://{host}{port}{url}"
