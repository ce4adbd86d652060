"""Keys of messages: the form in which ledger, provider and webhooks know them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from retrypolicy.guard.key import Secret, check_key, key_digest

if TYPE_CHECKING:
    from retrypolicy.guard.ledger import Ledger, Record

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


def find(ledger: Ledger, secret: Secret, key: str) -> tuple[Record | None, float]:
    """The record of this key, by the current secret or an older one; and the ledger's time.

    Raises `LedgerUnavailable`.
    """
    record, now = ledger.read(key_digest(secret, key))
    for digest in secret.old_digests(b"key", key.encode()):
        if record is None:
            record, now = ledger.read(digest)
    return record, now
