"""Run: one `RetryAdapter.send`, attempt by attempt. Binds a PreparedRequest to a Call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import requests
from requests.exceptions import ChunkedEncodingError, ContentDecodingError, InvalidURL, RetryError

from retrypolicy.call import Call
from retrypolicy.decision import Decision, raises
from retrypolicy.errors import RetryPolicyError
from retrypolicy.outcome import Answered, Reason
from retrypolicy.reports import attach, attach_call
from retrypolicy.requests.content import is_cut_short, read
from retrypolicy.requests.errors import as_requests_error
from retrypolicy.requests.hops import Hop, hop_of, method_after, stay
from retrypolicy.requests.replay import replayed_response
from retrypolicy.requests.unbuilt import Unbuilt, build
from retrypolicy.urllib3.answers import huge
from retrypolicy.urllib3.sending import Sending, clipped, drop_key

if TYPE_CHECKING:
    from retrypolicy.providers import Provider
    from retrypolicy.requests.adapter import RetryAdapter


class Run(Sending):
    """One `send` of an adapter."""

    def __init__(
        self,
        adapter: RetryAdapter,
        request: requests.PreparedRequest,
        options: dict[str, Any],
        send: Callable[..., requests.Response],
        hooked: bool,
    ) -> None:
        super().__init__(
            adapter.engine,
            request.method or "GET",
            request.url or "",
            request.body,
            options["stream"],
            adapter.max_idle,
        )
        self.request = self._original = request
        self._adapter = adapter
        self._options = options
        self._send = send  # one attempt, through whatever sends
        self._hooked = hooked

    # -- beginning and end, as `Sending` asks for them ----------------------------------------------------------------

    def begin(self) -> Call:
        request, hooked = self._original, self._hooked
        hop = hop_of(request)
        if hop is None:
            return self.engine.begin(
                self.method, self.url, own_key=self._own_key, content=self._contents, hooked=hooked
            )
        same = hop.same_origin(self.url)
        if same:
            self.engine = hop.call.engine  # the path may be another adapter's: the call stays with its own ledger
        if not same or self.method != hop.call.method:
            drop_key(request.headers, hop.call.provider)
        return self.engine.follow(hop.call, self.method, self.url, same_origin=same, hooked=hooked)

    def _own_key(self, provider: Provider | None) -> str | None:
        return self.own_key(self._original.headers, provider)

    def _contents(self, provider: Provider | None) -> bytes:
        kind: str | bytes = self._original.headers.get("Content-Type", "")
        return self.body.content(self.method, self.url, kind, provider)

    def finish(self, decision: Decision) -> requests.Response:
        call, response = self.call, self.response
        if type(response) is Unbuilt:
            build(response)
        if self._past:
            self.leave_traces(response.raw)
        if response.status_code >= 300 or decision.reason is not Reason.SUCCESS:
            response = self._finish_unusual(decision, response)
        attach_call(response, call)
        if self.stream and self.watch is not None and not response.is_redirect:  # its body is read on the way
            self.watch.deadline = None  # the body is the caller's to read, in their own time
        return response  # type: ignore[no-any-return]  # a requests.Response

    def _finish_unusual(self, decision: Decision, response: requests.Response) -> requests.Response:
        call = self.call
        if response.is_redirect and not self.may_go_on(
            method_after(response, self.method), response.headers["location"]
        ):
            stay(response)
        elif response.status_code in _FOLLOWED:
            Hop(call, self.url).bind(self._original)
        sent_before: requests.Response | None = self.sent_before(decision, response.status_code)
        if sent_before is not None:
            return sent_before
        try:
            if not self.stream and response._content is False and not self._is_for_auth(response):
                read(response)  # too large to be read for an answer that might have been retried
            if raises(call.policy, Answered(status=response.status_code), decision):
                text = f"too many {response.status_code} error responses"
                raise RetryError(text, request=self._original, response=response)
        except Exception as error:
            attach(error, call.report())
            raise
        return response

    def as_own(self, error: RetryPolicyError) -> RetryPolicyError:
        return as_requests_error(error, self._original)

    def replayed(self, made: tuple[int, dict[str, str], bytes]) -> requests.Response:
        return replayed_response(self._adapter, self._original, made)

    # -- one attempt, as `Sending` asks for it -----------------------------------------------------------------------

    def transmit(self, left: float | None) -> requests.Response:
        options = self._options
        if left is not None:
            options = {**options, "timeout": clipped(options["timeout"], left)}
        try:
            return self._send(self.request, **options)
        except requests.ConnectionError as error:
            if is_cut_short(error):
                raise ChunkedEncodingError(*error.args, request=self.request) from error
            raise

    def may_be_repeated(self, raw: Any) -> bool:
        """Could another attempt follow this answer?"""
        policy = self.call.policy
        return raw.status in policy.status_forcelist and self.call.attempts < policy.max_attempts

    def status(self, response: requests.Response) -> int:
        return response.status_code

    def headers(self, response: requests.Response) -> Any:
        return response.raw.headers if type(response) is Unbuilt else response.headers

    def raw(self, response: requests.Response) -> Any:
        return response.raw

    def _is_for_auth(self, response: requests.Response) -> bool:
        """Will a hook look at this answer that may need it as it came? (NTLM and Kerberos dig for the socket in it.)"""
        return response.status_code in (401, 407) and bool(self._original.hooks.get("response"))

    def read(self, response: requests.Response) -> bytes | None:
        if self._is_for_auth(response):
            return None
        if response.status_code >= 400 and huge(response.raw):
            return None
        try:
            return read(response)
        except (ChunkedEncodingError, ContentDecodingError, RuntimeError):
            if response.is_redirect:
                return None  # requests does not mind there: where to go on is in the head
            raise

    def place(self, provider: Provider, outgoing: str) -> None:
        placed = self._original.copy()
        headers: Any = placed.headers  # its stubs allow bytes
        body = provider.place(headers, self.body.given, outgoing)
        if body is not self.body.given:
            placed.body = body
            placed.prepare_content_length(body)
        self.request = placed

    def before_any_pool(self, error: BaseException) -> bool:
        # A URL or a certificate path that can't be used, or something that is neither.
        return isinstance(error, (InvalidURL, ValueError, TypeError, LookupError)) or type(error) is OSError


_FOLLOWED = frozenset({301, 302, 303, 307, 308, 401, 407})
"""Answers after which requests, or an auth handler, may send again for the same call."""
