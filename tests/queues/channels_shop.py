"""Workers of Channels on channels_redis, each a process of its own: plain consumers, those under a policy, wake-ups.

What they must know is in the environment variable SHOP. A line of input is a channel; its worker is forked from this
process, and the number of that one is the answer.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

SHOP: dict[str, Any] = json.loads(os.environ.get("SHOP", "{}"))
SECRET = "a secret for the shop"
OURS = "retrypolicy.anymail.backends.postmark.EmailBackend"
STOCK = "anymail.backends.postmark.EmailBackend"


def project(shop: dict[str, Any]) -> dict[str, Any]:
    """What the settings of workers and of the test have in common."""
    from retrypolicy import Constant, Guard, RetryPolicy

    policy = RetryPolicy(
        max_attempts=12, max_wait=0.0, backoff=Constant(seconds=0.1), lifetime=600.0, guard=Guard(lease=0.5)
    )
    host = {"address": shop["valkey"], "socket_timeout": 60}
    return {
        "CHANNEL_LAYERS": {
            "default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [host]}}
        },
        "EMAIL_BACKEND": OURS,
        "ANYMAIL": {"POSTMARK_SERVER_TOKEN": "t", "POSTMARK_API_URL": shop["server"]},
        "RETRYPOLICY": {
            "LEDGER": shop["ledger"],
            "SECRET": SECRET,
            "POLICIES": {"mail": policy},
            "OUTBOX": {"POLICY": "mail", "HAND_OVER": "retrypolicy.queues.channels.wake"},
        },
    }


def message(text: str, **options: Any) -> Any:
    from anymail.message import AnymailMessage

    return AnymailMessage("Receipt", text, "shop@example.com", ["ann@example.com"], **options)


def main() -> None:
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=["channels", "anymail", "retrypolicy.django", "retrypolicy.anymail"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": SHOP["database"]}},
        SECRET_KEY="not the ledger's",
        USE_TZ=True,
        **project(SHOP),
    )
    django.setup()
    from channels.consumer import SyncConsumer
    from channels.layers import get_channel_layer
    from channels.routing import ChannelNameRouter
    from channels.worker import Worker
    from django.utils.module_loading import import_string

    from retrypolicy.queues.channels import OUTBOX_CHANNEL, OutboxConsumer, PolicyConsumerMixin

    class Stock(SyncConsumer):  # type: ignore[misc]
        def mail_send(self, event: Any) -> None:
            message(event["text"]).send()

    class Ours(PolicyConsumerMixin, SyncConsumer):  # type: ignore[misc]
        retry_policy = "mail"

        def mail_send(self, event: Any) -> None:
            message(event["text"]).send()

    for backend in (OURS, STOCK):
        import_string(backend)  # once for all
    layer = get_channel_layer()
    consumers = {"stock": Stock, "ours": Ours, OUTBOX_CHANNEL: OutboxConsumer}
    application = ChannelNameRouter({name: consumer.as_asgi() for name, consumer in consumers.items()})
    for line in sys.stdin:
        channel = line.strip()
        worker = os.fork()
        if not worker:
            if channel == "stock":
                settings.EMAIL_BACKEND = STOCK
            Worker(application, [channel], layer).run()
        print(worker, flush=True)


if __name__ == "__main__":
    main()
