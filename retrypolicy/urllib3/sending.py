"""Sending: one request under an engine, attempt by attempt. What requests and bare urllib3 have in common."""

from __future__ import annotations

import time
from http.client import HTTPMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from urllib3.util import Retry, Timeout
from urllib3.util.retry import RequestHistory

from retrypolicy.call import Call, Renew, Replay
from retrypolicy.decision import Decision
from retrypolicy.errors import CallRefused, ConfigurationError, RetryPolicyError
from retrypolicy.http.origins import same_origin
from retrypolicy.http.pushback import pushback
from retrypolicy.outcome import Answered, Failed, Outcome, Reason, Stage, interrupts, surely_unsent
from retrypolicy.reports import attach, attach_call
from retrypolicy.urllib3.answers import discard, set_retries, worth_reading
from retrypolicy.urllib3.body import Body
from retrypolicy.urllib3.failures import failure_of
from retrypolicy.urllib3.wire import Watch, current_watch, track

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from retrypolicy.engine import Engine
    from retrypolicy.providers import Provider

KEY_HEADER = "Idempotency-Key"
MAX_IDLE = 4.0
"""Seconds after which a pooled connection is not used again: below the keep-alive of common servers (5 s at
Node.js, Apache httpd and uvicorn), so that a request does not meet a server that is just closing."""
ONE_ATTEMPT = Retry(0, read=False)
"""urllib3's own retries are never stacked on ours: it makes one attempt."""


def idle_limit(given: float | None) -> float | None:
    """The argument `max_idle`. Raises `ConfigurationError` for what is no number of seconds."""
    if given is None or (not isinstance(given, (str, bool)) and given >= 0):
        return given
    raise ConfigurationError(f"max_idle: {given!r} is not allowed; must be a number of seconds, or None")


class Sending:
    """One request. The engine asks it for attempts; it keeps the last response or error.

    A transport's subclass says how an attempt is made and read. Class attributes instead of slots: making one is on the
    way of every call.
    """

    call: Call
    error: BaseException | None = None
    response: Any = None
    pool: Any = None  # kept over the attempts: they differ in nothing that chooses it
    watch: Watch | None = None
    _armed = False  # the guard was called for the running attempt
    _pooled = False  # the running attempt has a pool; or somebody else sends, who may have one
    _placed = 0  # which generation of the outgoing key stands in the request
    _unread = False  # the body of the last answer is still on the connection, in whole or in part
    retries: Retry = ONE_ATTEMPT  # what stands on the final answer, with the history of the call
    _past: tuple[RequestHistory, ...] = ()
    _set_cookies: tuple[str, ...] = ()  # by answers that were followed by another attempt

    if TYPE_CHECKING:

        def begin(self) -> Call:
            """The call that this request is, or goes on with."""
            ...

        def finish(self, decision: Decision) -> Any:
            """What the caller gets: the last response, or an error about it."""

        def as_own(self, error: RetryPolicyError) -> RetryPolicyError:
            """This error as one of the transport."""
            ...

        def replayed(self, made: tuple[int, dict[str, str], bytes]) -> Any:
            """A response made of status, headers and body."""

        def transmit(self, left: float | None) -> Any:
            """Make one attempt, of no more than `left` seconds. Returns the response, or raises."""

        def status(self, response: Any) -> int: ...

        def headers(self, response: Any) -> Mapping[str, str]: ...

        def raw(self, response: Any) -> Any:
            """urllib3's response."""

        def read(self, response: Any) -> bytes | None:
            """The body, or None where it is not worth reading yet."""

        def place(self, provider: Provider, outgoing: str) -> None:
            """Put the outgoing key into what is sent; what the caller gave stays as it is."""

    def __init__(self, engine: Engine, method: str, url: str, given: Any, stream: bool, max_idle: float | None) -> None:
        self.engine = engine
        self.method = method
        self.url = url
        self.body = Body(given)
        self.stream = stream
        self._max_idle = max_idle

    def own_key(self, headers: Any, provider: Provider | None) -> str | None:
        """The key that the caller put into the request."""
        given = headers.get(KEY_HEADER)
        if given is None and provider is not None:
            given = provider.given(headers, self.body.given)
        return given.decode("latin-1") if isinstance(given, bytes) else given

    # -- the whole of it -----------------------------------------------------------------------------------------------

    def to_the_end(self) -> Any:
        """Make the call: returns its last response, or raises its last error, with a report on it."""
        try:
            call = self.call = self.begin()
        except RetryPolicyError as error:
            raise self.as_own(error) from None
        if call.guarded:
            call.sent = self.body.as_bytes()
        try:
            decision = self.engine.drive(call, self.attempt)
        except Replay as done:
            response = self.response_from(done.record.result or {})
            if response is None:
                raise self.as_own(call.already_done(done.record)) from None
            attach_call(response, call)
            return response
        except CallRefused as error:
            call.refused(error)
            raise self.as_own(error) from error.__cause__
        except RetryPolicyError as error:  # the key has no place in this request, say
            raise self.as_own(error) from None
        finally:
            call.let_go = None  # it would keep the connection pool alive, in a circle
        if self.error is not None:
            attach(self.error, call.report())
            raise self.error
        return self.finish(decision)

    def response_from(self, result: Any) -> Any:
        """A response to a call that was done, from what is kept of it; None where the provider's profile has none."""
        provider = self.call.provider
        made = None if provider is None else provider.replay(result, self.body.as_bytes())
        return None if made is None else self.replayed(made)

    def sent_before(self, decision: Decision, status: int) -> Any:
        """A refusal that says "you sent this before": the call took effect, so its answer is a success. Else None."""
        provider = self.call.provider
        if decision.reason is not Reason.SUCCESS or status < 400 or provider is None:
            return None
        made = self.response_from(provider.summary(status, None, request=self.call.sent))
        if made is not None and self._unread:
            discard(self.raw(self.response))
        return made

    def may_go_on(self, method: str, location: str) -> bool:
        """May the redirect that was the answer be followed, with this method?"""
        url = urljoin(self.url, location)
        return self.engine.may_follow(self.call, method, url, same_origin=same_origin(self.url, url))

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def attempt(self, call: Call) -> Outcome:
        """Make one attempt and say what came of it. Raises only the guard's refusals."""
        while True:
            if call.honoured and self._placed != call.generation:
                assert call.key is not None
                assert call.provider is not None
                self.place(call.provider, call.provider.outgoing(call.key.value, call.generation))
                self._placed = call.generation
            try:
                return self._try_once(call)
            except Renew as renew:
                # Refused before under other content: the same attempt again, under the next outgoing key.
                call.generation = renew.generation

    def _try_once(self, call: Call) -> Outcome:
        hooked = call.guarded and call.hooked
        self.response = self.error = None
        call.let_go = self.let_go
        self._armed, self._pooled = False, not call.hooked
        self.body.rewind()
        deadline = left = None
        if call.deadline is not None and self.engine.mode != "observe":
            left = call.deadline - self.engine.clock.monotonic()
            deadline = time.monotonic() + left
        watch = self.watch = Watch(on_ready=self._arm if hooked else None, deadline=deadline, max_idle=self._max_idle)
        watch.owner = self
        outcome: Outcome
        try:
            with watch:
                response = self.response = self.transmit(left)
                outcome = self._answered(response, watch)
        except (Renew, Replay, CallRefused):
            raise
        except BaseException as error:
            self.error = error
            outcome = self._failed(error, watch)
        if not self.body.rewindable:
            call.replayable = watch.observed and not watch.body_begun
        if hooked and not self._armed and not surely_unsent(outcome):
            self._arm()  # something took the place of our transport (a mock): the key must be settled all the same
        return outcome

    def _arm(self) -> None:
        self._armed = True
        self.engine.arm(self.call)

    def on_pool(self, pool: Any) -> bool:
        """The running attempt has a pool. If its wire can't be watched (False), nobody will call the guard later."""
        self._pooled = True
        watched = track(pool)
        if not watched and self.call.guarded and self.call.hooked and not self._armed:
            self._arm()
        return watched

    def off_pool(self) -> None:
        """The transport could not prepare what it was about to send: nothing has left."""
        self._pooled = False

    def _answered(self, response: Any, watch: Watch) -> Outcome:
        content: bytes | None = None
        if not self.stream:  # with stream=True the body is the caller's to read
            try:
                content = self.read(response)
            except BaseException as error:  # what the head says holds, whatever it is
                self.error = error
        self._unread = content is None
        status = self.status(response)
        if self.error is None and 200 <= status < 300 and not self.call.cares:
            return _SUCCESS[watch.reused] if status == 200 else Answered(status=status, reused=watch.reused)
        headers, hint, provider = self.headers(response), None, self.call.provider
        if status >= 400 and provider is not None and provider.hints:
            hint = pushback(headers, self.engine.clock.now(), provider.hints)
        return Answered(
            status=status, headers=headers, body=content, body_error=self.error, pushback=hint, reused=watch.reused
        )

    def _failed(self, error: BaseException, watch: Watch) -> Failed:
        outcome = failure_of(error, watch)
        if outcome.stage is Stage.UNOBSERVED and not self._pooled and self.before_any_pool(error):
            return Failed(error=error, stage=Stage.NOT_SENT, retry_limit=0)
        return outcome

    def before_any_pool(self, error: BaseException) -> bool:
        """Is this what the transport raises while it prepares to send?"""
        return isinstance(error, ValueError)

    # -- between attempts, and afterwards ------------------------------------------------------------------------

    def let_go(self) -> None:
        """Another attempt follows: keep what the last one leaves behind, and let go of its connection."""
        response, error = self.response, self.error
        if response is None:
            past = RequestHistory(self.method, self.url, error if isinstance(error, Exception) else None, None, None)
        else:
            raw = self.raw(response)
            past = RequestHistory(self.method, self.url, None, self.status(response), None)
            self._set_cookies += _cookies(raw)
            if self._unread:
                # Bounded by the deadline of the attempt that got the answer.
                try:
                    if worth_reading(raw):
                        self.read(response)
                except Exception as broken:
                    if interrupts(broken):
                        raise
                finally:
                    discard(raw)
        self._past += (past,)

    def leave_traces(self, raw: Any) -> None:
        """On the final answer, where people look: urllib3's history, and the cookies of the answers before it."""
        if self._past and hasattr(raw, "retries"):
            retries = Retry.__new__(Retry)  # what Retry.new() does costs more than all the rest
            retries.__dict__.update(self.retries.__dict__, history=self.retries.history + self._past)
            set_retries(raw, retries)
        if self._set_cookies:
            original: Any = getattr(raw, "_original_response", None)  # cookie jars read its `msg`
            if getattr(original, "msg", None) is not None:
                message = HTTPMessage()  # a new one: mocks put there what the caller sees
                for name, value in [*(("Set-Cookie", cookie) for cookie in self._set_cookies), *original.msg.items()]:
                    message[name] = value
                original.msg = message


_SUCCESS = {reused: Answered(status=200, reused=reused) for reused in (False, True)}


def drop_key(headers: MutableMapping[Any, Any], provider: Provider | None) -> None:
    """No key goes along to another origin, nor with the GET after a 303: the caller's own neither."""
    headers.pop(KEY_HEADER, None)
    if provider is not None and provider.key is not None and provider.key.header is not None:
        headers.pop(provider.key.header, None)


def current_sending() -> Sending | None:
    """The request whose attempt this thread is making."""
    watch = current_watch()
    return None if watch is None else watch.owner


def _cookies(raw: Any) -> tuple[str, ...]:
    message = getattr(getattr(raw, "_original_response", None), "msg", None)
    return () if message is None else tuple(message.get_all("Set-Cookie", ()))


def clipped(timeout: Any, left: float) -> Any:
    """The caller's timeout, no longer than what is left. Accepts all that requests and urllib3 accept."""
    left = max(left, 0.001)

    def cut(value: Any) -> Any:
        return min(value, left) if isinstance(value, (int, float)) else left

    if isinstance(timeout, Timeout):
        return Timeout(connect=cut(timeout.connect_timeout), read=cut(timeout._read), total=timeout.total)
    if isinstance(timeout, tuple):
        return tuple(cut(part) for part in timeout) if len(timeout) == 2 else timeout
    return cut(timeout)
