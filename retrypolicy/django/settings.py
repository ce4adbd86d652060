"""The `RETRYPOLICY` setting: one dict, read when it is needed, every key known.

RETRYPOLICY = {
    "POLICY": "web",                    # a preset's name, a RetryPolicy, or a name from POLICIES
    "POLICIES": {"receipts": RetryPolicy(...)},
    "LEDGER": "sqlite:////var/lib/shop/sends.db",
    "SECRET": "...",                    # keys the ledger's digests; default: SECRET_KEY
}
"""

from __future__ import annotations

import functools
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed

from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import Ledger, open_ledger
from retrypolicy.policy import WEB, WORKER, RetryPolicy

KEYS = ("POLICY", "POLICIES", "LEDGER", "SECRET")
PRESETS = {"web": WEB, "worker": WORKER}


def setting(name: str) -> Any:
    """One entry of `RETRYPOLICY`; None if it is not set. Raises `ConfigurationError` for an unknown entry."""
    given = getattr(settings, "RETRYPOLICY", None)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ConfigurationError(f"RETRYPOLICY: {type(given).__name__} is not allowed; must be a dict")
    for key in given:
        if key not in KEYS:
            raise ConfigurationError(f"RETRYPOLICY: {key!r} is not allowed; must be one of {', '.join(KEYS)}")
    return given.get(name)


def policy(given: RetryPolicy | str | None = None, default: RetryPolicy = WEB) -> RetryPolicy:
    """The policy of this name (`POLICIES`, then the presets); None: `POLICY`, else `default`.

    Raises `ConfigurationError` for a name that does not exist.
    """
    if given is None:
        given = setting("POLICY")
    if given is None:
        return default
    if isinstance(given, RetryPolicy):
        return given
    named = setting("POLICIES") or {}
    found = named.get(given) if isinstance(given, str) else None
    if found is None and isinstance(given, str):
        found = PRESETS.get(given)
    if not isinstance(found, RetryPolicy):
        known = ", ".join(sorted({*named, *PRESETS}))
        raise ConfigurationError(f"retry policy: {given!r} is not allowed; must be a RetryPolicy, or one of {known}")
    return found


def ledger(given: Ledger | str | None = None) -> Ledger | None:
    """The ledger; None: `LEDGER`. One object per URL and process, shared by all backends."""
    if given is None:
        given = setting("LEDGER")
    return _open(given) if isinstance(given, str) else given


@functools.cache
def _open(url: str) -> Ledger:
    return open_ledger(url)


def secret() -> Any:
    """What the ledger's digests are keyed with: `SECRET`, else `SECRET_KEY` and its fallbacks."""
    given = setting("SECRET")
    if given is not None:
        return given
    return [key for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS) if key] or None


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "RETRYPOLICY":
        _open.cache_clear()


setting_changed.connect(_forget)
