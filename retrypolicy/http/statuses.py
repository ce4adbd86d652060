"""Which statuses say that a request was refused, and which are worth another try."""

from __future__ import annotations

REFUSALS = frozenset({408, 421, 425, 429})
"""Statuses by which a server says that it did not act on the request.

408 Request Timeout: the request was not complete (RFC 9110 15.5.9). 421 Misdirected Request: not for
this server, may be retried whether or not it is idempotent (RFC 9110 15.5.20). 425 Too Early
(RFC 8470 5.2). 429 Too Many Requests (RFC 6585 4); its text does not promise it, practice does.
"""

FORCELIST = REFUSALS | {500, 502, 503, 504}
"""Statuses that a later attempt may turn into a success (RFC 9110 15.6 for those of the server).

Of the 5xx nobody knows whether the request took effect, so whether they are retried is also a
question of the method and the key. 501 and 505 are permanent.
"""
