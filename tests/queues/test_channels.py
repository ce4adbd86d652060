"""Consumers under a policy, and wake-ups for the outbox: Channels' own worker, on the layer in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer
from channels.routing import ChannelNameRouter
from channels.worker import Worker
from django.core.management import call_command
from django.db import transaction
from django.test import override_settings

from retrypolicy import Constant, RetryPolicy, operation, step
from retrypolicy.django import outbox
from retrypolicy.django.models import OutboxMessage
from retrypolicy.errors import AlreadyDone, ConfigurationError, SendFailed, SendHeld
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.queues.channels import OUTBOX_CHANNEL, OutboxConsumer, PolicyConsumerMixin, stamped, wake
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.sending import JSON, SECRET, mail, ok

# Channels' own worker does what asgiref warns of.
pytestmark = pytest.mark.filterwarnings("ignore:async_to_sync was passed a non-async-marked callable")

POLICY = RetryPolicy(max_attempts=4, max_wait=0.0, lifetime=600.0, backoff=Constant(seconds=0.05))
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def layer() -> Iterator[None]:
    with override_settings(
        CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
        RETRYPOLICY={"POLICIES": {"orders": POLICY}},
    ):
        yield


class Shop:
    """A consumer that posts orders to a server, in both forms."""

    def __init__(self, script: Any, policy: Any = POLICY) -> None:
        self.server = FaultServer(script)
        self.ledger = MemoryLedger()
        self.lost: list[Exception] = []
        self.bugs: list[str] = []
        shop = self

        class Orders(PolicyConsumerMixin, SyncConsumer):  # type: ignore[misc]
            retry_policy = policy

            def order_sent(self, message: Any) -> None:
                shop.post(message)

            def order_bug(self, message: Any) -> None:
                shop.bugs.append(message["order"])
                raise KeyError("a bug")

            def order_stop(self, message: Any) -> None:
                raise StopConsumer

            async def gave_up(self, message: Any, error: Exception) -> None:
                shop.lost.append(error)
                await super().gave_up(message, error)

        class AsyncOrders(PolicyConsumerMixin, AsyncConsumer):  # type: ignore[misc]
            retry_policy = policy

            async def order_sent(self, message: Any) -> None:
                shop.post(message)

        self.consumers: dict[str, Any] = {"sync": Orders, "async": AsyncOrders}

    def post(self, message: Any) -> None:
        with requests.Session() as session:
            session.trust_env = False
            mount(session, ledger=self.ledger)
            for order in message["order"].split():
                # Of many calls some may be done already, when the message comes again.
                with contextlib.suppress(*[AlreadyDone] if " " in message["order"] else []):
                    session.post(self.server.url(), json={"order": order}, timeout=10).raise_for_status()

    def run(self, kind: str, messages: list[Any], until: Callable[[], object]) -> None:
        """A worker, until this is true. The messages are in the layer before it starts."""
        application = ChannelNameRouter({"orders": self.consumers[kind].as_asgi()})
        with self.server:
            async_to_sync(run_worker)(application, "orders", messages, until)

    @property
    def got(self) -> list[str]:
        return sorted(str(json.loads(request.body)["order"]) for request in self.server.requests)


async def run_worker(application: Any, channel: str, messages: list[Any], until: Callable[[], object]) -> None:
    layer = get_channel_layer()
    assert layer is not None
    for message in messages:
        await layer.send(channel, message)
    worker = asyncio.ensure_future(Worker(application, [channel], layer).arun())
    end = time.monotonic() + PATIENCE
    try:
        while not until():
            assert time.monotonic() < end, "the worker took too long"
            assert not worker.done(), worker.result()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # and nothing more
    finally:
        worker.cancel()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def order(number: int, **note: Any) -> dict[str, Any]:
    return stamped({"type": "order.sent", "order": str(number)}, **note)


# -- the mixin ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_message_comes_back_when_it_is_due(kind: str) -> None:
    shop = Shop([Answer(429, headers={"Retry-After": "1"}), Answer(200)])
    began = time.monotonic()
    shop.run(kind, [order(1)], lambda: shop.server.complete == 2)
    assert time.monotonic() - began >= 1.0
    assert shop.ledger.counts() == {Phase.DONE: 1}


def test_an_error_takes_no_other_message_with_it() -> None:
    """Channels' worker loses all messages of a channel that wait behind one that raises."""
    shop = Shop([Answer(400), *[Answer(200)] * 4])
    shop.run("sync", [order(number) for number in range(5)], lambda: shop.server.complete == 5)
    (error,) = shop.lost
    assert isinstance(error, SendFailed)
    assert error.status == 400


def test_without_the_mixin_it_does(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop([Answer(400), *[Answer(200)] * 4])

    class Stock(SyncConsumer):  # type: ignore[misc]
        def order_sent(self, message: Any) -> None:
            shop.post(message)

    shop.consumers["stock"] = Stock
    end = time.monotonic() + 0.7
    shop.run("stock", [order(number) for number in range(5)], lambda: time.monotonic() > end and shop.server.complete)
    assert shop.server.complete == 1
    assert "Exception inside application" in caplog.text


def test_a_second_delivery_is_stopped() -> None:
    shop = Shop([Answer(200)] * 9)
    one, other = order(1), order(1)
    by_key = [order(2, key="order/2"), order(2, key="order/2")]
    shop.run("sync", [one, one, other, *by_key, order(3)], lambda: "3" in shop.got)
    assert shop.got == ["1", "1", "2", "3"]  # "other" says the same, and is another message
    assert [type(error).__name__ for error in shop.lost] == [
        "AlreadyDone"
    ]  # that without a key may have had more to do


def test_a_message_without_a_stamp_keeps_its_number_while_it_comes_back() -> None:
    shop = Shop([Answer(200), Answer(429, headers={"Retry-After": "1"}), Answer(200)])
    shop.run("sync", [{"type": "order.sent", "order": "1 2"}], lambda: shop.server.complete == 3)
    assert shop.got == ["1", "2", "2"]
    assert shop.lost == []


def test_what_is_held_comes_back_until_it_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "HELD_LOOK", (0.05, 0.05))
    shop = Shop([Close("request")])

    def resolved() -> bool:
        for record in shop.ledger.records():
            if record.phase is Phase.HELD:
                shop.ledger.resolve(record.key, record.fence, "applied")
        return bool(shop.ledger.counts().get(Phase.DONE))

    shop.run("sync", [order(1, key="order/1")], resolved)
    assert (shop.server.complete, shop.lost) == (1, [])


def test_held_to_the_end_of_its_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "HELD_LOOK", (0.05, 0.05))
    shop = Shop([Close("request")], POLICY.with_(lifetime=0.3))
    shop.run("sync", [order(1)], lambda: shop.lost)
    assert isinstance(shop.lost[0], SendHeld)
    assert shop.server.complete == 1


def test_a_full_channel_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from channels.exceptions import ChannelFull
    from channels.layers import InMemoryChannelLayer

    monkeypatch.setattr("retrypolicy.queues.channels.SOON", (0.05, 1.0))
    shop = Shop([Answer(429, headers={"Retry-After": "1"}), Answer(200)])
    send, refused = InMemoryChannelLayer.send, list[str]()

    async def full_once(self: Any, channel: str, message: Any) -> None:
        if shop.server.complete == 1 and not refused:
            refused.append(channel)
            raise ChannelFull
        await send(self, channel, message)

    monkeypatch.setattr(InMemoryChannelLayer, "send", full_once)
    shop.run("sync", [order(1)], lambda: shop.server.complete == 2)
    assert refused == ["orders"]
    assert "could not go back to its channel yet (ChannelFull)" in caplog.text


def test_bad_messages_stop_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bad: list[Any] = [
        {"type": "order.sent", "order": "1", "retrypolicy": "x"},
        {"type": "order.sent", "order": "1", "retrypolicy": {"job": 7}},
        {"type": "order.sent", "order": "1", "retrypolicy": {"job": "7", "since": 1.0, "key": 7}},
        {"type": "nobody.knows"},
        {"type": "order.bug", "order": "9"},
    ]
    shop = Shop([Answer(200)])
    shop.run("sync", [*bad, order(2)], lambda: shop.server.complete == 1)
    assert (shop.got, shop.bugs) == (["2"], ["9"])
    assert [type(error).__name__ for error in shop.lost] == [*["ConfigurationError"] * 3, "ValueError", "KeyError"]
    assert caplog.text.count("is given up") == 5
    assert "KeyError: 'a bug'" in caplog.text  # with its traceback


def test_a_policy_that_does_not_exist_is_said_when_the_application_is_made() -> None:
    for name, exists in ("orders", True), ("worker", True), ("none", False):
        consumer = Shop([], name).consumers["sync"]
        if exists:
            assert consumer.as_asgi()
        else:
            with pytest.raises(ConfigurationError, match="'none' is not allowed"):
                consumer.as_asgi()


def test_a_key_that_can_not_be_one_is_said_by_whoever_stamps() -> None:
    with pytest.raises(ConfigurationError, match="key: int is not allowed"):
        stamped({"type": "order.sent"}, key=42)  # type: ignore[arg-type]


def test_connections_are_left_alone() -> None:
    """A websocket's handlers are not run under the policy: their errors are for whoever is connected."""
    seen: list[Any] = []

    class Chat(PolicyConsumerMixin, AsyncConsumer):  # type: ignore[misc]
        async def websocket_receive(self, message: Any) -> None:
            from retrypolicy.guard.operation import current_operation

            seen.append((message, current_operation()))
            raise ValueError("told")

    async def talk() -> None:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        await queue.put({"type": "websocket.receive", "text": "hi"})
        await Chat.as_asgi()({"type": "websocket"}, queue.get, None)

    with operation(key="outer"), pytest.raises(ValueError, match="told"):
        async_to_sync(talk)()
    assert seen[0][0] == {"type": "websocket.receive", "text": "hi"}
    assert seen[0][1].key == "outer"


def test_a_handler_may_stop_its_consumer() -> None:
    shop = Shop([])
    end = time.monotonic() + 0.3
    shop.run("sync", [stamped({"type": "order.stop"}), order(1)], lambda: time.monotonic() > end)
    assert (shop.server.complete, shop.lost) == (0, [])


# -- the outbox ---------------------------------------------------------------------------------


@pytest.fixture
def post_office() -> Iterator[FaultServer]:
    """An outbox that is handed over to a worker of Channels."""
    call_command("migrate", verbosity=0)
    with FaultServer([Answer(503, headers={"Retry-After": "90"}), *[ok("postmark")] * 9]) as server:
        ours = {
            "LEDGER": MemoryLedger(),
            "POLICIES": {"mail": POLICY},
            "OUTBOX": {"POLICY": "mail", "HAND_OVER": "retrypolicy.queues.channels.wake"},
        }
        anymail = {"POSTMARK_SERVER_TOKEN": SECRET, "POSTMARK_API_URL": server.url("/")}
        backend = "retrypolicy.anymail.backends.postmark.EmailBackend"
        with override_settings(RETRYPOLICY=ours, EMAIL_BACKEND=backend, ANYMAIL=anymail):
            yield server
    OutboxMessage.objects.all().delete()


def work(until: Callable[[], object], messages: list[Any] | None = None) -> None:
    application = ChannelNameRouter({OUTBOX_CHANNEL: OutboxConsumer.as_asgi()})
    async_to_sync(run_worker)(application, OUTBOX_CHANNEL, messages or [], until)


def test_a_worker_is_woken_after_commit(post_office: FaultServer) -> None:
    with transaction.atomic():
        for number in range(3):
            outbox.put(mail(), key=f"receipt/{number}")
    assert post_office.complete == 0
    work(lambda: post_office.complete == 3)
    (row,) = OutboxMessage.objects.all()  # to be sent in 90 seconds, by the sweeper
    assert (row.key, row.due > time.time() + 60) == ("receipt/0", True)


def test_a_refused_message_takes_no_other_with_it(post_office: FaultServer) -> None:
    post_office.play([Answer(422, headers=JSON, body=b'{"ErrorCode": 300}'), *[ok("postmark")] * 4])
    for number in range(5):
        outbox.put(mail(), key=f"receipt/{number}")
    work(lambda: post_office.complete == 5)
    (row,) = OutboxMessage.objects.all()
    assert (row.key, row.get_state_display()) == ("receipt/0", "failed")


def test_a_rolled_back_message_wakes_nobody(post_office: FaultServer) -> None:
    with transaction.atomic():
        outbox.put(mail(), key="receipt/1")
        transaction.set_rollback(True)
    assert list(outbox.sweep()) == []
    assert post_office.complete == 0


def test_wake_ups_that_come_twice_late_or_wrong(post_office: FaultServer, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        outbox.put(mail(), key=f"receipt/{number}")
    again = [{"type": "outbox.wake", "key": f"receipt/{number}"} for number in range(3)]
    wrong: list[Any] = [
        {"type": "outbox.wake"},
        {"type": "outbox.wake", "key": 42},
        {"type": "outbox.wake", "key": "receipt/1", "using": "nowhere"},
        {"type": "nobody.knows"},
        {"type": "outbox.wake", "key": "long gone"},
    ]
    outbox.put(mail(), key="receipt/last")
    came_to_nothing = "a wake-up came to nothing"
    work(lambda: caplog.text.count(came_to_nothing) == 5, [*again, *wrong, *again, {"type": "outbox.wake"}])
    assert post_office.complete == 4
    assert [row.key for row in OutboxMessage.objects.all()] == ["receipt/0"]


def test_lost_wake_ups_are_found(post_office: FaultServer) -> None:
    for number in range(3):
        outbox.put(mail(), key=f"receipt/{number}")
    OutboxMessage.objects.update(due=0)
    assert len(list(outbox.sweep())) == 3
    assert post_office.complete == 3


def test_a_layer_that_is_not_there_or_full_costs_nothing(
    post_office: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(CHANNEL_LAYERS={}):
        with pytest.raises(ConfigurationError, match="there is no channel layer"):
            wake("receipt/1")
        outbox.put(mail(), key="receipt/1")
    small = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 1}}}
    with override_settings(CHANNEL_LAYERS=small):
        for number in (2, 3):
            outbox.put(mail(), key=f"receipt/{number}")
    assert "was not handed over: there is no channel layer" in caplog.text
    assert "was not handed over: ChannelFull" in caplog.text
    OutboxMessage.objects.update(due=0)
    assert len(list(outbox.sweep())) == 3


def test_a_wake_up_says_which_database() -> None:
    async def receive() -> Any:
        layer = get_channel_layer()
        assert layer is not None
        return await layer.receive(OUTBOX_CHANNEL)

    wake("receipt/1", using="shop")
    assert async_to_sync(receive)() == {"type": "outbox.wake", "key": "receipt/1", "using": "shop"}
