"""Keys: what names a call, the digests that the ledger keeps of it, and the fingerprint of its content."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from attrs import frozen

from retrypolicy.errors import ConfigurationError, PolicyError

if TYPE_CHECKING:
    from retrypolicy.guard.ledger import Ledger, Record

SECRET_VARIABLE = "RETRYPOLICY_SECRET"  # noqa: S105 - the name of a variable
MAX_KEY_LENGTH = 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def check_key(key: object) -> str:
    """The key, if it can be one. Raises `ConfigurationError` before anything is sent."""
    if not isinstance(key, str):
        raise ConfigurationError(f"key: {type(key).__name__} is not allowed; must be a str")
    if not key.strip():
        raise ConfigurationError("key: an empty key is not allowed; must name the call, as 'receipt/42' does")
    if len(key) > MAX_KEY_LENGTH:
        raise ConfigurationError(f"key: {len(key)} characters are not allowed; must be at most {MAX_KEY_LENGTH}")
    if _CONTROL.search(key):
        raise ConfigurationError("key: control characters are not allowed")
    if _UNSTORABLE.search(key):
        raise ConfigurationError("key: surrogates are not allowed; must be text that UTF-8 can encode")
    return key


def check_label(label: object) -> str:
    """The label, if every ledger can keep it. Raises `PolicyError` before anything is sent."""
    if not isinstance(label, str) or _UNSTORABLE.search(label):
        raise PolicyError.of("label", label, "a str that UTF-8 can encode, without NUL")
    return label


@frozen
class Secret:
    """What digests are keyed with: the current secret first, then older ones that are still read.

    It comes from outside the ledger, so that whoever reads the ledger can't guess keys or contents from it.
    """

    values: tuple[bytes, ...]

    @classmethod
    def of(cls, given: str | bytes | Sequence[str | bytes] | None) -> Secret:
        """The argument, else `RETRYPOLICY_SECRET` (several separated by commas, the current one first), else none.

        Raises `ConfigurationError` for an empty secret.
        """
        if given is None:
            text = os.environ.get(SECRET_VARIABLE, "")
            given = [part.strip() for part in text.split(",")] if text.strip() else []
            if not given:
                return cls((b"",))
        if isinstance(given, (str, bytes)):
            given = [given]
        if not hasattr(given, "__iter__") or any(not isinstance(v, (str, bytes)) for v in given):
            raise ConfigurationError(
                "secret: not allowed; must be a str or bytes, or a list of them, the current one first"
            )
        values = tuple(v.encode() if isinstance(v, str) else bytes(v) for v in given)
        if not values or not all(values):
            raise ConfigurationError("secret: an empty secret is not allowed; must be a long random text")
        return cls(values)

    @property
    def missing(self) -> bool:
        return self.values == (b"",)

    def warn_if_missing(self) -> None:
        """Say once in a process that the ledger's digests can be guessed."""
        if self.missing:
            _warn_of_missing_secret()

    def digest(self, *parts: bytes) -> bytes:
        """32 bytes that name these parts, by the current secret."""
        return _digest(self.values[0], parts)

    def old_digests(self, *parts: bytes) -> Iterable[bytes]:
        """The same by each older secret: where a record from before a rotation may lie."""
        return [_digest(value, parts) for value in self.values[1:]]


@functools.cache
def _warn_of_missing_secret() -> None:
    logging.getLogger("retrypolicy.ledger").warning(
        "no secret is set: whoever can read the ledger can guess keys from its digests; set %s", SECRET_VARIABLE
    )


def _digest(secret: bytes, parts: tuple[bytes, ...]) -> bytes:
    """HMAC-SHA256 of these parts, each after its length: two different lists never make the same message."""
    begun, end = _states(secret, parts[0])
    inner, outer = begun.copy(), end.copy()
    for part in parts[1:]:
        inner.update(len(part).to_bytes(8, "big") + part)
    outer.update(inner.digest())
    return outer.digest()


@functools.lru_cache(maxsize=32)
def _states(secret: bytes, first: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """The two hashes of an HMAC with the key in them, the inner one with the first part as well.

    Every send needs several HMACs of little under few keys, and `hmac` spends most of its time on the key: RFC 2104,
    section 4, has this remedy.
    """
    key = (hashlib.sha256(secret).digest() if len(secret) > 64 else secret).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
    inner.update(len(first).to_bytes(8, "big") + first)
    return inner, hashlib.sha256(bytes(byte ^ 0x5C for byte in key))


def key_digest(secret: Secret, key: str) -> bytes:
    """How the ledger names a key."""
    return secret.digest(b"key", key.encode())


def find(ledger: Ledger, secret: Secret, key: str) -> tuple[Record | None, float]:
    """The record of this key, by the current secret or an older one; and the ledger's time.

    Raises `LedgerUnavailable`.
    """
    record, now = ledger.read(key_digest(secret, key))
    for digest in secret.old_digests(b"key", key.encode()):
        if record is None:
            record, now = ledger.read(digest)
    return record, now


@frozen(kw_only=True)
class Key:
    """Names one call: the same on every attempt and after every restart.

    `value` is the caller's own, a header's, or derived (see `derived`); it never reaches a log or the ledger.
    """

    value: str
    label: str = ""

    def __repr__(self) -> str:
        return "Key(...)"

    @classmethod
    def derived(cls, scope: str, content: bytes, occurrence: int, label: str = "") -> Key:
        """A key per content and occurrence inside a scope (a queue's job id): equal jobs run again get equal keys."""
        parts = (b"derived", scope.encode(), content, str(occurrence).encode())
        return cls(value=_digest(b"", parts).hex()[:32], label=label)


# -- fingerprints ----------------------------------------------------------------------------------------------------


def content_of(
    method: str,
    url: str,
    content_type: str,
    body: bytes | str | None,
    left_out: Sequence[str] | None = None,
) -> bytes:
    """The canonical content of a request: method, URL and body, without what is volatile or secret.

    `left_out`: JSON Pointers (`*` for each element of a list) or names of form fields, as a provider's profile knows
    them. JSON (order of names, white space, escapes) and forms (escapes) are canonicalised where something is left out,
    and where nothing is known of how bodies are built (None). An empty list means that two builds of one message are
    the same bytes, so bytes are what counts: that costs a fraction. Multipart bodies count without their boundary,
    anything else byte for byte. What can't be parsed without doubt (a name twice in one object) counts as it is.
    """
    raw = body.encode() if isinstance(body, str) else body or b""
    kind = _kind(content_type)
    if kind == "multipart/form-data":
        raw = _canonical_multipart(raw, content_type, left_out or ())
    elif left_out is None or left_out:
        if kind == "application/x-www-form-urlencoded":
            raw = _canonical_form(raw, left_out or ())
        elif left_out or "json" in kind:  # some APIs send JSON under no content type at all
            raw = _canonical_json(raw, left_out or ())
    return _head(method, url) + hashlib.sha256(raw).digest()


# Most programs call few addresses, with few types.
@functools.lru_cache(maxsize=64)
def _head(method: str, url: str) -> bytes:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{method}\n{parts.scheme}://{host}{parts.path}?{parts.query}\n".encode()


@functools.lru_cache(maxsize=64)
def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def fingerprint(secret: Secret, content: bytes) -> bytes:
    """How the ledger names a content."""
    return secret.digest(b"content", content)


def _canonical_json(raw: bytes, left_out: Sequence[str]) -> bytes:
    try:
        document = json.loads(raw, object_pairs_hook=_object)
        for pointer in left_out:
            if pointer.startswith("/"):
                _remove(document, pointer.split("/")[1:])
        return _encoder.encode(document).encode()
    except (ValueError, RecursionError):
        return raw


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice: readers differ about what counts")
    return found


_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _remove(value: Any, path: list[str]) -> None:
    name, rest = path[0].replace("~1", "/").replace("~0", "~"), path[1:]
    if isinstance(value, dict):
        if name == "*":
            for child in value.values():
                if rest:
                    _remove(child, rest)
        elif not rest:
            value.pop(name, None)
        elif name in value:
            _remove(value[name], rest)
    elif isinstance(value, list) and rest:
        chosen = value if name == "*" else value[int(name) : int(name) + 1] if name.isdigit() else []
        for child in chosen:
            _remove(child, rest)


def _canonical_form(raw: bytes, left_out: Sequence[str]) -> bytes:
    # Latin-1 loses nothing, whatever the encoding really is.
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    return repr([pair for pair in pairs if pair[0] not in left_out]).encode()


def _canonical_multipart(raw: bytes, content_type: str, left_out: Sequence[str]) -> bytes:
    """The parts in order, without the boundary, which is random."""
    match = re.search(r'boundary=(?:"([^"]+)"|([^\s;"]+))', content_type, re.IGNORECASE)
    if not match:
        return raw
    boundary = b"--" + (match[1] or match[2]).encode("latin-1", "replace")
    kept = []
    for part in raw.split(boundary)[1:-1]:
        name = re.search(rb'\bname="([^"]*)"', part.partition(b"\r\n\r\n")[0])
        if name is None or name.group(1).decode("utf-8", "replace") not in left_out:
            kept.append(hashlib.sha256(part).digest())
    return b"".join(kept)
