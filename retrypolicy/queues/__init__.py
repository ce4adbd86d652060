"""Queues: one answer to "what now?" for every one of them, and an adapter for each (import those by their names)."""

from __future__ import annotations

from retrypolicy.errors import SendFailed as SendFailed
from retrypolicy.step import GiveUp as GiveUp
from retrypolicy.step import Held as Held
from retrypolicy.step import RetryAt as RetryAt
from retrypolicy.step import Settled as Settled
from retrypolicy.step import Step as Step
from retrypolicy.step import Wait as Wait
from retrypolicy.step import next_step as next_step
from retrypolicy.step import slim as slim

__all__ = ["GiveUp", "Held", "RetryAt", "SendFailed", "Settled", "Step", "Wait", "next_step", "slim"]
