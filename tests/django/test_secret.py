"""The ledger's digests are keyed by SECRET_KEY, and Django's own rotation of it is followed."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from retrypolicy.django import settings
from retrypolicy.guard.key import Secret, key_digest


def digest(secret: Secret) -> bytes:
    return key_digest(secret, "receipt/42")


def test_it_is_the_secret_key(project: dict[str, Any]) -> None:
    with override_settings(SECRET_KEY="one", SECRET_KEY_FALLBACKS=[]):
        assert digest(settings.the_secret()) == digest(Secret.of("one"))


def test_what_was_recorded_before_a_rotation_is_still_found(project: dict[str, Any]) -> None:
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old", "older"]):
        secret = settings.the_secret()
    assert digest(secret) == digest(Secret.of("new"))
    before = [digest(Secret.of(name)) for name in ("old", "older")]
    assert list(secret.old_digests(b"key", b"receipt/42")) == before


@pytest.mark.parametrize("given", ["mine", ["mine", "mine before"]])
def test_a_secret_of_its_own_comes_first(project: dict[str, Any], given: Any) -> None:
    project["SECRET"] = given
    with override_settings(SECRET_KEY="one"):
        assert digest(settings.the_secret()) == digest(Secret.of("mine"))
