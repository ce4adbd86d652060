"""Origins: which URLs speak of the same server (RFC 6454)."""

from __future__ import annotations

from urllib.parse import urlsplit


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port (RFC 6454, section 4)."""
    parts = urlsplit(url)
    return parts.scheme.lower(), (parts.hostname or "").lower(), parts.port or DEFAULT_PORTS.get(parts.scheme.lower())


def same_origin(url: str, other: str) -> bool:
    """Do they speak of the same server?"""
    return origin(url) == origin(other)


DEFAULT_PORTS = {"http": 80, "https": 443}
