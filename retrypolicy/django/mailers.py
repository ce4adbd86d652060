"""What a project's settings say about the ways it sends mail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen
from django.conf import settings
from django.utils.module_loading import import_string


@frozen
class Mailer:
    """One way to send mail: where it is set, the backend's path, its options."""

    where: str
    backend: str
    options: Mapping[str, Any]

    @property
    def ours(self) -> bool:
        """Is it one of the ready backends?"""
        return self.backend.startswith("retrypolicy.")

    @property
    def guarded(self) -> bool:
        """Is it one of ours, or somebody's with `RetryMixin`?"""
        try:
            return self.ours or hasattr(import_string(self.backend), "retry_provider")
        except ImportError:
            return False

    @property
    def counterpart(self) -> str | None:
        """The path of our backend for the same provider, if this is one of Anymail's own."""
        room, _, name = self.backend.removesuffix(".EmailBackend").rpartition(".")
        name = "brevo" if name == "sendinblue" else name
        if room != "anymail.backends" or name in ("console", "test"):
            return None
        return f"retrypolicy.anymail.backends.{name}.EmailBackend"


def mailers() -> Iterator[Mailer]:
    """Those of `MAILERS` (Django 6.1), else the one of `EMAIL_BACKEND`."""
    given = getattr(settings, "MAILERS", None)
    if isinstance(given, Mapping) and given:
        for alias, config in given.items():
            if isinstance(config, Mapping):
                options = config.get("OPTIONS")
                found = options if isinstance(options, Mapping) else {}
                yield Mailer(f"MAILERS[{alias!r}]", str(config.get("BACKEND", "")), found)
    else:
        yield Mailer("EMAIL_BACKEND", str(getattr(settings, "EMAIL_BACKEND", "")), {})
