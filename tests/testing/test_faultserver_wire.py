"""What a fault server does on a plain connection, seen through a bare socket."""

from __future__ import annotations

import socket

import pytest

from retrypolicy.testing import Answer, Blackhole, Close, FaultServer, Interim, Raw, Refuse, Reset, Stall
from tests.testing.faultclient import CHUNKED, GET, OK, POST, POST_HEAD, connect, exchange, read, rest

AB = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
BIG = b"x" * 30_000_000  # more than two kernels' buffers hold
BIG_POST = b"POST /big HTTP/1.1\r\nHost: example.test\r\nContent-Length: 30000000\r\n\r\n"


# Before and while the request is read


@pytest.mark.parametrize(("step", "end"), [(Close("accept"), "fin"), (Reset("accept"), "rst")])
def test_a_connection_ends_before_a_byte_was_sent(step: Close | Reset, end: str) -> None:
    with FaultServer(step) as server:
        try:
            assert exchange(server) == (b"", end)
        except ConnectionResetError:  # so fast that it meets the client in connect()
            assert end == "rst"
        assert server.settle().requests == ()
        assert server.connections == 1


@pytest.mark.parametrize("step", [Close("arrival"), Close("head", 10), Close("head"), Close("body", 2)])
def test_close_with_unread_bytes_is_a_reset_by_the_kernel(step: Close) -> None:
    with FaultServer(step) as server:
        assert exchange(server, POST) == (b"", "rst")
        assert server.settle().complete == 0


@pytest.mark.parametrize(
    ("step", "size"),
    [
        (Reset("head", 10), 10),
        (Reset("head"), len(POST_HEAD)),
        (Reset("head", 1000), len(POST_HEAD)),
        (Reset("body", 0), len(POST_HEAD)),
        (Reset("body", 2), len(POST_HEAD) + 2),
        (Reset("body", 1000), len(POST)),
        (Reset("body"), len(POST)),
        (Reset("request"), len(POST)),
    ],
)
def test_reads_no_byte_further_than_told(step: Reset, size: int) -> None:
    with FaultServer(step) as server:
        assert exchange(server, POST) == (b"", "rst")
        (request,) = server.settle().requests
        assert request.size == size
        assert request.complete == (size == len(POST))
        assert request.body == POST[len(POST_HEAD) : size]


def test_a_request_of_which_nothing_was_read_has_no_record() -> None:
    with FaultServer([Reset("arrival"), Close("arrival"), Answer()]) as server:
        assert exchange(server, POST)[1] == "rst"
        assert exchange(server, POST)[1] == "rst"
        assert server.settle().requests == ()
        assert server.played == 2


def test_half_close_goes_on_reading() -> None:
    with FaultServer(Close("head", how="half")) as server, connect(server) as sock:
        sock.sendall(POST_HEAD)
        assert rest(sock) == (b"", "fin")
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        (request,) = server.settle().requests
        assert request.complete
        assert request.body == b"hello"


def test_close_after_the_whole_request_is_a_fin() -> None:
    with FaultServer(Close()) as server:
        assert exchange(server, POST) == (b"", "fin")
        assert server.settle().complete == 1


@pytest.mark.parametrize("step", [Stall("accept"), Stall("arrival"), Stall("head", 5), Stall("head"), Stall()])
def test_a_stall_neither_answers_nor_closes(step: Stall) -> None:
    with FaultServer(step) as server:
        assert exchange(server, POST, timeout=0.05) == (b"", "silence")
        assert server.settle().complete == (step.after == "request")


def test_a_stall_stops_the_upload() -> None:
    with FaultServer(Stall("head")) as server, connect(server, timeout=0.2) as sock:
        sock.sendall(BIG_POST)
        with pytest.raises(TimeoutError):
            sock.sendall(BIG)
        (request,) = server.settle().requests
        assert request.size == len(BIG_POST)


def test_chunked_requests_are_read_to_the_byte() -> None:
    with FaultServer() as server:
        for size in range(1, len(CHUNKED)):
            with connect(server) as sock:
                sock.sendall(CHUNKED[:size])
        with connect(server) as sock:
            sock.sendall(CHUNKED)
            read(sock, OK)
        requests = server.settle().requests
        assert server.complete == 1
        assert sorted(request.size for request in requests) == [*range(1, len(CHUNKED) + 1)]
        (whole,) = (request for request in requests if request.complete)
        assert whole.body == b"hello"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        POST.replace(b": 5", b": five"),
        CHUNKED.replace(b"3;x=y", b"zz"),
        CHUNKED.replace(b"hel", b"help"),
    ],
)
def test_a_request_that_breaks_its_framing_is_never_complete(request_bytes: bytes) -> None:
    with FaultServer() as server:
        assert exchange(server, request_bytes)[0] == b""
        assert server.settle().complete == 0
        assert len(server.requests) == 1


def test_expect_100_continue() -> None:
    with FaultServer([Answer(200), Answer(417, after="head")]) as server:
        for answer in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 417 "):
            with connect(server) as sock:
                sock.sendall(POST_HEAD[:-2] + b"Expect: 100-continue\r\n\r\n")
                read(sock, answer)


# Answers


def test_an_answer_as_it_should_be() -> None:
    with FaultServer(Answer(201, "grüezi", headers={"X-One": "1"})) as server, connect(server) as sock:
        for _ in range(2):
            sock.sendall(GET)
            read(sock, b"HTTP/1.1 201 Created\r\nX-One: 1\r\nContent-Length: 7\r\n\r\ngr\xc3\xbcezi")
        assert server.connections == 1
        assert [(each.connection, each.position) for each in server.requests] == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("answer", "seen", "end"),
    [
        (Answer(200, b"abc", framing="close"), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", "fin"),
        (
            Answer(200, b"abc", framing="chunked", chunk=2, then="fin"),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            "fin",
        ),
        (
            Answer(200, b"abc", framing="chunked", cut=("body", -5)),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "fin",
        ),
        (Answer(200, cut=("status", 7), then="rst"), b"HTTP/1.", "rst"),
        (Answer(200, b"abc", cut=("headers", 0)), b"HTTP/1.1 200 OK\r\n", "fin"),
        (Answer(200, b"abc", cut=("headers", 7), then="fin"), b"HTTP/1.1 200 OK\r\nContent", "fin"),
        (Answer(200, b"abc", cut=("body", 1)), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na", "fin"),
        (Answer(200, b"abc", cut=("body", 1), then="rst"), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na", "rst"),
        (Answer(204, reason="Fine", version="HTTP/0.7", then="fin"), b"HTTP/0.7 204 Fine\r\n\r\n", "fin"),
        (Answer(299, then="fin"), b"HTTP/1.1 299 Unknown\r\nContent-Length: 0\r\n\r\n", "fin"),
        (Answer(204, b"no", then="fin"), b"HTTP/1.1 204 No Content\r\n\r\n", "fin"),
        (Answer(103, then="fin"), b"HTTP/1.1 103 Early Hints\r\n\r\n", "fin"),
        (
            Answer(200, b"ok", headers=[("Content-Length", "2"), ("Content-Length", "3")], then="fin"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
            "fin",
        ),
        (
            Answer(200, interim=[100, Interim(103, headers={"Link": "</a>"}, times=2)], then="fin"),
            b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK,
            "fin",
        ),
        (Answer(200, extra="stale", then="fin"), OK + b"stale", "fin"),
        (Answer(200, b"ab", drip=("body", 0.001), then="fin"), AB, "fin"),
        (Answer(200, b"ab", drip=("head", 0.001), then="fin"), AB, "fin"),
        (
            Answer(204, headers={"Connection": "close"}),
            b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            "fin",
        ),
        (Raw(b"\x00\xff"), b"\x00\xff", "fin"),
        (Raw(b"half", then="rst"), b"half", "rst"),
        (Close(how="alert"), b"\x15\x03\x03\x00\x02\x02\x28", "fin"),
    ],
)  # fmt: skip
def test_the_bytes_and_the_end(answer: Answer | Raw | Close, seen: bytes, end: str) -> None:
    with FaultServer(answer) as server:
        assert exchange(server, GET) == (seen, end)
        assert server.settle().complete == 1


def test_head_requests_get_no_body() -> None:
    with FaultServer(Answer(200, b"abc", then="fin")) as server:
        assert exchange(server, GET.replace(b"GET", b"HEAD")) == (OK.replace(b"0\r\n\r\n", b"3\r\n\r\n"), "fin")


@pytest.mark.parametrize("version", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
def test_a_client_that_wants_no_more_is_left(version: bytes) -> None:
    with FaultServer() as server:
        assert exchange(server, GET.replace(b"HTTP/1.1\r\n", version)) == (OK, "fin")


def test_a_stall_in_the_answer() -> None:
    with FaultServer(Answer(200, b"abc", cut=("body", 1), then="stall")) as server:
        assert exchange(server, GET, timeout=0.05) == (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na", "silence")


def test_endless_interim_answers_do_not_outlive_the_server() -> None:
    with FaultServer(Answer(200, interim=Interim(times=None, every=0.001))) as server, connect(server) as sock:
        sock.sendall(GET)
        read(sock, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3)
        assert server.settle().complete == 1  # though it still answers


def test_an_early_answer_and_then_the_rest_is_read() -> None:
    with FaultServer([Answer(403, b"no", after="head"), Answer(200)]) as server, connect(server) as sock:
        sock.sendall(POST_HEAD)
        read(sock, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        assert server.complete == 0
        sock.sendall(b"hello" + GET)
        read(sock, OK)
        assert server.settle().complete == 2
        assert server.connections == 1


def test_an_early_answer_and_then_nothing_is_read() -> None:
    with FaultServer(Answer(503, after="head", then="fin")) as server, connect(server) as sock:
        sock.sendall(BIG_POST + b"x" * 1000)  # unread bytes: the kernel's RST must not swallow the answer
        seen, _ = rest(sock)
        assert seen.startswith(b"HTTP/1.1 503 ")
        assert server.settle().complete == 0


def test_a_stale_answer_comes_before_the_request_is_read() -> None:
    script = [Answer(), Answer(200, b"stale", after="arrival"), Answer(200, b"right")]
    with FaultServer(script) as server, connect(server) as sock:
        sock.sendall(GET)
        read(sock, OK)
        sock.sendall(POST_HEAD)
        read(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale")
        sock.sendall(b"hello" + GET)
        read(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")


# Idle connections


def test_an_idle_close_can_be_noticed_at_once() -> None:
    """The FIN travels with the answer: no client can see the one and not the other."""
    with FaultServer([Answer(200, then="fin"), Answer(200)]) as server:
        for _ in range(20):
            with connect(server) as sock:
                sock.sendall(GET)
                assert sock.recv(len(OK)) == OK
                sock.setblocking(False)
                assert sock.recv(1) == b""
            server.play([Answer(200, then="fin"), Answer(200)])


def test_an_idle_connection_ends_where_the_next_step_is_about_connecting() -> None:
    with FaultServer([Answer(), Answer(), Close("accept"), Answer()]) as server:
        with connect(server) as first, connect(server) as second:
            for sock in (first, second):
                sock.sendall(GET)
                read(sock, OK)
            assert rest(first) == rest(second) == (b"", "fin")
        assert exchange(server, GET)[0] == b""
        assert exchange(server, GET.replace(b"1.1\r\n", b"1.0\r\n")) == (OK, "fin")


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_idle_connections_can_be_dropped_by_the_test(how: str) -> None:
    with FaultServer() as server, connect(server) as sock:
        sock.sendall(GET)
        read(sock, OK)
        server.drop_idle(how)  # type: ignore[arg-type]  # one of the two
        assert rest(sock) == (b"", how)
        assert server.complete == 1


def test_a_request_that_races_with_the_idle_close() -> None:
    with FaultServer([Answer(), Close("arrival"), Answer()]) as server, connect(server) as sock:
        sock.sendall(GET)
        read(sock, OK)
        sock.sendall(POST)
        assert rest(sock) == (b"", "rst")
        assert server.settle().complete == 1


# The port


def test_refused_until_told() -> None:
    with FaultServer([Refuse(), Answer(), Refuse(), Answer(201)]) as server:
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        server.skip()
        with connect(server) as sock:
            sock.sendall(GET)
            read(sock, OK)
            assert rest(sock) == (b"", "fin")  # nobody listens now, so no connection is left over either
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        server.skip()
        with connect(server) as sock:
            sock.sendall(GET)
            read(sock, b"HTTP/1.1 201 ")
        assert server.connections == 2


def test_swallowed_until_told() -> None:
    with FaultServer([Blackhole(), Answer()]) as server:
        with pytest.raises(TimeoutError):
            connect(server, timeout=0.1)
        server.skip()
        with connect(server) as sock:
            sock.sendall(GET)
            read(sock, OK)
        assert server.connections == 1


@pytest.mark.parametrize("step", [Refuse(seconds=1.0), Blackhole(seconds=1.0)])
def test_the_port_opens_by_itself(step: Refuse | Blackhole) -> None:
    with FaultServer([step, Answer()]) as server:
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            connect(server, timeout=0.02)
        while True:
            try:
                sock = connect(server, timeout=0.02)
            except (ConnectionRefusedError, TimeoutError):
                continue
            break
        with sock:
            sock.settimeout(5)
            sock.sendall(GET)
            read(sock, OK)
