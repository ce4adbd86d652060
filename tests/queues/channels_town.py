"""A channel layer on Valkey, a database, a mail provider that counts, and real workers of Channels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.management import call_command
from django.db import connections, router
from django.test import override_settings

from retrypolicy.django import outbox
from retrypolicy.django.models import OutboxMessage
from retrypolicy.queues.channels import OUTBOX_CHANNEL, stamped
from retrypolicy.step import Step, next_step
from retrypolicy.testing import FaultServer, Stall
from tests.anymail.sending import ok

from ..guard.servers import Valkey  # noqa: TID252 - no other path is sure
from .channels_shop import SECRET, message, project
from .workers import wait_for

ROOT = Path(__file__).parents[2]
KINDS = ["stock", "ours", "outbox"]


class Town:
    """A channel layer, a database, a mail provider that counts, and the workers that were started."""

    def __init__(self, place: Path, valkey: Valkey, alias: str) -> None:
        self.place, self.valkey, self.alias = place, valkey, alias
        self.accepted: Counter[str] = Counter()
        self.stalls: set[str] = set()
        self.answer: Callable[[str], tuple[Any, bool]] = self.to_the_point
        self.workers: list[int] = []
        self.server = FaultServer(self._step)

    def __enter__(self) -> Self:
        self.server.__enter__()
        database = str(connections[self.alias].settings_dict["NAME"])
        ledger = f"sqlite:///{self.place}/sends.db"
        self.shop = {"server": self.server.url("/"), "valkey": self.valkey.url, "database": database, "ledger": ledger}
        self.settings = override_settings(**project(self.shop))
        self.settings.enable()
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self.nursery = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.queues.channels_shop"],
            cwd=ROOT,
            env={**os.environ, "SHOP": json.dumps(self.shop), "PYTHONPATH": path},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.settings.disable()
        self.kill()
        self.nursery.communicate()
        self.server.__exit__(None, None, None)

    def _step(self, request: Any) -> Any:
        text = json.loads(request.body)["TextBody"]
        step, applies = self.answer(text)
        self.accepted[text] += applies
        return step

    def to_the_point(self, text: str) -> tuple[Any, bool]:
        """Takes everything. The answer to those that are to be killed on the wire does not come, the first time."""
        return Stall() if text in self.stalls and not self.accepted[text] else ok("postmark"), True

    def start(self, *kinds: str) -> None:
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        for kind in kinds or KINDS:
            print(OUTBOX_CHANNEL if kind == "outbox" else kind, file=self.nursery.stdin, flush=True)
            self.workers.append(int(self.nursery.stdout.readline()))

    def kill(self) -> None:
        for worker in self.workers:
            os.kill(worker, signal.SIGKILL)
        self.workers.clear()

    def send(self, *names: object, twice: bool = False) -> None:
        """To each kind these messages."""
        layer: Any = get_channel_layer()
        for kind in KINDS:
            for name in names:
                text = f"{kind} {name}"
                if kind == "outbox":
                    outbox.put(message(text), key=text)
                    again: Any = {"type": "outbox.wake", "key": text}
                else:
                    again = {"type": "mail.send", "text": text}
                    if kind == "ours":
                        again = stamped(again, key=text)
                    async_to_sync(layer.send)(kind, again)
                if twice:
                    async_to_sync(layer.send)(OUTBOX_CHANNEL if kind == "outbox" else kind, again)

    def sweep(self) -> list[type]:
        """As if the time that whoever was woken has for it were over."""
        self.rows.update(due=0)
        return [type(found.step) for found in outbox.sweep(using=self.alias)]

    def next_step(self, key: str) -> Step:
        """What the ledger says of the message with this key."""
        return next_step(key, ledger=f"sqlite:///{self.place}/sends.db", secret=SECRET)

    @property
    def rows(self) -> Any:
        return OutboxMessage.objects.using(self.alias)

    def counted(self, *names: object) -> dict[str, list[int]]:
        return {kind: [self.accepted[f"{kind} {name}"] for name in names] for kind in KINDS}

    def have_got(self, name: object) -> None:
        """Each worker sent this."""
        wait_for(lambda: all(self.accepted[f"{kind} {name}"] for kind in KINDS), f"the message {name!r}")

    @property
    def in_layer(self) -> int:
        client = self.valkey.client()
        return sum(client.zcard(name) for name in client.keys("asgi:*") if client.type(name) == b"zset")


@pytest.fixture
def town(tmp_path: Path, new_valkey: Callable[..., Valkey], monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    alias = f"file_{tmp_path.name}"
    settings = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "shop.sqlite3"),
        "OPTIONS": {"timeout": 30},
    }
    connections.settings[alias] = connections.configure_settings({"default": settings})["default"]
    call_command("migrate", "retrypolicy", database=alias, verbosity=0)
    with monkeypatch.context() as patched:
        patched.setattr(router, "db_for_write", lambda model, **hints: alias)
        with Town(tmp_path, new_valkey(), alias) as town:
            yield town
    connections[alias].close()
    del connections[alias]
    del connections.settings[alias]
