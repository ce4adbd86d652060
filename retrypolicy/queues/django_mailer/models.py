"""What the queue knows of a message that was put off, beside what its own row has room for."""

from __future__ import annotations

from django.db import models
from mailer.models import Message


class Deferral(models.Model):
    """Goes when its message goes. Times are wall-clock seconds since the epoch."""

    class State(models.TextChoices):
        """What the message waits for."""

        RETRY = "retry", "to be sent"
        WAIT = "wait", "in another sender's hands"
        HELD = "held", "held until its key is resolved"
        UNREADABLE = "unreadable", "can't be unpickled"

    message = models.OneToOneField(Message, models.CASCADE, primary_key=True, related_name="deferral")
    since = models.FloatField()  # when it first failed
    due = models.FloatField(db_index=True)
    priority = models.PositiveSmallIntegerField()  # which the message's row loses
    state = models.CharField(max_length=10, choices=State.choices)

    class Meta:
        """Names for the admin."""

        verbose_name = "deferral"
        verbose_name_plural = "deferrals"

    def __str__(self) -> str:
        return f"message {self.pk}: {self.state}"
