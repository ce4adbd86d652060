"""Writes an answer as the bytes that a script asks for, right or wrong."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from retrypolicy.testing.faults.steps import Answer, Interim


def render(answer: Answer, method: str | None) -> tuple[bytes, bytes, bytes]:
    """Status line, headers with the empty line, and body: already cut as the answer says."""
    given = {name.lower() for name, _ in answer.headers}
    headers = list(answer.headers)
    body = b"" if method == "HEAD" or answer.status < 200 or answer.status in (204, 304) else answer.body
    bodiless = answer.status < 200 or answer.status == 204 or (method == "CONNECT" and answer.status < 300)
    if not bodiless and not given & {"content-length", "transfer-encoding"}:
        if answer.framing == "length":
            headers.append(("Content-Length", str(len(answer.body))))
        elif answer.framing == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
    if answer.framing == "chunked" and not bodiless and method != "HEAD" and answer.status != 304:
        body = b"".join(_chunks(body, answer.chunk or max(1, len(body))))
    if answer.framing == "close" and "connection" not in given:
        headers.append(("Connection", "close"))
    reason = _reason(answer.status) if answer.reason is None else answer.reason
    parts = {
        "status": f"{answer.version} {answer.status} {reason}\r\n".encode("latin-1"),
        "headers": _block(headers),
        "body": body,
    }
    if answer.cut is not None:
        part, size = answer.cut
        parts[part] = parts[part][:size]
        for later in {"status": ("headers", "body"), "headers": ("body",), "body": ()}[part]:
            parts[later] = b""
    return parts["status"], parts["headers"], parts["body"]


def render_interim(interim: Interim) -> bytes:
    """One informational answer."""
    return f"HTTP/1.1 {interim.status} {_reason(interim.status)}\r\n".encode("latin-1") + _block(list(interim.headers))


def asks_to_close(answer: Answer) -> bool:
    """Does the answer's own framing or header end the connection?"""
    return answer.framing == "close" or any(
        name.lower() == "connection" and "close" in value.lower() for name, value in answer.headers
    )


def _block(headers: list[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1") + b"\r\n"


def _chunks(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
