"""Channels: consumers under a policy, and wake-ups for the outbox.

A channel layer is no queue: it may lose a message, and it may deliver one twice. What must not get lost goes through
the outbox (`retrypolicy.django.outbox`), and the layer only says that there is something to do.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from attrs import frozen
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.django import outbox
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard.key import check_key
from retrypolicy.guard.operation import operation
from retrypolicy.policy import RetryPolicy
from retrypolicy.queues.names import policy_named
from retrypolicy.step import SOON, GiveUp, Settled, next_step, slim

if TYPE_CHECKING:
    from channels.consumer import AsyncConsumer as _Consumer
else:
    _Consumer = object

NOTE = "retrypolicy"
"""Where a message's key, the number of its job and its beginning stand in it."""

OUTBOX_CHANNEL = "retrypolicy-outbox"
"""The channel of the wake-ups: `manage.py runworker retrypolicy-outbox`."""

clock: Clock = SystemClock()
logger = logging.getLogger("retrypolicy")
_waiting: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive


def stamped(message: Mapping[str, Any], *, key: str | None = None) -> dict[str, Any]:
    """A copy of the message that can be told from another one that says the same, however often the layer delivers it.

    key: names the one call of its handler. None: each call in the handler gets one, made of this message's number,
        its content, and how often that came before.

    Raises `ConfigurationError` for a key that can't be one.
    """
    named = {} if key is None else {"key": check_key(key)}
    return {**message, NOTE: {"job": str(uuid.uuid4()), "since": clock.now(), **named}}


@frozen
class _Note:
    job: str
    since: float
    key: str | None

    @classmethod
    def of(cls, given: Any) -> _Note:
        """Raises `ConfigurationError` for what somebody else wrote, and wrong."""
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"message[{NOTE!r}]: {type(given).__name__} is not allowed; see stamped()")
        job, since, key = given.get("job"), given.get("since"), given.get("key")
        if not isinstance(job, str) or isinstance(since, bool) or not isinstance(since, (int, float)):
            raise ConfigurationError(f"message[{NOTE!r}]: must have a job and a time, as stamped() makes them")
        return cls(job, since, None if key is None else check_key(key))


class PolicyConsumerMixin(_Consumer):
    """Put before `SyncConsumer` or `AsyncConsumer`: handlers of channel messages are run under a policy.

    Calls in a handler have keys: by `stamped(message, key=...)`, else of the message and their content. A message whose
    handler ends with an error comes back when `next_step` says so: this process sends it to its channel again then, and
    until then it is in this process's memory only. No error leaves the handler (it would take all messages with it that
    wait behind this one): what is given up goes to `gave_up`.

    A message that is not `stamped` gets its number here, so that a second delivery of it is another message.

    retry_policy: a `RetryPolicy`, the name of a preset, or a name from the settings. Its waits within a run are waited
        in the worker, where nothing else of this channel is done meanwhile: keep `max_wait` short.

    Raises `ConfigurationError` for a policy that does not exist, when the application is made (`as_asgi`).
    """

    retry_policy: RetryPolicy | str = "worker"

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        """Channels' own, after a look at the policy."""
        policy_named(cls.retry_policy)
        return super().as_asgi(**initkwargs)

    @property
    def _channel(self) -> str:
        """The channel whose messages these are."""
        return str(self.scope.get("channel", ""))

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Run the message's handler once, and see to what comes next."""
        if self.scope["type"] != "channel":  # a connection: whoever is at its other end hears of errors
            await super().dispatch(message)
            return
        policy = policy_named(self.retry_policy)
        if NOTE not in message:
            message = stamped(message)
        note: _Note | None = None
        try:
            note = _Note.of(message[NOTE])
            name = f"channels/{self._channel}/{note.job}"
            with operation(
                key=note.key, scope=None if note.key else name, policy=policy, label=f"{message.get('type')}"
            ):
                await super().dispatch(message)
        except StopConsumer:
            raise
        except Exception as error:
            step = next_step(error, policy=policy, since=None if note is None else note.since)
            if isinstance(step, Settled) and note is not None and note.key is not None:
                return
            if isinstance(step, (GiveUp, Settled)):
                # Settled, but not the handler's only call: what else it had to do was not done.
                await self.gave_up(message, step.error if isinstance(step, GiveUp) else slim(error))
                return
            task = asyncio.create_task(self._come_back(message, step.when))
            _waiting.add(task)
            task.add_done_callback(_waiting.discard)

    async def gave_up(self, message: dict[str, Any], error: Exception) -> None:
        """The message's handler failed for good. `error` has no secret in it that is of a call; here it is logged."""
        what = message.get("type")
        logger.error("a message of type %s on %s is given up: %s", what, self._channel, error, exc_info=error)

    async def _come_back(self, message: dict[str, Any], when: float) -> None:
        await clock.sleep_async(max(0.0, when - clock.now()))
        while True:
            try:
                await self.channel_layer.send(self._channel, message)
            except Exception as error:  # full, or away
                logger.warning("a message could not go back to its channel yet (%s)", type(error).__name__)
                await clock.sleep_async(SOON[0])
            else:
                return


def wake(key: str, using: str | None = None) -> None:
    """Tell a worker that a message is in the outbox: `RETRYPOLICY["OUTBOX"]["HAND_OVER"]`.

    Raises `ConfigurationError` without a channel layer, and what the layer raises (the outbox is ready for both).
    """
    layer = get_channel_layer()
    if layer is None:
        raise ConfigurationError("there is no channel layer to wake a worker by; set CHANNEL_LAYERS")
    message = {"type": "outbox.wake", "key": key}
    async_to_sync(layer.send)(OUTBOX_CHANNEL, message if using is None else {**message, "using": using})


class OutboxConsumer(SyncConsumer):
    """Sends what it is woken for, one attempt each; the rest is the sweeper's.

    ProtocolTypeRouter({"channel": ChannelNameRouter({OUTBOX_CHANNEL: OutboxConsumer.as_asgi()})})
    """

    async def dispatch(self, message: dict[str, Any]) -> None:
        """As Channels' own, but no error gets out: it would take all wake-ups with it that wait behind this one."""
        try:
            await super().dispatch(message)
        except StopConsumer:
            raise
        except Exception as error:
            logger.error("a wake-up came to nothing; the sweeper finds its message: %s", slim(error))

    def outbox_wake(self, message: dict[str, Any]) -> None:
        """Send the message with this key, if nobody did or does."""
        outbox.send(check_key(message.get("key")), using=message.get("using"))
