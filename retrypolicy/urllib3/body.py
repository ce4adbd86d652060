"""Request bodies: can they be sent again, and what is their content?"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from retrypolicy.guard.key import content_of

if TYPE_CHECKING:
    from retrypolicy.providers import Provider

_CHUNK = 1 << 20


class Body:
    """A request's body as given. Bytes and text can always be sent again; a file from where it stood, if it can seek;
    an iterator, or a file without a position, only while nothing of it was read (urllib3 would send it empty).
    """

    rewindable = True
    _position: int | None = None

    def __init__(self, given: Any) -> None:
        self.given = given
        if given is None or isinstance(given, (bytes, bytearray, str)):
            return
        self.rewindable = False
        if hasattr(given, "seek") and hasattr(given, "tell"):
            try:
                position = given.tell()
                given.seek(position)
            except (OSError, ValueError, AttributeError):
                return  # a pipe, say
            self._position = position
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

    def content(self, method: str, url: str, kind: str | bytes, provider: Provider | None) -> bytes:
        """What a request with this body and content type says, for its fingerprint: see `content_of`.

        A file is read once and put back. Of a body that can be read only once, nothing is known but where it goes.
        """
        given: Any = self.given
        if given is not None and not isinstance(given, (bytes, bytearray, str)):
            given = self._file_digest() if self.rewindable else b""
        return content_of(
            method,
            url,
            kind if isinstance(kind, str) else kind.decode("latin-1"),
            bytes(given) if isinstance(given, bytearray) else given,
            None if provider is None else (*provider.volatile, *provider.secret),
        )

    def _file_digest(self) -> bytes:
        digest = hashlib.sha256()
        while chunk := self.given.read(_CHUNK):
            digest.update(chunk.encode() if isinstance(chunk, str) else chunk)
        self.rewind()
        return digest.digest()
