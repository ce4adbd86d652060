"""The words of a fault server's script: values that can be compared, printed and pasted back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import attrs

from retrypolicy._validate import Validator, choice, flag, integer, number, optional_number
from retrypolicy.errors import PolicyError

After = Literal["accept", "hello", "handshake", "arrival", "head", "body", "request"]
"""The points of an exchange, in order. What has happened when the step does its work:

`accept`     the connection was accepted, nothing was read (a reset may meet the client while it still connects);
`hello`      the client's TLS hello was read, nothing was answered;
`handshake`  TLS is up, nothing of a request was read;
`arrival`    the first byte of a request has arrived, nothing of it was read;
`head`       the head was read (or its first `count` bytes);
`body`       the head and `count` bytes of the body were read (as they are on the wire, chunk sizes included);
`request`    the whole request was read.

Without TLS, `hello` and `handshake` mean `arrival`.
"""

End = Literal["keep", "fin", "close_notify", "half", "rst", "alert", "garbage", "stall"]
"""What becomes of the connection then:

`keep`          the rest of the request is read, and the connection waits for the next one;
`fin`           close(): a bare FIN. The kernel follows it with RST if bytes are unread or still come, as on any server;
`close_notify`  TLS says goodbye first (RFC 8446 section 6.1), then as `fin`;
`half`          a FIN, but the server reads on: the request may yet become complete. Never an RST;
`rst`           a reset;
`alert`         a fatal TLS alert, then as `fin`;
`garbage`       a TLS record that can't be decrypted, then as `fin`;
`stall`         silence: neither read nor written again until the server ends.
"""

Closing = Literal["fin", "close_notify", "half", "alert", "garbage"]
Point = Literal["status", "headers", "body"]
Part = Literal["head", "body"]
Framing = Literal["length", "chunked", "close"]
Version = Literal["1.2", "1.3"]
Certificate = Literal["trusted", "untrusted", "expired", "wrong_host"]

BEFORE_REQUEST: frozenset[After] = frozenset({"accept", "hello", "handshake"})


class Value:
    """Prints only what differs from the defaults, so that a failing script is short enough to read."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = attrs.fields(type(self))  # type: ignore[arg-type]  # every subclass is an attrs class
        changed = [field for field in fields if getattr(self, field.name) != field.default]
        last = max((fields.index(field) for field in changed if not field.kw_only), default=-1)
        shown = [repr(getattr(self, field.name)) for field in fields[: last + 1]]
        shown += [f"{field.name}={getattr(self, field.name)!r}" for field in changed if field.kw_only]
        return f"{type(self).__name__}({', '.join(shown)})"


def _must(test: Callable[[Any], bool], allowed: str) -> Validator:
    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not test(value):
            raise PolicyError.of(f"{type(instance).__name__}.{attribute.name}", value, allowed)

    return check


def _word(words: Any) -> Any:  # typed as it would be, type checkers take the values for mere strings
    return choice(*get_args(words))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_wire_text(value: object) -> bool:
    return isinstance(value, str) and all(ord(character) < 256 for character in value)


def _pairs(headers: Any) -> Any:
    if isinstance(headers, Mapping):
        return tuple(headers.items())
    try:
        return tuple((name, value) for name, value in headers)
    except (TypeError, ValueError):
        return headers  # the validator says what is wrong with it


def _to_bytes(body: Any) -> Any:
    return body.encode() if isinstance(body, str) else body


def _interims(interim: Any) -> Any:
    if isinstance(interim, Interim) or _is_int(interim):
        interim = (interim,)
    try:
        return tuple(Interim(each) if _is_int(each) else each for each in interim)
    except TypeError:
        return interim


def _is_drip(value: Any) -> bool:
    return _is_place(value, get_args(Part)) and isinstance(value[1], (int, float)) and 0 <= value[1] < math.inf


def _is_cut(value: Any) -> bool:
    return _is_place(value, get_args(Point)) and _is_int(value[1])


def _is_place(value: Any, words: tuple[str, ...]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] in words


def _are_pairs(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_wire_text(name) and _is_wire_text(text) for name, text in value)


def _are_interims(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, Interim) for each in value)


def _suits_connect(value: Any) -> bool:
    return isinstance(value, Act) and value.after not in BEFORE_REQUEST


_optional = attrs.validators.optional
_after = _word(After)
_count = integer(0, optional=True)
_bytes = _must(lambda value: isinstance(value, bytes), "bytes or str")
_text = _must(_is_wire_text, "a Latin-1 string")
_headers = _must(_are_pairs, "a mapping or pairs of Latin-1 strings")


def _applied() -> Any:
    return attrs.field(default=None, kw_only=True, validator=_optional(flag))


@attrs.frozen(repr=False)
class Interim(Value):
    """An informational answer (1xx, RFC 9110 section 15.2) before the final one.

    `times` says how often it is sent, None for ever; `every` is the pause after each one, in seconds.
    """

    status: int = attrs.field(
        default=103,
        validator=_must(lambda value: _is_int(value) and 100 <= value <= 199, "a whole number from 100 to 199"),
    )
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_pairs, kw_only=True, validator=_headers)
    times: int | None = attrs.field(default=1, kw_only=True, validator=_count)
    every: float = attrs.field(default=0.0, kw_only=True, validator=number(0))


@attrs.frozen(repr=False)
class Answer(Value):
    """Answer the request.

    `framing` says how the client learns the body's length: Content-Length, chunks (of `chunk` bytes each, or one), or
    the end of the connection. A Content-Length or Transfer-Encoding among `headers` replaces the server's own: that
    is how to lie. `interim` are 1xx answers sent before. `after`/`count` say when it is sent: an early 413 is
    `Answer(413, after="head")`. `delay` is a pause before it. `drip=("body", 0.1)` sends the head or the body byte by
    byte, so many seconds apart. `cut=("body", 4)` sends no more than four bytes of the status line, of the headers or
    of the body (as it is on the wire); a negative number leaves so many away. `extra` are bytes that nobody asked for,
    sent behind the answer. `then` is what becomes of the connection; None keeps it where the answer and the client
    allow that, closes it properly where they don't, and is a bare FIN after a `cut`.

    `applied`: would the application have acted? None: yes, once the request is complete, unless the answer is a refusal
    (4xx, 307, 308, 501, 505, 503 with Retry-After). True: already when the head is complete, as a streaming
    application does. False: no.
    """

    status: int = attrs.field(
        default=200,
        validator=_must(lambda value: _is_int(value) and 100 <= value <= 999, "a whole number from 100 to 999"),
    )
    body: bytes = attrs.field(default=b"", converter=_to_bytes, validator=_bytes)
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_pairs, kw_only=True, validator=_headers)
    framing: Framing = attrs.field(default="length", kw_only=True, validator=_word(Framing))
    chunk: int | None = attrs.field(default=None, kw_only=True, validator=integer(1, optional=True))
    reason: str | None = attrs.field(default=None, kw_only=True, validator=_optional(_text))
    version: str = attrs.field(default="HTTP/1.1", kw_only=True, validator=_text)
    interim: tuple[Interim, ...] = attrs.field(
        default=(),
        converter=_interims,
        kw_only=True,
        validator=_must(_are_interims, "Interim values or 1xx numbers"),
    )
    after: After = attrs.field(default="request", kw_only=True, validator=_after)
    count: int | None = attrs.field(default=None, kw_only=True, validator=_count)
    delay: float = attrs.field(default=0.0, kw_only=True, validator=number(0))
    drip: tuple[Part, float] | None = attrs.field(
        default=None, kw_only=True, validator=_optional(_must(_is_drip, "None or ('head' or 'body', seconds)"))
    )
    cut: tuple[Point, int] | None = attrs.field(
        default=None,
        kw_only=True,
        validator=_optional(_must(_is_cut, "None or ('status', 'headers' or 'body', a number of bytes)")),
    )
    extra: bytes = attrs.field(default=b"", converter=_to_bytes, kw_only=True, validator=_bytes)
    then: End | None = attrs.field(
        default=None,
        kw_only=True,
        validator=_optional(_word(End)),
    )
    applied: bool | None = _applied()


@attrs.frozen(repr=False)
class Raw(Value):
    """Send these bytes as they are, where an answer is expected. `then` is a bare FIN unless told."""

    data: bytes = attrs.field(converter=_to_bytes, validator=_bytes)
    after: After = attrs.field(default="request", kw_only=True, validator=_after)
    count: int | None = attrs.field(default=None, kw_only=True, validator=_count)
    then: End = attrs.field(default="fin", kw_only=True, validator=_word(End))
    applied: bool | None = _applied()


@attrs.frozen(repr=False)
class Close(Value):
    """Close the connection without an answer. `how` is one of the ends that close."""

    after: After = attrs.field(default="request", validator=_after)
    count: int | None = attrs.field(default=None, validator=_count)
    how: Closing = attrs.field(default="fin", kw_only=True, validator=_word(Closing))
    applied: bool | None = _applied()

    @property
    def then(self) -> End:
        return self.how


@attrs.frozen(repr=False)
class Reset(Value):
    """Reset the connection (RST) without an answer."""

    after: After = attrs.field(default="request", validator=_after)
    count: int | None = attrs.field(default=None, validator=_count)
    applied: bool | None = _applied()

    @property
    def then(self) -> End:
        return "rst"


@attrs.frozen(repr=False)
class Stall(Value):
    """Fall silent: neither read nor write again, and leave the connection open until the server ends."""

    after: After = attrs.field(default="request", validator=_after)
    count: int | None = attrs.field(default=None, validator=_count)
    applied: bool | None = _applied()

    @property
    def then(self) -> End:
        return "stall"


@attrs.frozen(repr=False)
class Refuse(Value):
    """Nobody listens: connections are refused.

    A server can't see whom its kernel refused, so this lasts `seconds`, or until `FaultServer.skip()`.
    """

    seconds: float | None = attrs.field(default=None, validator=optional_number(0))


@attrs.frozen(repr=False)
class Blackhole(Value):
    """Connections are neither accepted nor refused: the accept queue is full and the kernel drops the SYN (Linux).

    Lasts `seconds`, or until `FaultServer.skip()`.
    """

    seconds: float | None = attrs.field(default=None, validator=optional_number(0))


@attrs.frozen(repr=False)
class Handshake(Value):
    """How the next TLS handshake is done. Where it succeeds, the request behind it takes the next step.

    `certificate`: what the server shows. `client_certificate`: the client must show one of `FaultServer.ca`'s.
    `version`: the only TLS version offered.
    """

    certificate: Certificate = attrs.field(default="trusted", validator=_word(Certificate))
    client_certificate: bool = attrs.field(default=False, kw_only=True, validator=flag)
    version: Version | None = attrs.field(default=None, kw_only=True, validator=_optional(_word(Version)))


Act = Answer | Raw | Close | Reset | Stall


@attrs.frozen(repr=False)
class Tunnel(Value):
    """How the next CONNECT (RFC 9110 section 9.3.6) is answered. A 2xx `Answer` opens the tunnel.

    A CONNECT that meets another step opens the tunnel and leaves the step to the request inside.
    """

    act: Act = attrs.field(
        default=Answer(200),
        validator=_must(_suits_connect, "an Answer, Raw, Close, Reset or Stall that is not about connecting"),
    )


Step = Act | Refuse | Blackhole | Handshake | Tunnel


def as_step(value: Any) -> Step:
    """A step, or a status code in place of `Answer(code)`. Raises PolicyError for anything else."""
    if isinstance(value, Step):
        return value
    if _is_int(value):
        return Answer(value)
    raise PolicyError.of("script", value, "a step, a status code, a function from request to step, or a list of these")


def as_script(script: Any) -> tuple[Any, ...]:
    """Steps and functions in order, from a list or a single one."""
    if isinstance(script, Iterable) and not isinstance(script, (str, bytes, Mapping)):
        return tuple(each if callable(each) else as_step(each) for each in script)
    return (script if callable(script) else as_step(script),)


def refuses(act: Act) -> bool:
    """Does the server say by this answer that the request took no effect? (RFC 9110 section 15)"""
    if not isinstance(act, Answer):
        return False
    if act.status == 503:
        return any(name.lower() == "retry-after" for name, _ in act.headers)
    return 400 <= act.status < 500 or act.status in (307, 308, 501, 505)
