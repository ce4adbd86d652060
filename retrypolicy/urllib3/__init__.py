"""Evidence from the wire, and the engine, for urllib3: with or without requests on top.

`RetryPoolManager` and `RetryProxyManager` stand where urllib3's managers do. They are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrypolicy.urllib3.convert import from_urllib3
    from retrypolicy.urllib3.manager import RetryPoolManager, RetryProxyManager

_HOMES = {
    "RetryPoolManager": "retrypolicy.urllib3.manager",
    "RetryProxyManager": "retrypolicy.urllib3.manager",
    "from_urllib3": "retrypolicy.urllib3.convert",
}

__all__ = ["RetryPoolManager", "RetryProxyManager", "from_urllib3"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
