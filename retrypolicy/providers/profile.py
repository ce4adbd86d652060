"""`Provider`: what one API promises about repeats, limits and failures, bound to its hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from attrs import field, frozen

from retrypolicy._validate import flag, instance_or_none, optional_number, strict
from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.http.pushback import Hint
from retrypolicy.providers.answers import Answers
from retrypolicy.providers.key import KeyPlacement
from retrypolicy.rules import Rule

_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\Z|\[?[0-9a-f:.]+\]?\Z")


def _name(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", value):
        raise PolicyError.of("Provider.name", value, "a name in lower case, such as my_esp")


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = (value,) if isinstance(value, str) else tuple(value)
    for host in hosts:
        if not isinstance(host, str) or not _HOST.match(host):
            raise PolicyError.of("Provider.hosts", host, "a host in lower case, or *.example.com; no port")
    return hosts


# Type checkers read the converter's parameter as the field's type; of `tuple` itself they make nothing useful.


def _rules(value: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(value)


def _hints(value: Iterable[Hint]) -> tuple[Hint, ...]:
    return tuple(value)


def _names(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _all(kind: type) -> Any:
    def check(instance: Any, attribute: Any, value: tuple[Any, ...]) -> None:
        for item in value:
            if not isinstance(item, kind):
                raise PolicyError.of(f"Provider.{attribute.name}", item, f"a {kind.__name__}")

    return check


@strict
@frozen(kw_only=True)
class Provider:
    """A profile of one API. All of it is data; the profiles that come with the library are TOML files.

    Fields:
        name: what policies, settings and reports call it.
        hosts: exact names, or `*.example.com` for every name below it. On other hosts no key is placed.
        key: where and how long it honours an idempotency key; None: it doesn't.
        rules: what its answers mean, before the standard table.
        hints: its own headers about waiting.
        volatile, secret: parts of a request's body that change from build to build, or that nobody may store: JSON
            Pointers (`*`: every element of an array) or names of form fields. Neither is part of the fingerprint.
        answers: what may be kept of an answer, and how a replayed answer is made.
        quiet: seconds that must pass before "the provider does not know this message" counts as evidence.
        event_quiet: minutes without an event after which a message can be taken for not sent; None: unknown.
        metadata: are metadata of a message reported back in its events?

    Raises `PolicyError` for values that can't be.
    """

    name: str = field(validator=_name)
    hosts: tuple[str, ...] = field(default=(), converter=_hosts)
    key: KeyPlacement | None = field(default=None, validator=instance_or_none(KeyPlacement))
    rules: tuple[Rule, ...] = field(default=(), converter=_rules, validator=_all(Rule))
    hints: tuple[Hint, ...] = field(default=(), converter=_hints, validator=_all(Hint))
    volatile: tuple[str, ...] = field(default=(), converter=_names, validator=_all(str))
    secret: tuple[str, ...] = field(default=(), converter=_names, validator=_all(str))
    answers: Answers = field(factory=Answers, validator=instance_or_none(Answers))
    quiet: float | None = field(default=None, validator=optional_number(0))
    event_quiet: float | None = field(default=None, validator=optional_number(0))
    metadata: bool = field(default=False, validator=flag)

    def __hash__(self) -> int:
        return hash((self.name, self.hosts, self.key))

    def covers(self, host: str) -> bool:
        """Does the profile speak of this host (without its port)?"""
        host = host.lower().removesuffix(".")
        return any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in self.hosts)

    def honours(self, method: str, host: str, path: str) -> bool:
        """Would the API honour a key on this request?"""
        return self.key is not None and self.covers(host) and self.key.takes(method, path)

    def outgoing(self, key: str, generation: int = 1) -> str:
        """The key as the provider gets it. `generation` counts the contents that the call has had."""
        return self._key().outgoing(key, generation)

    def given(self, headers: Mapping[str, str], body: bytes | str | None) -> str | None:
        """The key that the caller put into the request, if any."""
        return None if self.key is None else self.key.given(headers, body)

    def place(self, headers: MutableMapping[str, str], body: bytes | str | None, outgoing: str) -> bytes | str | None:
        """Put the key into the request: changes `headers`, or returns the new body, of the same type.

        Whoever sends it must see to its Content-Length. Raises `ConfigurationError` where the key can't be placed.
        """
        return self._key().place(headers, body, outgoing)

    def _key(self) -> KeyPlacement:
        if self.key is None:
            raise ConfigurationError(f"{self.name} honours no idempotency key")
        return self.key

    def summary(
        self,
        status: int,
        body: bytes | None,
        *,
        headers: Mapping[str, str] | None = None,
        request: bytes | str | None = None,
    ) -> dict[str, Any]:
        """What the ledger may keep of an answer: its status and the profile's ids; never an address or a text.

        `request` is the body that was sent: without it, nothing that the answer says of single recipients is kept.
        """
        return self.answers.summary(status, body, headers or {}, request)

    def replay(
        self, result: Mapping[str, Any] | None, request: bytes | str | None
    ) -> tuple[int, dict[str, str], bytes] | None:
        """The answer to a call that was done earlier: status, headers and body, None where none can be made.

        `result` is the kept summary; `request` the body of the request that is repeated: addresses come from it.
        """
        return self.answers.made(result or {}, request)
