"""System checks of what only this room knows."""

from __future__ import annotations

from typing import Any

from django.core import checks

from retrypolicy.django import settings
from retrypolicy.errors import RetryPolicyError


def check_failover(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Can every backend of `FAILOVER` be used?"""
    from retrypolicy.anymail.failover import kinds

    try:
        if settings.setting("FAILOVER") is not None:
            kinds()
    except RetryPolicyError as error:
        return [checks.Error(str(error), hint="Correct FAILOVER. See docs/anymail.md.", id="retrypolicy.E008")]
    return []
