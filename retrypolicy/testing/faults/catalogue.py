"""Every fault that we know a client should survive, by name: for parametrized tests and generated scripts."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from types import MappingProxyType

from retrypolicy.testing.faults.steps import (
    Answer,
    Blackhole,
    Close,
    Handshake,
    Interim,
    Raw,
    Refuse,
    Reset,
    Stall,
    Step,
    Tunnel,
)

_TEXT = b"0123456789" * 10
_ZIPPED = gzip.compress(_TEXT, mtime=0)
_GZIP = {"Content-Encoding": "gzip"}

PORT_FAULTS: Mapping[str, Step] = MappingProxyType({"refuse": Refuse(), "blackhole": Blackhole()})
"""Nothing connects. They end by `FaultServer.skip()`."""

FAULTS: Mapping[str, Step] = MappingProxyType(
    {
        # The request doesn't arrive, or not in full.
        "accept_fin": Close("accept"),
        "accept_rst": Reset("accept"),
        "accept_stall": Stall("accept"),
        "arrival_fin": Close("arrival"),
        "arrival_rst": Reset("arrival"),
        "arrival_half": Close("arrival", how="half"),
        "arrival_stall": Stall("arrival"),
        "part_of_head_fin": Close("head", 10),
        "part_of_head_rst": Reset("head", 10),
        "part_of_head_stall": Stall("head", 10),
        "head_fin": Close("head"),
        "head_rst": Reset("head"),
        "head_half": Close("head", how="half"),
        "head_stall": Stall("head"),
        "part_of_body_fin": Close("body", 1),
        "part_of_body_rst": Reset("body", 1),
        "part_of_body_stall": Stall("body", 1),
        # It arrives, and no answer comes.
        "request_fin": Close("request"),
        "request_rst": Reset("request"),
        "request_half": Close("request", how="half"),
        "request_stall": Stall("request"),
        "request_alert": Close("request", how="alert"),
        "request_garbage": Close("request", how="garbage"),
        # An answer comes early.
        "early_413_read": Answer(413, b"too big", after="head"),
        "early_413_fin": Answer(413, b"too big", after="head", then="fin"),
        "early_503_fin": Answer(503, b"busy", after="head", then="fin"),
        "early_503_rst": Answer(503, b"busy", after="head", then="rst"),
        "stale_answer": Answer(200, b"stale", after="arrival"),
        "unasked_408": Answer(408, after="accept", then="fin", applied=False),
        # The head of the answer is broken.
        "status_line_fin": Answer(200, cut=("status", 7)),
        "status_line_rst": Answer(200, cut=("status", 7), then="rst"),
        "status_line_stall": Answer(200, cut=("status", 7), then="stall"),
        "only_status_line_fin": Answer(200, cut=("headers", 0)),
        "headers_fin": Answer(200, _TEXT, headers={"X-Long": "value"}, cut=("headers", 12)),
        "headers_rst": Answer(200, _TEXT, headers={"X-Long": "value"}, cut=("headers", 12), then="rst"),
        "headers_stall": Answer(200, _TEXT, headers={"X-Long": "value"}, cut=("headers", 12), then="stall"),
        "garbage_status_line": Raw(b"this is not HTTP\r\n\r\n"),
        "wrong_version": Answer(200, version="HTTP/9.9", then="fin"),
        "long_header_line": Answer(200, headers={"X-Long": "x" * 70_000}),
        "too_many_headers": Answer(200, headers=[(f"X-{number}", "x") for number in range(200)]),
        "bad_content_length": Answer(200, b"ok", headers={"Content-Length": "two"}, then="fin"),
        "negative_content_length": Answer(200, b"ok", headers={"Content-Length": "-2"}, then="fin"),
        "conflicting_content_length": Answer(200, b"ok", headers=[("Content-Length", "2"), ("Content-Length", "3")]),
        # Informational answers.
        "interim_100": Answer(200, b"ok", interim=100),
        "interim_103": Answer(200, b"ok", interim=103),
        "interim_103_early": Answer(200, b"ok", interim=Interim(103, every=0.1)),
        "interim_many": Answer(200, b"ok", interim=Interim(103, times=20)),
        "interim_endless": Answer(200, b"ok", interim=Interim(103, times=None, every=0.01)),
        "only_103": Answer(103),
        # The body of the answer is broken.
        "body_fin": Answer(200, _TEXT, cut=("body", 50)),
        "body_rst": Answer(200, _TEXT, cut=("body", 50), then="rst"),
        "body_stall": Answer(200, _TEXT, cut=("body", 50), then="stall"),
        "body_close_notify": Answer(200, _TEXT, cut=("body", 50), then="close_notify"),
        "chunk_fin": Answer(200, _TEXT, framing="chunked", chunk=40, cut=("body", 60)),
        "chunk_rst": Answer(200, _TEXT, framing="chunked", chunk=40, cut=("body", 60), then="rst"),
        "last_chunk_missing": Answer(200, _TEXT, framing="chunked", cut=("body", -5)),
        "bad_chunk_size": Answer(200, b"zz\r\nok\r\n0\r\n\r\n", headers={"Transfer-Encoding": "chunked"}, then="fin"),
        "close_delimited": Answer(200, _TEXT, framing="close"),
        "close_delimited_short": Answer(200, _TEXT, framing="close", cut=("body", 50)),
        "close_delimited_rst": Answer(200, _TEXT, framing="close", cut=("body", 50), then="rst"),
        "wrong_encoding": Answer(200, _TEXT, headers=_GZIP),
        "gzip_short": Answer(200, _ZIPPED[:-9], headers=_GZIP),
        # Slow.
        "drip_head": Answer(200, b"ok", drip=("head", 0.01)),
        "drip_body": Answer(200, b"0123456789", drip=("body", 0.05)),
        "late": Answer(200, b"ok", delay=0.3),
        # The connection afterwards.
        "idle_close": Answer(200, b"ok", then="fin"),
        "unasked_bytes": Answer(200, b"ok", extra="HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"),
        # Answers that ask for patience.
        "429_seconds": Answer(429, headers={"Retry-After": "1"}),
        "429_fraction": Answer(429, headers={"Retry-After": "0.5"}),
        "429_garbage": Answer(429, headers={"Retry-After": "soon"}),
        "429_negative": Answer(429, headers={"Retry-After": "-5"}),
        "429_endless": Answer(429, headers={"Retry-After": "9" * 5_000}),
        "503_seconds": Answer(503, headers={"Retry-After": "1"}),
        "503_past_date": Answer(503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        "503_far_date": Answer(503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}),
        "500": Answer(500),
        "502": Answer(502),
        "503": Answer(503),
        "504": Answer(504),
    }
)
"""Faults on any connection: plain, TLS, through a proxy, new or reused."""

TLS_FAULTS: Mapping[str, Step] = MappingProxyType(
    {
        "hello_fin": Close("hello"),
        "hello_rst": Reset("hello"),
        "hello_stall": Stall("hello"),
        "hello_alert": Close("hello", how="alert"),
        "hello_garbage": Close("hello", how="garbage"),
        "hello_plain_http": Answer(400, b"plain HTTP", after="hello", applied=False),
        "handshake_fin": Close("handshake"),
        "handshake_rst": Reset("handshake"),
        "handshake_stall": Stall("handshake"),
        "certificate_untrusted": Handshake("untrusted"),
        "certificate_expired": Handshake("expired"),
        "certificate_wrong_host": Handshake("wrong_host"),
        "client_certificate_required": Handshake(client_certificate=True),
        "client_certificate_required_1.2": Handshake(client_certificate=True, version="1.2"),
        "request_close_notify": Close("request", how="close_notify"),
    }
)
"""Faults that only TLS has, direct or inside a tunnel."""

TUNNEL_FAULTS: Mapping[str, Step] = MappingProxyType(
    {
        "tunnel_407": Tunnel(Answer(407, headers={"Proxy-Authenticate": 'Basic realm="proxy"'})),
        "tunnel_502": Tunnel(Answer(502, b"no route")),
        "tunnel_503": Tunnel(Answer(503, headers={"Retry-After": "1"})),
        "tunnel_fin": Tunnel(Close("request")),
        "tunnel_rst": Tunnel(Reset("request")),
        "tunnel_stall": Tunnel(Stall("request")),
        "tunnel_arrival_rst": Tunnel(Reset("arrival")),
        "tunnel_status_line_fin": Tunnel(Answer(200, cut=("status", 7))),
        "tunnel_headers_fin": Tunnel(Answer(200, headers={"Via": "1.1 proxy"}, cut=("headers", 4))),
        "tunnel_garbage": Tunnel(Raw(b"this is not HTTP\r\n\r\n")),
        "tunnel_then_fin": Tunnel(Answer(200, then="fin")),
        "tunnel_then_rst": Tunnel(Answer(200, then="rst")),
        "tunnel_then_stall": Tunnel(Answer(200, then="stall")),
    }
)
"""Faults of a proxy while it opens a tunnel."""
