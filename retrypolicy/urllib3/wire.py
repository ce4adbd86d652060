"""Watches what one attempt does on the wire, for any urllib3 connection pool.

A pool's connection class is replaced by a subclass of itself (`track`) whose hooks write down how
far the attempt got. Hooked are methods that http.client documents (`connect`, `send`, `request`,
`getresponse`, `response_class`), so the work of other tools (Sentry, OpenTelemetry, vcrpy) stays
undisturbed. What ties a connection to an attempt is a ContextVar (`watching`): nothing is kept on
shared objects, so threads and greenlets may share a session.

The rules that keep a claim sound:

* The stage is SENT from before the first byte on. "Unfinished" is claimed afterwards, and only when
  the socket itself refused bytes. Whatever else ends a send (a signal handler, a soft time limit, a
  killed greenlet) may have come after the last byte, and leaves SENT.
* Nothing seen is UNOBSERVED, never "not sent".
* Two requests under one watch: the weakest claim holds for both.
* Once the attempt is judged (`watching` was left), no byte of it can leave any more.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from urllib3.exceptions import ConnectTimeoutError

from retrypolicy.outcome import Stage
from retrypolicy.urllib3.heads import read_plain
from retrypolicy.urllib3.reading import HeadTruncated, Lines, bounded

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool

    _Connection = HTTPConnection
    _Response = http.client.HTTPResponse
else:
    # Mixed into the class found in the pool: naming a base here would bind us to what is imported
    # now, and vcrpy swaps those names while a cassette is open.
    _Connection = object
    _Response = object


class Watch:
    """What became of one attempt. One for each attempt; read it after `watching` was left.

    Its word is about the connections of tracked pools only, so the transport underneath must make
    one attempt, on one pool.

    `on_ready` is called once, after the connection stands (tunnel and TLS included) and before the
    first byte of the request. What it raises reaches the caller unchanged, if it is neither an
    OSError nor an HTTPException, and nothing is sent.

    `deadline` (`time.monotonic()` seconds) bounds every connect, send and receive, those of the
    response's body included; past it they raise TimeoutError. Set it to None to lift it, when a
    response is handed to a caller who streams it. Not bounded: the resolver, and the drip of a single
    TLS record inside TLS to an https proxy.

    `max_idle` (seconds): a pooled connection whose last response began longer ago is not reused.
    """

    owner: Any = None  # whoever made it, for what is called meanwhile (`current_watch`)
    reused = False  # the connection had served before
    request_complete = False  # its last byte was handed over
    head_complete = False  # the final response's head was read
    body_begun = False  # something may have been taken from the caller's body
    _stage = Stage.UNOBSERVED
    _begun = False  # a byte may have been handed over
    _mixed = False  # more than one request was sent under this watch
    _over = False
    _conn: _Watched | None = None  # that of the request under way
    # Class attributes instead of slots: making a Watch is on the way of every call.

    def __init__(
        self,
        *,
        on_ready: Callable[[], None] | None = None,
        deadline: float | None = None,
        max_idle: float | None = None,
    ) -> None:
        self.on_ready = on_ready
        self.deadline = deadline
        self.max_idle = max_idle

    @property
    def stage(self) -> Stage:
        """How far the attempt got, as far as it can be proved."""
        return self._stage

    @property
    def observed(self) -> bool:
        """Did a tracked connection serve this attempt?"""
        return self._stage is not Stage.UNOBSERVED

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        # First over, then judged: a helper thread that runs in a copy of this context can no longer send.
        self._over = True
        self._conn = self.owner = self.on_ready = None  # no cycles: what they hold is freed at once
        _current.reset(self._token)


_current: ContextVar[Watch | None] = ContextVar("retrypolicy_watch", default=None)


def watching(watch: Watch) -> Watch:
    """Bind a watch to what this thread or greenlet does, as the context manager it returns. Once for each watch."""
    return watch


def current_watch() -> Watch | None:
    """The watch of the attempt that this thread or greenlet is making."""
    return _current.get()


_process = 1  # counts forks


def _after_fork() -> None:
    global _process
    _process += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# Tracking pools

_tracked: dict[tuple[type, type | None], type] = {}


def track(pool: HTTPConnectionPool) -> bool:
    """Make the connections of this pool watchable. Call it before every request: it is cheap when done.

    True: every connection that the pool hands out under a watch is watched. False: the connections
    don't write through http.client (vcrpy's stubs, HTTP/2, urllib3-future, a pool that makes its
    own), so the watch will stay UNOBSERVED.
    """
    pool_class = type(pool)
    base = getattr(pool_class, "ConnectionCls", None)  # asked anew each time: vcrpy patches it
    own = pool.__dict__.get("ConnectionCls")
    if own is not None and getattr(own, "tracks", pool) is base:
        return True
    if own is not None and not issubclass(own, _Watched):
        return False  # somebody chose a class for this very pool
    tracked = _tracked.get((pool_class, base))
    if tracked is None and base is not None and _writes_through_http_client(pool_class, base):
        tracked = _tracked.setdefault((pool_class, base), _subclass(base))
    if tracked is None:
        pool.__dict__.pop("ConnectionCls", None)
        pool.__dict__.pop("_get_conn", None)
        return False
    if pool.num_connections:
        # Older connections may lie in the pool or come back to it; they would send unwatched.
        pool.__dict__["_get_conn"] = partial(_watched_conn, weakref.ref(pool))
    pool.__dict__["ConnectionCls"] = tracked
    return True


def _watched_conn(pool_ref: weakref.ref[HTTPConnectionPool], timeout: float | None = None) -> Any:
    pool = pool_ref()
    assert pool is not None  # it is calling us
    conn = type(pool)._get_conn(pool, timeout)
    if _current.get() is not None and not isinstance(conn, _Watched):
        conn.close()
        conn = pool._new_conn()
    return conn


def _definer(cls: type, name: str) -> str:
    """The module of the class that defines a method. A patched function keeps its class."""
    return next((c.__module__ for c in cls.__mro__ if name in c.__dict__), "")


def _writes_through_http_client(pool_class: type, cls: type) -> bool:
    return (
        _definer(pool_class, "_new_conn") == "urllib3.connectionpool"
        and all(_definer(cls, name) == "http.client" for name in ("send", "endheaders", "_send_output"))
        and _definer(cls, "request") in ("urllib3.connection", "http.client")
        and isinstance(response_class := getattr(cls, "response_class", None), type)
        and issubclass(response_class, http.client.HTTPResponse)
    )


def _subclass(base: type) -> type:
    # The names stay the same: they are in error messages and logs.
    response: type = base.response_class  # type: ignore[attr-defined]  # checked above
    watched_response = type(response.__name__, (_WatchedResponse, response), {"__module__": response.__module__})
    members = {"__module__": base.__module__, "response_class": watched_response, "tracks": base}
    return type(base.__name__, (_Watched, base), members)


# The connection


class _Watched(_Connection):
    """Mixed in front of a connection class."""

    _connecting = False  # what is sent now is for the proxy, not the request
    _last_use: float | None = None  # when the last response over the present socket began
    _process = 0
    _head: bytes | None = b""  # None: the next send is the head; then the head; b"" outside of request()
    _body_sent = 0

    def connect(self) -> None:
        self._last_use = None
        self._process = _process
        watch = _current.get()
        if watch is not None and not watch._begun:
            watch._stage = Stage.NOT_CONNECTED
        self._connecting = True
        try:
            super().connect()
        finally:
            self._connecting = False
        if watch is not None and not watch._begun:
            watch._stage = Stage.NOT_SENT

    def _new_conn(self) -> socket.socket:
        watch = _current.get()
        if watch is None or watch.deadline is None:
            return super()._new_conn()
        timeout, options = self.timeout, self.socket_options
        left = watch.deadline - monotonic()
        if left <= 0:
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out. (no time left)")
        self.timeout = _shorter(timeout, left)
        self.socket_options = _OptionsUntil(watch.deadline, options or ())  # type: ignore[assignment]  # only iterated
        try:
            sock = super()._new_conn()
        finally:
            self.timeout, self.socket_options = timeout, options
        self._bound(sock, watch.deadline)  # for the TLS handshake, which the C code bounds as a whole
        return sock

    def _tunnel(self) -> None:
        watch = _current.get()
        if watch is None or watch.deadline is None:
            return super()._tunnel()
        response_class = self.response_class
        bound: Any = lambda sock, *args, **kwargs: bounded(response_class(sock, *args, **kwargs), sock, watch)  # noqa: E731
        self.response_class = bound
        try:
            super()._tunnel()
        finally:
            del self.response_class
        self._bound(self.sock, watch.deadline)

    def _bound(self, sock: Any, deadline: float) -> None:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        sock.settimeout(_shorter(self.timeout, left))

    @property
    def is_connected(self) -> bool:
        # Asked when the connection is taken out of the pool.
        watch = _current.get()
        if watch is not None:
            if self._process != _process:
                return False  # the parent process goes on using it
            if watch.max_idle is not None and (self._last_use is None or monotonic() - self._last_use > watch.max_idle):
                return False
        return super().is_connected

    def request(self, *args: Any, **kwargs: Any) -> None:
        watch = _current.get()
        if watch is None:
            return super().request(*args, **kwargs)
        if watch._begun:
            watch._mixed = True
            watch._stage = Stage.SENT
            watch.request_complete = watch.head_complete = False
        else:
            watch._stage = Stage.NOT_CONNECTED if self.sock is None else Stage.NOT_SENT
        watch._conn = self
        watch.reused = self._last_use is not None and self.sock is not None
        self._head = None
        self._body_sent = 0
        try:
            super().request(*args, **kwargs)
        except BaseException:
            if self._head is not None and (len(args) > 2 or kwargs.get("body") is not None):
                watch.body_begun = True
            if watch._begun:
                _reset_when_closed(self.sock)
            raise
        finally:
            self._head = b""
        watch.request_complete = True

    def send(self, data: Any) -> None:
        watch = _current.get()
        if watch is None or self._connecting:
            return super().send(data)
        is_head = self._head is None
        if self.sock is None and self.auto_open:
            self.connect()
        if watch.on_ready is not None and not watch._begun:
            self._ready(watch)
        try:
            if watch.deadline is not None:
                self._bound(self.sock, watch.deadline)
            watch._begun = True
            watch._stage = Stage.SENT
            if watch._over:
                raise RuntimeError("the attempt was given up: nothing more is sent")
            super().send(data)
        except OSError as error:
            if watch._begun and not watch._mixed and _from_the_socket(error):
                if is_head:
                    watch._stage = Stage.HEAD_UNFINISHED
                elif self._surely_unfinished(data):
                    watch._stage = Stage.BODY_UNFINISHED
            raise
        if is_head:
            self._head = data
        else:
            watch.body_begun = True
            self._body_sent += len(data) if type(data) is bytes else memoryview(data).nbytes

    def _ready(self, watch: Watch) -> None:
        assert watch.on_ready is not None
        watch.on_ready()
        watch.on_ready = None
        # It took its time. A server that closed an idle connection meanwhile has been seen to do so only now.
        if watch.reused and not super().is_connected:
            raise http.client.RemoteDisconnected("the server closed the idle connection; nothing was sent")

    def _surely_unfinished(self, data: Any) -> bool:
        """Can the server not have the whole body, when `data` was refused in part?

        It can, if the caller declared fewer bytes than the body has.
        """
        head = self._head or b""
        if _CHUNKED.search(head):
            return True
        lengths = _LENGTH.findall(head)
        return bool(lengths) and self._body_sent + memoryview(data).nbytes <= min(map(int, lengths))


_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_SOCKET_MODULES = ("http.client", "ssl", "socket", "socks", __name__)
_SOCKET_PACKAGES = ("urllib3.", "gevent.", "eventlet.")
_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


def _shorter(timeout: Any, left: float) -> float:
    # urllib3 marks "the default" with an object of its own.
    return min(timeout, left) if isinstance(timeout, (int, float)) else left


def _from_the_socket(error: OSError) -> bool:
    """Was it the socket that raised this, so that bytes were left over?

    A signal handler runs inside sendall(), after the last byte too, and may well raise TimeoutError or
    any OSError. It shows in the traceback's innermost frame. An exception set by another thread has no
    frame of its own, but no errno and no message either.
    """
    if error.errno is None and not str(error).endswith("timed out"):
        return False
    trace: TracebackType | None = error.__traceback__
    module = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module in _SOCKET_MODULES or module.startswith(_SOCKET_PACKAGES)


def _reset_when_closed(sock: Any) -> None:
    # Closed with a FIN, the part would look like a whole to servers that take EOF for the end.
    # No socket any more, or TLS inside TLS: there a cut record is never read.
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)


class _OptionsUntil:
    """Socket options that can't be read past the deadline: urllib3 reads them before each address it tries."""

    __slots__ = ("_deadline", "_options")

    def __init__(self, deadline: float, options: Any) -> None:
        self._deadline = deadline
        self._options = options

    def __iter__(self) -> Iterator[Any]:
        if monotonic() >= self._deadline:
            raise TimeoutError("timed out")
        return iter(self._options)


# The response


class _WatchedResponse(_Response):
    """Mixed in front of a response class: notes the first byte, the whole head, and skips 1xx answers."""

    def begin(self, *args: Any, **kwargs: Any) -> None:
        watch = _current.get()
        if watch is None or self.headers is not None or not isinstance(self.fp, io.BufferedReader):
            return super().begin(*args, **kwargs)
        conn = watch._conn
        if watch.deadline is not None and conn is not None:
            bounded(self, conn.sock, watch)
        seen = self.fp.peek(1)  # readline() would lose a part of a line to a timeout
        if seen:
            watch._stage = Stage.ANSWERING
        begin = super().begin
        if not (args or kwargs) and read_plain(self, begin, seen):
            pass
        elif seen.find(b"\r\n\r\n", 12) > 0 and seen[8] == 32 and 50 <= seen[9] <= 53:
            begin(*args, **kwargs)  # all of it is in the buffer: "HTTP/1.1 2" to "5", and its last line
        else:
            self._begin_carefully(*args, **kwargs)
        watch.head_complete = True
        if conn is not None:
            # The server's idle clock starts at the end of its answer, so this errs towards closing.
            conn._last_use = monotonic()

    def _begin_carefully(self, *args: Any, **kwargs: Any) -> None:
        fp: Any = self.fp
        lines: Any = Lines(fp)
        self.fp = lines  # begin() only calls readline()
        try:
            super().begin(*args, **kwargs)
            while 101 < self.status < 200:
                # http.client takes these for the answer, and the answer for that to the next request.
                self.headers = self.msg = None  # type: ignore[assignment]  # as in its __init__
                super().begin(*args, **kwargs)
        finally:
            if self.fp is lines:
                self.fp = fp
        if not lines.last:
            raise HeadTruncated("the connection was closed in the middle of the response head")
