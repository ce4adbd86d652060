"""Which methods are safe, and which are idempotent."""

from __future__ import annotations

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
"""Methods that ask for no change: RFC 9110 9.2.1, and QUERY of RFC 10008."""

IDEMPOTENT = SAFE | {"PUT", "DELETE"}
"""Methods of which two requests are meant to do what one does: RFC 9110 9.2.2, and QUERY of RFC 10008.

POST, PATCH and CONNECT are not among them. The property is about what the client asks for: a server
may still log, count or bill every request.
"""
