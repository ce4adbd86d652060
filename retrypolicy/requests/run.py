"""Run: one `RetryAdapter.send`, attempt by attempt. Binds a PreparedRequest to a Call."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import requests
from requests.exceptions import InvalidURL, RetryError
from urllib3.util import Timeout

from retrypolicy.call import Call, Renew, Replay
from retrypolicy.decision import Decision
from retrypolicy.engine import attach, attach_call
from retrypolicy.errors import CallRefused, RetryPolicyError
from retrypolicy.http.pushback import pushback
from retrypolicy.outcome import NOTHING_SENT, Answered, Failed, Outcome, Reason, Stage
from retrypolicy.requests import body as bodies
from retrypolicy.requests.errors import as_requests_error
from retrypolicy.requests.hops import Hop, hop_of
from retrypolicy.requests.replay import replayed_response
from retrypolicy.urllib3.failures import failure_of
from retrypolicy.urllib3.wire import Watch, watching

if TYPE_CHECKING:
    from retrypolicy.providers import Provider
    from retrypolicy.requests.adapter import RetryAdapter

KEY_HEADER = "Idempotency-Key"

_run: ContextVar[Run | None] = ContextVar("retrypolicy_run", default=None)


def current_run() -> Run | None:
    """The send whose attempt this thread is making."""
    return _run.get()


class Run:
    """One `send` of an adapter. The engine asks it for attempts; it keeps the last response or error."""

    __slots__ = (
        "_adapter",
        "_armed_by_hook",
        "_body",
        "_content",
        "_engine",
        "_error",
        "_hop",
        "_options",
        "_placed",
        "_original",
        "_request",
        "_response",
        "_stream",
        "_watched",
        "call",
        "pool",
    )

    def __init__(
        self, adapter: RetryAdapter, request: requests.PreparedRequest, stream: bool, options: dict[str, Any]
    ) -> None:
        self._adapter = adapter
        self._engine = adapter.engine
        self._original = self._request = request
        self._stream = stream
        self._options = options
        self._body = bodies.Body(request.body)
        self._content: bytes | None = None
        self._response: requests.Response | None = None
        self._error: BaseException | None = None
        self._armed_by_hook = False
        self._watched = False
        self._placed = 0  # which generation of the outgoing key stands in the request
        self.pool: Any = None

    # -- beginning and end -------------------------------------------------------------------------------------------

    def to_the_end(self) -> requests.Response:
        request = self._original
        try:
            call = self.call = self._begin()
        except RetryPolicyError as error:
            raise as_requests_error(error, request) from None
        try:
            decision = self._engine.drive(call, self.attempt)
        except Replay as done:
            return self._replay(done.record.result or {}, done)
        except CallRefused as error:
            call.refused(error)
            raise as_requests_error(error, request) from error.__cause__
        return self._finish(decision)

    def _begin(self) -> Call:
        request, engine = self._original, self._engine
        method, url = request.method or "GET", request.url or ""
        hop = self._hop = hop_of(request)
        if hop is None:
            call = engine.begin(
                method,
                url,
                own_key=self._own_key,
                content=self._contents,
                hooked=self._adapter.hooked,
            )
        else:
            if not hop.same_origin(url):
                request.headers.pop(KEY_HEADER, None)  # another origin: no key goes along
            call = engine.follow(hop.call, method, url, same_origin=hop.same_origin(url), hooked=self._adapter.hooked)
        if call.guarded:
            call.sent = self._body.as_bytes()
        return call

    def _own_key(self, provider: Provider | None) -> str | None:
        """The key that the caller put into the request."""
        headers: Any = self._original.headers  # its stubs allow bytes
        given = headers.get(KEY_HEADER)
        if given is None and provider is not None:
            given = provider.given(headers, self._body.given)
        return given.decode("latin-1") if isinstance(given, bytes) else given

    def _contents(self, provider: Provider | None) -> bytes:
        return bodies.content(self._original, self._body, provider)

    def _place_key(self, call: Call) -> None:
        """Put the outgoing key where the provider wants it, on a copy: the caller's request stays as it is."""
        assert call.key is not None
        assert call.provider is not None
        placed = self._original.copy()
        outgoing = call.provider.outgoing(call.key.value, call.generation)
        headers: Any = placed.headers
        body = call.provider.place(headers, self._body.given, outgoing)
        if body is not self._body.given:
            placed.body = body
            placed.prepare_content_length(body)
        self._request, self._placed = placed, call.generation

    def _finish(self, decision: Decision) -> requests.Response:
        call, response = self.call, self._response
        if self._error is not None:
            attach(self._error, call.report())
            raise self._error
        assert response is not None
        if decision.reason is Reason.SUCCESS and response.status_code >= 400 and call.provider is not None:
            # A refusal that says "you sent this before": the call took effect, so its answer is a success.
            made = self._response_from(call.provider.summary(response.status_code, None, request=call.sent))
            response = made if made is not None else response
        exhausted = decision.reason in (Reason.ATTEMPTS_EXHAUSTED, Reason.LIMIT_EXHAUSTED)
        if exhausted and call.policy.on_exhausted == "raise":
            error = RetryError(
                f"too many {response.status_code} error responses", request=self._original, response=response
            )
            attach(error, call.report())
            raise error
        attach_call(response, call)
        if response.status_code in _FOLLOWED:
            Hop(call, self._original.url or "").bind(self._original)
        return response

    def _replay(self, result: Any, done: Replay) -> requests.Response:
        call = self.call
        response = self._response_from(result)
        if response is None:
            raise as_requests_error(call.already_done(done.record), self._original) from None
        attach_call(response, call)
        return response

    def _response_from(self, result: Any) -> requests.Response | None:
        provider = self.call.provider
        made = None if provider is None else provider.replay(result, self._body.as_bytes())
        return None if made is None else replayed_response(self._adapter, self._original, made)

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def attempt(self, call: Call) -> Outcome:
        """Make one attempt and say what came of it. Raises only the guard's refusals."""
        while True:
            if call.honoured and self._placed != call.generation:
                self._place_key(call)
            try:
                return self._try_once(call)
            except Renew as renew:
                # Refused before under other content: the same attempt again, under the next outgoing key.
                call.generation = renew.generation

    def _try_once(self, call: Call) -> Outcome:
        engine = self._engine
        self._response = self._error = None
        self._watched = False
        self._body.rewind()
        deadline = None
        if call.deadline is not None and engine.mode != "observe":
            deadline = time.monotonic() + (call.deadline - engine.clock.monotonic())
        hooked = call.guarded and call.hooked
        watch = Watch(on_ready=self._arm if hooked else None, deadline=deadline, max_idle=self._adapter.max_idle)
        self._armed_by_hook = False
        options = self._options
        if deadline is not None:
            options = {**options, "timeout": clipped(options["timeout"], deadline - time.monotonic())}
        token = _run.set(self)
        try:
            with watching(watch):
                response = self._adapter.transmit(self._request, stream=self._stream, **options)
                self._response = response
                outcome = self._answered(response, watch)
        except (Renew, Replay, CallRefused):
            raise
        except BaseException as error:
            self._error = error
            outcome = self._failed(error, watch)
        finally:
            _run.reset(token)
        call.replayable = self._body.rewindable or (watch.observed and not watch.body_begun)
        if hooked and not self._armed_by_hook and not _surely_unsent(outcome):
            self._arm()  # something took the place of our transport (a mock): the key must be settled all the same
        return outcome

    def _arm(self) -> None:
        self._armed_by_hook = True
        self._engine.arm(self.call)

    def on_pool(self, watched: bool) -> None:
        """The adapter has a pool for this attempt. If its wire can't be watched, nobody will call the guard later."""
        self._watched = True
        if not watched and self.call.guarded and self.call.hooked and not self._armed_by_hook:
            self._arm()

    def _answered(self, response: requests.Response, watch: Watch) -> Outcome:
        content: bytes | None = None
        broken: BaseException | None = None
        if not self._stream:
            try:
                content = response.content
            except Exception as error:
                broken = error
                self._error = error
        else:
            watch.deadline = None  # the body is the caller's to read, in their own time
        status = response.status_code
        hint = None
        provider = self.call.provider
        if status >= 400 and provider is not None and provider.hints:
            hint = pushback(response.headers, self._engine.clock.now(), provider.hints)
        return Answered(
            status=status,
            headers=response.headers if status < 300 else {k.lower(): v for k, v in response.headers.items()},
            body=content,
            body_error=broken,
            pushback=hint,
            reused=watch.reused,
        )

    def _failed(self, error: BaseException, watch: Watch) -> Failed:
        outcome = failure_of(error, watch)
        if outcome.stage is Stage.UNOBSERVED and not self._watched and _before_any_pool(error):
            return Failed(error=error, stage=Stage.NOT_SENT, retry_limit=0)
        return outcome


_FOLLOWED = frozenset({301, 302, 303, 307, 308, 401, 407})
"""Answers after which requests, or an auth handler, may send again for the same call."""


def _surely_unsent(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.stage in NOTHING_SENT


def _before_any_pool(error: BaseException) -> bool:
    """Errors that requests raises while it prepares to send: a URL or a certificate path that can't be used."""
    return isinstance(error, (InvalidURL, ValueError)) or type(error) is OSError


def clipped(timeout: Any, left: float) -> Any:
    """The caller's timeout, no longer than what is left. Accepts all that requests accepts."""
    left = max(left, 0.001)

    def cut(value: Any) -> Any:
        return min(value, left) if isinstance(value, (int, float)) else left

    if isinstance(timeout, Timeout):
        return Timeout(connect=cut(timeout.connect_timeout), read=cut(timeout._read), total=timeout.total)
    if isinstance(timeout, tuple):
        return tuple(cut(part) for part in timeout) if len(timeout) == 2 else timeout
    return cut(timeout)
