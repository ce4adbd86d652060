"""The `RETRYPOLICY` setting: one dict, read when it is needed, every key known.

RETRYPOLICY = {
    "POLICY": "web",                    # a preset's name, a RetryPolicy, or a name from POLICIES
    "POLICIES": {"receipts": RetryPolicy(...), "mail": {"max_attempts": 6}},
    "LEDGER": "default",                # the alias of a Django database, or a ledger's URL
    "SECRET": "...",                    # keys the ledger's digests; default: SECRET_KEY
    "KEYS": "random",                   # for messages without a key: "random", or "content"
    "RELEASE_AFTER": {"sparkpost": 60}, # minutes without an event after which a held message counts as not sent
    "FAILOVER": [...],                  # backends for retrypolicy.anymail.failover, in order
    "OUTBOX": {"POLICY": "worker", "HAND_OVER": "shop.tasks.send_one"},  # see retrypolicy.django.outbox
    "DJANGO_MAILER": "...",             # the backend through which retrypolicy.queues.django_mailer sends
}
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from retrypolicy.django.ledger import open_any
from retrypolicy.errors import ConfigurationError, RetryPolicyError
from retrypolicy.guard import Ledger
from retrypolicy.guard.key import Secret
from retrypolicy.guard.opening import ledger_from_environment
from retrypolicy.policy import PRESETS, WEB, WORKER, RetryPolicy

KEYS = ("POLICY", "POLICIES", "LEDGER", "SECRET", "KEYS", "RELEASE_AFTER", "FAILOVER", "OUTBOX", "DJANGO_MAILER")


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


def policies() -> Mapping[str, RetryPolicy]:
    """The named policies: the presets, and `POLICIES` (each a `RetryPolicy`, or its fields as a dict).

    Raises `ConfigurationError` or `PolicyError` for one that can't be.
    """
    given = setting("POLICIES") or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError("RETRYPOLICY['POLICIES']: must be a dict of names and policies")
    ready = {name: value for name, value in given.items() if isinstance(value, RetryPolicy)}
    data = {name: value for name, value in given.items() if not isinstance(value, RetryPolicy)}
    if data:
        ready.update(_loaded(data))
    return {**PRESETS, **ready}


_last: tuple[dict[str, Any], Mapping[str, RetryPolicy]] | None = None


def _loaded(data: dict[str, Any]) -> Mapping[str, RetryPolicy]:
    """Policies made of data: once, since each message asks for its policy, and those under the same one share much."""
    global _last
    if _last is None or _last[0] != data:
        from retrypolicy.config import load_policies

        _last = copy.deepcopy(data), load_policies({"policies": data})
    return _last[1]


def policy(given: RetryPolicy | str | None = None, default: RetryPolicy = WEB) -> RetryPolicy:
    """The policy of this name (`POLICIES`, then the presets); None: `POLICY`, else `default`.

    Raises `ConfigurationError` for a name that does not exist, and what `policies` raises.
    """
    if given is None:
        given = setting("POLICY")
    if given is None:
        return default
    if isinstance(given, RetryPolicy):
        return given
    known = policies()
    if not isinstance(given, str) or given not in known:
        raise ConfigurationError(
            f"retry policy: {given!r} is not allowed; must be a RetryPolicy, or one of {', '.join(sorted(known))}"
        )
    return known[given]


def ledger(given: Ledger | str | None = None) -> Ledger | None:
    """The ledger; None: `LEDGER`, else what `RETRYPOLICY_LEDGER` says. One object per name and process, shared by all.

    Raises `ConfigurationError` for a name that is neither a URL nor the alias of a database.
    """
    if given is None:
        given = setting("LEDGER") or ledger_from_environment()
    return _open(given) if isinstance(given, str) else given


def required_ledger() -> Ledger:
    """The ledger, for those who can do nothing without one. Raises `ConfigurationError` if there is none."""
    found = ledger()
    if found is None:
        raise ConfigurationError(
            "there is no ledger; set RETRYPOLICY['LEDGER'] to the alias of a database, or to a ledger's URL"
        )
    return found


@functools.cache
def _open(name: str) -> Ledger:
    return open_any(name)


def secret() -> Any:
    """What the ledger's digests are keyed with: `SECRET`, else `SECRET_KEY` and its fallbacks."""
    given = setting("SECRET")
    if given is not None:
        return given
    return [key for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS) if key] or None


def the_secret() -> Secret:
    """The same, ready for use."""
    return Secret.of(secret())


def keys() -> str:
    """How a message without a key gets one: "random" or "content". Raises `ConfigurationError` for anything else."""
    given = setting("KEYS") or "random"
    if given not in ("random", "content"):
        raise ConfigurationError(f"RETRYPOLICY['KEYS']: {given!r} is not allowed; must be 'random' or 'content'")
    return str(given)


def release_after() -> Mapping[str, float]:
    """Minutes without an event after which a held message counts as not sent, by provider.

    Raises `ConfigurationError` for an unknown provider, or for less time than the provider's own documents ask for.
    """
    from retrypolicy.providers import load

    given = setting("RELEASE_AFTER") or {}
    if not isinstance(given, Mapping):
        raise ConfigurationError("RETRYPOLICY['RELEASE_AFTER']: must be a dict of providers and minutes")
    for name, minutes in given.items():
        place = f"RETRYPOLICY['RELEASE_AFTER'][{name!r}]"
        try:
            provider = load(name)
        except RetryPolicyError as error:
            raise ConfigurationError(f"{place}: {error}") from None
        least = provider.event_quiet or 0.0
        if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not minutes > 0 or minutes < least:
            must = f"minutes, at least {least:g}" if least else "minutes, more than 0"
            raise ConfigurationError(f"{place}: {minutes!r} is not allowed; must be {must}")
        if not provider.metadata:
            raise ConfigurationError(f"{place}: not allowed; its events don't carry a message's metadata")
    return {str(name): float(minutes) for name, minutes in given.items()}


def outbox_policy(name: str = "") -> RetryPolicy:
    """The policy of messages in the outbox: the one of this name, else `OUTBOX["POLICY"]`, else `WORKER`.

    Raises `ConfigurationError` for a name that does not exist, and what `policies` raises.
    """
    return policy(name or _outbox().get("POLICY") or WORKER)


def outbox_hand_over() -> Callable[..., Any] | None:
    """What is called with a message's key after COMMIT, if not the outbox's own `send`.

    Raises `ConfigurationError` for what can't be called, or imported.
    """
    given = _outbox().get("HAND_OVER")
    place = "RETRYPOLICY['OUTBOX']['HAND_OVER']"
    found = given
    if isinstance(given, str):
        try:
            found = import_string(given)
        except ImportError as error:
            raise ConfigurationError(f"{place}: {given!r} can't be imported: {error}") from None
    if found is not None and not callable(found):
        raise ConfigurationError(f"{place}: {given!r} is not allowed; must be a callable, or the path of one")
    return found


def _outbox() -> Mapping[str, Any]:
    given = setting("OUTBOX") or {}
    if not isinstance(given, Mapping):
        raise ConfigurationError("RETRYPOLICY['OUTBOX']: must be a dict")
    for name in given:
        if name not in ("POLICY", "HAND_OVER"):
            raise ConfigurationError(
                f"RETRYPOLICY['OUTBOX']: {name!r} is not allowed; must be one of POLICY, HAND_OVER"
            )
    return given


def forget(*, setting: str = "RETRYPOLICY", **kwargs: Any) -> None:
    """Open ledgers anew: the setting has changed."""
    if setting in ("RETRYPOLICY", "DATABASES"):
        _open.cache_clear()


setting_changed.connect(forget)
