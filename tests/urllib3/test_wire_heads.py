"""A response head that is read in a short way is read as http.client reads it."""

from __future__ import annotations

import contextlib
import email.parser
import http.client
import io
from typing import Any

import pytest
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st

from retrypolicy.testing import FaultServer, Raw
from retrypolicy.urllib3.heads import read_plain
from retrypolicy.urllib3.wire import Watch, track, watching
from tests.urllib3.wireclient import attempt, pool

PLAIN = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: keep-alive\r\n\r\n"
)


def often(usual: list[bytes], *seldom: bytes) -> st.SearchStrategy[bytes]:
    """One of the usual values nine times out of ten."""
    return st.integers(0, 9).flatmap(lambda roll: st.sampled_from(list(seldom) if roll == 9 else usual))


TEXT = st.binary(max_size=8).map(lambda data: data.replace(b"\n", b""))
FIELDS = st.one_of(
    st.sampled_from([b"Content-Length: ", b"content-length:"]).flatmap(
        lambda name: often([name + b"2"], name + b"+2", name + b"-2", name + b"0", name + b"1_0", name + b"x", name)
    ),
    often([b"Transfer-Encoding: chunked", b"Transfer-encoding:CHUNKED"], b"Transfer-Encoding: gzip, chunked"),
    often([b"Connection: keep-alive", b"Connection: close"], b"connection: Keep-Alive, Close", b"Keep-Alive: 5"),
    often([b"Content-Type: text/plain"], b"Content-Type: multipart/x; boundary=x", b"Content-Type: message/rfc822"),
    TEXT.map(lambda text: b"X-Text:\t " + text + b" "),
    TEXT.map(lambda text: text + b": x"),
    often([b"Set-Cookie: a", b"Set-Cookie: b"], b"", b" folded", b"Space : x", b"From me", b"X: 1\r\n\tfolded", b": x"),
)
LINES = st.tuples(FIELDS, often([b"\r\n"], b"\n")).map(b"".join)
HEADS = st.builds(
    lambda *parts: b"".join(parts[:-1]) + b"".join(parts[-1]) + b"\r\n",
    often([b"HTTP/1.1 "], b"HTTP/1.0 ", b"HTTP/1.2 ", b"HTTP/1.1  "),
    often([b"200", b"404", b"503"], b"204", b"304", b"101", b"599", b"099", b"600", b"2000"),
    often([b" OK\r\n", b" Not Found\r\n"], b"\r\n", b" \r\n", b"  two \r\n", b" \xa0\xe9 \r\n", b" OK\n"),
    st.lists(LINES, max_size=4),
)


class Connected:
    """A socket that has something to read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self.data))  # type: ignore[arg-type]  # raw enough


def opened(data: bytes, method: str = "POST") -> Any:
    return http.client.HTTPResponse(Connected(data), method=method)  # type: ignore[arg-type]  # only its file is used


def state(response: Any) -> dict[str, Any]:
    """All that a response knows, and what is left to read."""
    known = {name: value for name, value in vars(response).items() if name not in ("fp", "headers", "msg")}
    message = None if response.msg is None else vars(response.msg)
    return {**known, "message": message, "same": response.msg is response.headers, "left": response.fp.read()}


@given(HEADS, st.sampled_from(["GET", "GET", "GET", "HEAD"]), st.sampled_from([b"", b"body"]))
@example(PLAIN, "POST", b"ok")
@example(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 99 + b"\r\n", "GET", b"")
@example(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100 + b"\r\n", "GET", b"")
@example(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n", "GET", b"")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\nContent-Length: 3\r\n\r\n", "GET", b"0\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n", "GET", b"")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n", "HEAD", b"")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n", "GET", b"")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n", "GET", b"ok")
@example(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", "GET", b"")
@example(b"HTTP/1.1 100 Continue\r\n\r\n", "GET", b"HTTP/1.1 200 OK\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nContent-Type: message/rfc822\r\n\r\n", "GET", b"")
def test_what_is_read_in_the_short_way_is_what_http_client_reads(head: bytes, method: str, body: bytes) -> None:
    """Whatever the head: either it is left to http.client as it was, or nothing differs afterwards."""
    quick, usual = opened(head + body, method), opened(head + body, method)
    if read_plain(quick, quick.begin, quick.fp.peek(1)):
        usual.begin()
        assert state(quick) == state(usual)
    else:
        assert state(quick) == state(usual)


def test_a_common_head_is_read_in_the_short_way() -> None:
    response = opened(PLAIN + b"ok")
    assert read_plain(response, response.begin, response.fp.peek(1))
    assert response.msg.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert response.read() == b"ok"


@pytest.mark.parametrize(("head", "parsed"), [(PLAIN, 0), (PLAIN.replace(b"nginx", b"nginx\r\n folded"), 1)])
def test_the_short_way_is_taken_where_it_leads(head: bytes, parsed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    usual = email.parser.Parser.parsestr
    monkeypatch.setattr(email.parser.Parser, "parsestr", lambda *args: (seen.append(args), usual(*args))[1])
    with FaultServer([Raw(head + b"ok")]) as server, pool(server, "plain") as target:
        assert attempt(target).content == b"ok"
    assert len(seen) == parsed


@pytest.mark.parametrize("head", [PLAIN, PLAIN.replace(b"\r\n", b"\n")])
@pytest.mark.parametrize("watched", [True, False])
def test_what_begin_is_given_reaches_it(head: bytes, watched: bool) -> None:
    """http.client has given it nothing, and may: how many fields are too many, say."""
    seen: list[Any] = []

    class Own(http.client.HTTPResponse):
        def begin(self, *args: Any, **kwargs: Any) -> None:
            seen.append((args, kwargs))
            super().begin()

    class Connection(urllib3.connection.HTTPConnection):
        response_class = Own

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    target: Any = Pool("127.0.0.1")
    assert track(target)
    response = target.ConnectionCls.response_class(Connected(head + b"ok"), method="GET")
    with watching(Watch()) if watched else contextlib.nullcontext():
        response.begin(1, most=2)
    assert seen == [((1,), {"most": 2})]
    assert response.read() == b"ok"


def no_begin(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    usual = http.client.HTTPResponse.begin
    monkeypatch.setattr(http.client.HTTPResponse, "begin", lambda self: (seen.append(self), usual(self))[1])


def no_parser(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    usual = http.client.parse_headers
    monkeypatch.setattr(http.client, "parse_headers", lambda fp: (seen.append(fp), usual(fp))[1])


def no_status(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    usual = http.client.HTTPResponse._read_status  # type: ignore[attr-defined]  # private
    patched = lambda self: (seen.append(self), usual(self))[1]  # noqa: E731
    monkeypatch.setattr(http.client.HTTPResponse, "_read_status", patched)


@pytest.mark.parametrize("patch", [no_begin, no_parser, no_status])
def test_what_others_put_in_the_place_of_a_part_is_called(patch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    patch(monkeypatch, seen)
    with FaultServer([Raw(PLAIN + b"ok")]) as server, pool(server, "plain") as target:
        assert attempt(target).content == b"ok"
    assert len(seen) == 1


def test_a_connection_that_prints_what_it_reads_does_so(capsys: pytest.CaptureFixture[str]) -> None:
    response = opened(PLAIN)
    response.debuglevel = 1
    assert not read_plain(response, response.begin, response.fp.peek(1))
    response.begin()
    assert "header: Server: nginx" in capsys.readouterr().out
