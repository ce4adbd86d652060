"""Answers as urllib3 hands them over: was the body cut short; how to be rid of one, and how to make one."""

from __future__ import annotations

import io
from typing import Any

from urllib3 import HTTPResponse
from urllib3.util import Retry

LARGE = 64 * 1024
"""Bytes. A body that is longer, or of unknown length, is not worth reading only to keep its connection."""

HUGE = 1 << 20
"""Bytes. The body of a refusal that is longer is read only if no other attempt follows."""

REPLAYED_HEADER = "X-Retrypolicy-Replayed"
"""Marks a response that was made from what the ledger kept: the call was done earlier, and nothing was sent."""


def cut_short(raw: Any, content: bytes) -> bool:
    """Did a body that was read to its end (`content`) stop in the middle of its gzip or deflate stream?

    urllib3 takes that for the end. It can be told for a response of urllib3's own classes only.
    """
    decoder = getattr(raw, "_decoder", None)
    eof = getattr(getattr(decoder, "_obj", None), "eof", None)
    # Behind a whole gzip member there may be anything (RFC 1952 2.2), and urllib3 overlooks it.
    # No byte at all is no stream. (Bytes of chunks are not counted: nothing but a cut gzip header is missed there.)
    return eof is False and not getattr(decoder, "_state", 0) and bool(content or raw.tell())


def worth_reading(raw: Any) -> bool:
    """Is the rest of this body known to be little?"""
    left = getattr(raw, "length_remaining", None)
    return left is not None and left <= LARGE


def huge(raw: Any) -> bool:
    """Is the body known to be too long to be read for an answer that might be followed by another attempt?"""
    return (getattr(raw, "length_remaining", None) or 0) > HUGE


def set_retries(raw: Any, retries: Retry) -> None:
    """Put `retries` on an answer, and leave it its URL: urllib3 takes that from the end of the history, always."""
    moved = [entry.redirect_location for entry in retries.history if entry.redirect_location]
    url = moved[-1] if moved else getattr(raw, "url", None)
    raw.retries = retries
    raw.url = url


def discard(raw: Any) -> None:
    """Close an answer whose body nobody will read, and give its place in the pool free."""
    if hasattr(raw, "close"):
        raw.close()
    if hasattr(raw, "release_conn"):
        raw.release_conn()


def replayed(method: str, made: tuple[int, dict[str, str], bytes]) -> HTTPResponse:
    """A whole response, marked by a header of its own. `made`: status, headers, body."""
    status, headers, body = made
    return HTTPResponse(
        body=io.BytesIO(body),
        headers={**headers, REPLAYED_HEADER: "true"},
        status=status,
        preload_content=False,
        request_method=method,
    )
