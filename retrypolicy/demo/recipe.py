"""What Anymail's documentation shows for automatic retries, with small waits.

https://anymail.dev/en/stable/tips/transient_errors/ mounts urllib3's `Retry` in `create_session()`, with every HTTP
method allowed. Counts and statuses are left to the reader there; these are the usual ones.
"""

from __future__ import annotations

import requests
from anymail.backends import mandrill, resend
from requests.adapters import HTTPAdapter
from urllib3.util import Retry


class _Recipe:
    def create_session(self) -> requests.Session:
        session: requests.Session = super().create_session()  # type: ignore[misc]  # a backend stands behind it
        retries = Retry(
            total=3,
            allowed_methods=None,  # every method, POST too
            status_forcelist=[429, 500, 502, 503, 504],
            backoff_factor=0.05,
        )
        session.mount("http://", HTTPAdapter(max_retries=retries))
        session.mount("https://", HTTPAdapter(max_retries=retries))
        return session


class MandrillBackend(_Recipe, mandrill.EmailBackend):  # type: ignore[misc]  # anymail ships no types
    """Mandrill by the recipe."""


class ResendBackend(_Recipe, resend.EmailBackend):  # type: ignore[misc]  # anymail ships no types
    """Resend by the recipe."""
