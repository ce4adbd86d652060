"""What a queue's adapter is given by name: a policy, a ledger. Django's settings count where a project has them."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import Ledger
from retrypolicy.guard.key import Secret
from retrypolicy.guard.opening import ledger_from_environment, open_ledger
from retrypolicy.policy import PRESETS, RetryPolicy


def policy_named(given: RetryPolicy | str) -> RetryPolicy:
    """The policy; a name is looked up in Django's `RETRYPOLICY["POLICIES"]`, and among the presets.

    Raises `ConfigurationError` for a name that does not exist.
    """
    settings = _django()
    if settings is not None:
        found: RetryPolicy = settings.policy(given)
        return found
    if isinstance(given, RetryPolicy):
        return given
    if given in PRESETS:
        return PRESETS[given]
    raise ConfigurationError(
        f"retry policy: {given!r} is not allowed; must be a RetryPolicy, or one of {', '.join(sorted(PRESETS))} "
        "(or, in a Django project, a name from RETRYPOLICY['POLICIES'])"
    )


def ledger_named(given: Ledger | str | None) -> Ledger | None:
    """The ledger; None: what Django's settings say, else `RETRYPOLICY_LEDGER`. One object for each URL and process."""
    settings = _django()
    if settings is not None:
        found: Ledger | None = settings.ledger(given)
        return found
    given = given or ledger_from_environment()
    return _opened(given) if isinstance(given, str) else given


def secret() -> Secret:
    """What the ledger's digests are keyed with."""
    settings = _django()
    if settings is not None:
        found: Secret = settings.the_secret()
        return found
    return Secret.of(None)


@functools.cache
def _opened(url: str) -> Ledger:
    return open_ledger(url)


def _django() -> Any:
    """The settings room, where a Django project is set up; without importing Django where there is none."""
    conf = sys.modules.get("django.conf")
    if "DJANGO_SETTINGS_MODULE" not in os.environ and (conf is None or not conf.settings.configured):
        return None
    from retrypolicy.django import settings

    return settings
