"""Keys of messages: the form in which ledger, provider and webhooks know them."""

from __future__ import annotations

import hashlib

from retrypolicy.guard.key import check_key

MAX_LENGTH = 255
METADATA = "retrypolicy"
"""The name under which a message's metadata carry its key to the provider, and its events carry it back."""


def normal_key(key: object) -> str:
    """The key itself; a hash of it if it is longer than 255 characters or holds an address.

    Depends on nothing but the key. Raises `ConfigurationError` for what can't be a key.
    """
    checked = check_key(key)
    if len(checked) <= MAX_LENGTH and "@" not in checked:
        return checked
    return "sha256-" + hashlib.sha256(checked.encode("utf-8", "surrogatepass")).hexdigest()
