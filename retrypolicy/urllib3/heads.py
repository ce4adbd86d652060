"""Reading a plain response head, as http.client does, in a fraction of its time: that pays for all our watching.

http.client hands every head to the parser for e-mail. A head that has arrived whole, and that holds nothing but
fields of one line each, needs no more than a pattern.
"""

from __future__ import annotations

import http.client
import re
from typing import Any

_BEGIN = http.client.HTTPResponse.begin
_READ_STATUS = http.client.HTTPResponse._read_status  # type: ignore[attr-defined]  # private; others override it
_PARSE_HEADERS = http.client.parse_headers

_HEAD = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) ([^\r\n]*)\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)*)\r\n")
_FIELD = re.compile(r"([^:]+):[ \t]*([^\r\n]*)\r\n")
_MOST = 99
"""How many fields http.client allows."""


def read_plain(response: Any, begin: Any, seen: bytes) -> bool:
    """Do what `begin`, the response's own, does, if `seen` of its buffer starts with a plain head. False: not done.

    Nobody's patch or override is passed over; what is not plain is left to http.client as it is.
    """
    if (
        getattr(begin, "__func__", None) is not _BEGIN
        or type(response)._read_status is not _READ_STATUS
        or http.client.parse_headers is not _PARSE_HEADERS
    ):
        return False
    plain = _HEAD.match(seen)
    if plain is None or response.debuglevel > 0 or response._method == "HEAD":
        return False
    code, reason, lines = plain.groups()
    status = int(code)
    fields = _FIELD.findall(lines.decode("iso-8859-1"))
    values = {name.lower(): value for name, value in reversed(fields)}  # of several, the first counts
    kind = values.get("content-type", "").lower()
    if status in _WITHOUT_BODY or len(fields) > _MOST or "multipart" in kind or "message" in kind:
        return False
    message = http.client.HTTPMessage()
    for name, value in fields:
        message.set_raw(name, value)
    message.set_payload("")  # as the parser for e-mail leaves it
    response.fp.read(plain.end())
    response.code = response.status = status
    response.reason = reason.decode("iso-8859-1").strip()
    response.version = 11
    response.headers = response.msg = message
    response.chunked = values.get("transfer-encoding", "").lower() == "chunked"
    if response.chunked:
        response.chunk_left = None
    response.length = None if response.chunked else _length(values.get("content-length"))
    response.will_close = "close" in values.get("connection", "").lower() or (
        not response.chunked and response.length is None
    )
    return True


_WITHOUT_BODY = (204, 304)


def _length(given: str | None) -> int | None:
    """A length that makes no sense is none."""
    try:
        length = int(given or "")
    except ValueError:
        return None
    return length if length >= 0 else None
