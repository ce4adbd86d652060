"""check_policy: a model world in which a policy shows whether it keeps the laws of retrying. Needs hypothesis.

The world is made of the real engine, the real ledger and virtual time; what the model's server acted on is the truth.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrypolicy.testing.check.checking import check_policy
    from retrypolicy.testing.check.findings import Finding, PolicyFindings, PolicyReport

# Lazily: the command must come as far as its own error message where hypothesis is not installed.
_HOMES = {
    "Finding": "findings",
    "PolicyFindings": "findings",
    "PolicyReport": "findings",
    "check_policy": "checking",
}

__all__ = ["Finding", "PolicyFindings", "PolicyReport", "check_policy"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
