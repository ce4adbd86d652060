"""Answers as urllib3 hands them over: was the body cut short, and how to be rid of one that nobody will read."""

from __future__ import annotations

from typing import Any

LARGE = 64 * 1024
"""Bytes. A body that is longer, or of unknown length, is not worth reading only to keep its connection."""


def cut_short(raw: Any) -> bool:
    """Did a body that was read to its end stop in the middle of its gzip or deflate stream?

    urllib3 takes that for the end. It can be told for a response of urllib3's own classes only.
    """
    decoder = getattr(raw, "_decoder", None)
    eof = getattr(getattr(decoder, "_obj", None), "eof", None)
    # Behind a whole gzip member there may be anything (RFC 1952 2.2), and urllib3 overlooks it.
    return eof is False and not getattr(decoder, "_state", 0) and bool(raw.tell())


def discard(raw: Any) -> None:
    """Let go of an answer whose body was not read: drain what is known to be little, else close the connection.

    Reading it is bounded by the deadline of the attempt that got the answer.
    """
    left = getattr(raw, "length_remaining", None)
    if left is not None and left <= LARGE and hasattr(raw, "drain_conn"):
        raw.drain_conn()
        raw.release_conn()
    elif raw is not None:
        raw.close()
