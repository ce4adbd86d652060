"""Request bodies: can they be sent again, and what is their content?"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import requests

from retrypolicy.guard.key import content_of

if TYPE_CHECKING:
    from retrypolicy.providers import Provider

_CHUNK = 1 << 20


class Body:
    """A request's body as given. Bytes and text can always be sent again; a file from where it stood, if it can seek;
    an iterator, or a file without a position, only while nothing of it was read (urllib3 would send it empty).
    """

    __slots__ = ("_position", "given", "rewindable")

    def __init__(self, given: Any) -> None:
        self.given = given
        self._position: int | None = None
        self.rewindable = given is None or isinstance(given, (bytes, bytearray, str))
        if not self.rewindable and hasattr(given, "seek") and hasattr(given, "tell"):
            try:
                self._position = given.tell()
                given.seek(self._position)
            except (OSError, ValueError, AttributeError):
                self._position = None  # a pipe, say
            else:
                self.rewindable = True

    def rewind(self) -> None:
        """Before an attempt: back to where the body stood at first."""
        if self._position is not None:
            self.given.seek(self._position)

    def as_bytes(self) -> bytes | None:
        """The body, where it is at hand."""
        if isinstance(self.given, str):
            return self.given.encode()
        return bytes(self.given) if isinstance(self.given, (bytes, bytearray)) else None


def content(request: requests.PreparedRequest, body: Body, provider: Provider | None) -> bytes:
    """What the request says, for its fingerprint: see `content_of`.

    A file is read once and put back. Of a body that can be read only once, nothing is known but where it goes.
    """
    given: Any = body.given
    if given is not None and not isinstance(given, (bytes, bytearray, str)):
        given = _file_digest(body) if body.rewindable else b""
    kind: str | bytes = request.headers.get("Content-Type", "")
    return content_of(
        request.method or "GET",
        request.url or "",
        kind if isinstance(kind, str) else kind.decode("latin-1"),
        bytes(given) if isinstance(given, bytearray) else given,
        None if provider is None else (*provider.volatile, *provider.secret),
    )


def _file_digest(body: Body) -> bytes:
    digest = hashlib.sha256()
    while chunk := body.given.read(_CHUNK):
        digest.update(chunk.encode() if isinstance(chunk, str) else chunk)
    body.rewind()
    return digest.digest()
