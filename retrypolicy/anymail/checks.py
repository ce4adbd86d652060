"""System checks of what only this room knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core import checks

from retrypolicy.django import settings
from retrypolicy.django.checks import check_mailer
from retrypolicy.django.mailers import Mailer, mailers
from retrypolicy.errors import RetryPolicyError

FAILOVER = "retrypolicy.anymail.failover.EmailBackend"


def check_failover(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Can every backend of `FAILOVER`, and of each mailer that fails over, be used?"""
    from retrypolicy.anymail.failover import kinds

    found: list[checks.CheckMessage] = []
    for where, given in _lists():
        try:
            made = kinds(given)
        except RetryPolicyError as error:
            hint = f"Correct {where}. See docs/anymail.md."
            found.append(checks.Error(str(error), hint=hint, id="retrypolicy.E008"))
            continue
        for at, (kind, options) in enumerate(made):
            found += check_mailer(Mailer(f"{where}[{at}]", f"{kind.__module__}.{kind.__qualname__}", options))
    return found


def _lists() -> Iterator[tuple[str, Any]]:
    try:
        named = settings.setting("FAILOVER")
    except RetryPolicyError:
        return  # E001 says so
    own = [(f"{mailer.where}['OPTIONS']['backends']", mailer) for mailer in mailers() if mailer.backend == FAILOVER]
    yield from ((where, mailer.options["backends"]) for where, mailer in own if "backends" in mailer.options)
    if named is not None or any("backends" not in mailer.options for _, mailer in own):
        yield "RETRYPOLICY['FAILOVER']", named if named is not None else ()
