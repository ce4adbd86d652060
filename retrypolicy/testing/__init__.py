"""Tools for testing programs that retry: loaded by name, each with no more than it needs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrypolicy.clock import VirtualClock
    from retrypolicy.testing.check.checking import check_policy
    from retrypolicy.testing.check.findings import PolicyFindings, PolicyReport
    from retrypolicy.testing.faults.catalogue import FAULTS, PORT_FAULTS, TLS_FAULTS, TUNNEL_FAULTS
    from retrypolicy.testing.faults.incoming import Request
    from retrypolicy.testing.faults.server import FaultServer
    from retrypolicy.testing.faults.steps import (
        Answer,
        Blackhole,
        Close,
        Handshake,
        Interim,
        Raw,
        Refuse,
        Reset,
        Stall,
        Tunnel,
    )
    from retrypolicy.testing.switches import Reports, capped, deactivated, watched
    from retrypolicy.testing.turns import Turn

_CATALOGUE = ("FAULTS", "PORT_FAULTS", "TLS_FAULTS", "TUNNEL_FAULTS")
_STEPS = ("Answer", "Blackhole", "Close", "Handshake", "Interim", "Raw", "Refuse", "Reset", "Stall", "Tunnel")
_HOMES = {
    "VirtualClock": "retrypolicy.clock",
    "PolicyFindings": "retrypolicy.testing.check.findings",
    "PolicyReport": "retrypolicy.testing.check.findings",
    "check_policy": "retrypolicy.testing.check.checking",
    **dict.fromkeys(("Reports", "capped", "deactivated", "watched"), "retrypolicy.testing.switches"),
    "Turn": "retrypolicy.testing.turns",
    "FaultServer": "retrypolicy.testing.faults.server",
    "Request": "retrypolicy.testing.faults.incoming",
    **dict.fromkeys(_CATALOGUE, "retrypolicy.testing.faults.catalogue"),
    **dict.fromkeys(_STEPS, "retrypolicy.testing.faults.steps"),
}

__all__ = [
    "FAULTS",
    "PORT_FAULTS",
    "TLS_FAULTS",
    "TUNNEL_FAULTS",
    "Answer",
    "Blackhole",
    "Close",
    "FaultServer",
    "Handshake",
    "Interim",
    "PolicyFindings",
    "PolicyReport",
    "Raw",
    "Refuse",
    "Reports",
    "Request",
    "Reset",
    "Stall",
    "Tunnel",
    "Turn",
    "VirtualClock",
    "capped",
    "check_policy",
    "deactivated",
    "watched",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
