"""Reading a response: a head to its true end, and nothing past a deadline."""

from __future__ import annotations

import http.client
import io
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrypolicy.urllib3.wire import Watch

MAX_INFORMATIONAL = 10
"""How many 1xx answers may come before the final one (RFC 9110 15.2 sets no limit; we do)."""


class HeadTruncated(http.client.HTTPException):
    """The connection was closed in the middle of a response head.

    http.client takes such a head for a whole one: `HTTP/1.1 200 OK` and a FIN is a success to it.
    """


class TooManyInformational(http.client.HTTPException):
    """More than `MAX_INFORMATIONAL` 1xx answers, and still no final one."""


class Lines:
    """The lines of one or more heads, with an eye on how they end."""

    __slots__ = ("_blocks", "_fp", "last")

    def __init__(self, fp: Any) -> None:
        self._fp = fp
        self._blocks = 0
        self.last = b""

    def readline(self, limit: int = -1) -> bytes:
        if self._blocks > MAX_INFORMATIONAL:
            raise TooManyInformational(f"more than {MAX_INFORMATIONAL} informational responses")
        line: bytes = self._fp.readline(limit)
        self.last = line
        if line in (b"\r\n", b"\n"):
            self._blocks += 1
        return line

    def close(self) -> None:
        self._fp.close()


def bounded(response: http.client.HTTPResponse, sock: Any, watch: Watch) -> http.client.HTTPResponse:
    """Let this response, of which nothing was read yet, read no longer than the watch's deadline."""
    if isinstance(response.fp, io.BufferedReader):
        response.fp = io.BufferedReader(BoundedReads(response.fp.detach(), sock, watch))
    return response


class BoundedReads(io.RawIOBase):
    """A socket's raw reader that no peer can keep alive past the deadline by dripping."""

    def __init__(self, raw: Any, sock: Any, watch: Watch) -> None:
        self._raw = raw
        self._socket = sock
        self._timeout: float | None = sock.gettimeout()
        self._watch = watch

    def readinto(self, buffer: Any) -> int | None:
        deadline = self._watch.deadline
        if deadline is None:  # lifted
            self._socket.settimeout(self._timeout)
        else:
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left if self._timeout is None else min(left, self._timeout))
        count: int | None = self._raw.readinto(buffer)
        return count

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._raw.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)  # people dig for the socket in here
