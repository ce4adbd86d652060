"""What a call's steps ask a driver for, and what they raise to a transport."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from attrs import frozen

from retrypolicy.decision import Decision
from retrypolicy.guard.ledger import Record
from retrypolicy.guard.reconcile import HeldSend, Reconciler


@frozen
class Attempt:
    """Asked of a driver: make one attempt, and send back its outcome."""


@frozen
class Wait:
    """Asked of a driver: sleep, and send back whether the sleep was cut short."""

    seconds: float


@frozen
class Perform:
    """Asked of a driver: do this operation of the ledger, and send back its answer."""

    operation: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]


@frozen
class Ask:
    """Asked of a driver: ask this reconciler about this held send, and send back its verdict."""

    reconciler: Reconciler
    held: HeldSend


ATTEMPT = Attempt()
Command = Attempt | Wait | Perform | Ask
Steps = Generator[Command, Any, Decision]


class Renew(Exception):
    """Internal: the key was refused before under other content, and goes out anew as this generation."""

    def __init__(self, generation: int) -> None:
        self.generation = generation


class Replay(Exception):
    """Internal: the call was done earlier; `result` is what the ledger kept of it."""

    def __init__(self, record: Record) -> None:
        self.record = record
