"""What a provider makes of a policy, and hosts of a provider: each pair is put together once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from retrypolicy.policy import RetryPolicy
from retrypolicy.providers.profile import Provider

_MOST = 256

# Anymail's backends make an engine for each message: what two values make together is remembered, by identity (both are
# immutable, and hold dicts).
_together: dict[tuple[object, ...], tuple[Any, Any]] = {}


def at_hosts(provider: Provider, hosts: tuple[str, ...]) -> Provider:
    """The provider at more hosts than its own."""
    key = (id(provider), hosts)
    found: Provider = _remembered(key, provider, lambda: evolve(provider, hosts=tuple(provider.hosts) + hosts))
    return found


def with_rules(policy: RetryPolicy, provider: Provider) -> RetryPolicy:
    """The policy's own rules, then the provider's."""
    if not provider.rules:
        return policy
    key, alive = (id(policy), id(provider)), (policy, provider)
    found: RetryPolicy = _remembered(key, alive, lambda: evolve(policy, rules=policy.rules + provider.rules))
    return found


def _remembered(key: tuple[object, ...], alive: object, make: Callable[[], Any]) -> Any:
    """`alive` is what the ids in the key belong to: as long as it is kept, no other object gets them."""
    known = _together.get(key)
    if known is None:
        if len(_together) >= _MOST:
            _together.clear()
        known = _together[key] = (alive, make())
    return known[1]
