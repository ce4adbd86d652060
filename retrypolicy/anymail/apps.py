"""The Django app that makes held messages resolve themselves by the provider's webhooks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class RetryPolicyAnymailConfig(AppConfig):
    """With it installed, messages carry their key in their metadata, and Anymail's tracking events are listened to."""

    name = "retrypolicy.anymail"
    label = "retrypolicy_anymail"
    verbose_name = "Sends and their events"

    def ready(self) -> None:
        from anymail.signals import tracking

        from retrypolicy.anymail.checks import check_failover
        from retrypolicy.anymail.webhooks import on_event

        checks.register(check_failover, "retrypolicy")
        tracking.connect(on_event, dispatch_uid="retrypolicy.on_event")
