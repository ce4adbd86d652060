"""System checks for the tasks that are under a policy, as far as their modules are imported."""

from __future__ import annotations

from typing import Any

from django.core import checks

from retrypolicy.errors import RetryPolicyError
from retrypolicy.queues.django_tasks.tasks import policies
from retrypolicy.queues.names import ledger_named, policy_named

DOCS = "See docs/django-tasks.md."


def check_tasks(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Policies that do not exist or have no end, and a ledger that is not there."""
    found: list[checks.CheckMessage] = []
    for path, named in sorted(policies.items()):
        try:
            policy = policy_named(named)
        except RetryPolicyError as error:
            found.append(checks.Error(f"{path}: {error}", hint=f"Correct it. {DOCS}", id="retrypolicy_tasks.E001"))
            continue
        if policy.lifetime is None:
            said, hint = f"{path}: its policy has no lifetime: a held call comes back for ever", f"Set lifetime. {DOCS}"
            found.append(checks.Warning(said, hint=hint, id="retrypolicy_tasks.W001"))
    if policies and _no_ledger():
        said = "there is no ledger: what a worker had on the wire when it died is sent again, once its task is reaped"
        found.append(checks.Warning(said, hint=f"Set RETRYPOLICY['LEDGER']. {DOCS}", id="retrypolicy_tasks.W002"))
    return found


def _no_ledger() -> bool:
    try:
        return ledger_named(None) is None
    except RetryPolicyError:
        return False  # the app retrypolicy.django says so
