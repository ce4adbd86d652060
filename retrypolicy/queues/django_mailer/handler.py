"""on_error(): what becomes of a message that could not be sent. One message never stops the others."""

from __future__ import annotations

import logging
from typing import Any

from anymail.exceptions import AnymailError
from django.db import DatabaseError, transaction
from mailer.models import (
    PRIORITY_DEFERRED,
    PRIORITY_MEDIUM,
    RESULT_FAILURE,
    RESULT_SUCCESS,
    Message,
    MessageLog,
    email_to_db,
    get_message_id,
)

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import CallRefused, RetryPolicyError
from retrypolicy.queues.django_mailer.backends import EmailBackend
from retrypolicy.queues.django_mailer.models import Deferral
from retrypolicy.queues.django_mailer.stamp import Unreadable, is_stamped, readable, stamp
from retrypolicy.reports import report
from retrypolicy.step import SOON, GiveUp, Held, RetryAt, Settled, Step, Wait, next_step, patience, slim

clock: Clock = SystemClock()
logger = logging.getLogger("retrypolicy")

_STATES = {RetryAt: Deferral.State.RETRY, Wait: Deferral.State.WAIT, Held: Deferral.State.HELD}


def on_error(connection: Any, message: Message, error: Exception) -> tuple[Any, str]:
    """For `MAILER_ERROR_HANDLER`. Called by django-mailer in the transaction that has the message's row.

    The message is put off until it is due; or it is given up: it goes from the queue into `MessageLog`, with an error
    in the log. Raises the error where there is no backend: then no message can be sent, and all stay.
    """
    if not isinstance(connection, EmailBackend):
        raise error
    if isinstance(error, Unreadable):
        transaction.set_rollback(False)  # Django wants one for a failed deletion, but nothing was done
    try:
        with transaction.atomic():
            return connection, _Case(connection, message, error).settled()
    except DatabaseError as broken:
        # django-mailer takes an OperationalError for another sender's lock, and would end.
        logger.error("message %s stays in the queue: the database refused (%s)", message.pk, type(broken).__name__)
        return connection, "deferred"


class _Case:
    """One message, and the error that kept it from being sent."""

    def __init__(self, connection: EmailBackend, row: Message, error: Exception) -> None:
        self.policy, self.row, self.error = connection.policy, row, error
        self.now = clock.now()
        self.before = Deferral.objects.filter(pk=row.pk).first()
        self.since = self.now if self.before is None else self.before.since

    def settled(self) -> str:
        """Do what is to be done with the row; says "sent" or "deferred"."""
        email = readable(self.row)
        if email is None:
            logger.error("message %s can't be unpickled, and is put off", self.row.pk)
            self._put_off(self._soon(), Deferral.State.UNREADABLE)
            return "deferred"
        if not is_stamped(email):
            try:
                self._update(message_data=email_to_db(stamp(email)))
            except RetryPolicyError as wrong:
                self.error = wrong
            else:
                return "deferred"  # it is next in the next run
        match step := self._step():
            case Settled():
                MessageLog.objects.log(self.row, RESULT_SUCCESS)
                self.row.delete()
                return "sent"
            case GiveUp(error=last):
                told = slim(last)
                logger.error("message %s is given up: %s", self.row.pk, told)
                self._log(told, message_id=get_message_id(email), message_data=self.row.message_data)
                self.row.delete()
            case RetryAt() | Wait() | Held():
                found = report(self.error)
                if found is not None and found.attempts:
                    self._log(slim(self.error), message_id=get_message_id(email))
                self._put_off(step.when, _STATES[type(step)])
        return "deferred"

    def _step(self) -> Step:
        since = None if self.before is None else self.since
        step = next_step(self.error, policy=self.policy, since=since, now=self.now)
        if isinstance(self.error, (AnymailError, CallRefused)) or report(self.error) is not None:
            return step
        # Not about this message: a receiver of a signal, a disk, a setting. All may meet it, so it costs none of them.
        over = self.policy.lifetime is not None and self.now >= self.since + self.policy.lifetime
        return step if over else RetryAt(when=self._soon())

    def _soon(self) -> float:
        return self.now + patience(self.now - self.since, SOON)

    def _put_off(self, when: float, state: Deferral.State) -> None:
        priority = self.row.priority
        if priority == PRIORITY_DEFERRED:
            priority = PRIORITY_MEDIUM if self.before is None else self.before.priority
        self._update(priority=PRIORITY_DEFERRED)
        Deferral(pk=self.row.pk, since=self.since, due=when, priority=priority, state=state).save()

    def _update(self, **fields: Any) -> None:
        # Not `save()`, which would pickle again what may have changed on its way to the provider.
        Message.objects.filter(pk=self.row.pk).update(**fields)

    def _log(self, error: Exception, **fields: Any) -> None:
        # The message itself only where it leaves the queue: it would be stored once for every attempt.
        row = self.row
        MessageLog.objects.create(
            when_added=row.when_added, priority=row.priority, result=RESULT_FAILURE, log_message=str(error), **fields
        )
