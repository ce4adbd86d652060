"""What is said to Redis or Valkey for each operation of a ledger, and what the replies mean. No I/O.

Sources: the Redis and Valkey documentation of persistence, replication, eviction, EVAL, WAIT and WAITAOF.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from retrypolicy.clock import Clock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable, PolicyError
from retrypolicy.guard.ledger import ARM_TIMEOUT, RETENTION, Phase, Record, Refused, Take, Taken
from retrypolicy.guard.stepped import Steps

logger = logging.getLogger("retrypolicy.ledger")

PREFIX = "retrypolicy:send:"
SCHEMA_VERSION = 1
_SCRIPT = Path(__file__).with_name("redis.lua").read_text(encoding="utf-8")
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()  # EVALSHA names a script so

# What the script calls a field, and how it is read back.
_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ph": ("phase", lambda text: Phase(int(text))),
    "ta": ("taint", lambda text: text == "1"),
    "fe": ("fence", int),
    "ge": ("generation", int),
    "ow": ("owner", bytes.fromhex),
    "to": ("token", bytes.fromhex),
    "le": ("lease", float),
    "fs": ("first_seen", float),
    "fa": ("first_armed", float),
    "la": ("last_armed", float),
    "at": ("attempts", int),
    "nb": ("not_before", float),
    "fp": ("fingerprint", bytes.fromhex),
    "re": ("result", json.loads),
    "lb": ("label", str),
    "pr": ("provider", str),
    "ex": ("expires", float),
}


@frozen
class Batch:
    """Commands for one connection and one round trip; an error reply comes back as an exception.

    `name` is the Redis key that says which node of a cluster.
    """

    name: str
    commands: Sequence[tuple[Any, ...]]


class RedisSteps:
    """What is said to the server, and what its replies mean; no I/O, so that the sync and the async ledger share it."""

    def __init__(
        self,
        *,
        retention: float = RETENTION,
        timeout: float = ARM_TIMEOUT,
        wait_replicas: int = 0,
        wait_aof: bool | None = None,
        allow_forgetful: bool = False,
        clock: Clock | None = None,
        prefix: str = PREFIX,
    ) -> None:
        for name, seconds in (("retention", retention), ("timeout", timeout)):
            if not seconds > 0:
                raise PolicyError.of(name, seconds, "more than 0 seconds")
        if wait_replicas < 0:
            raise PolicyError.of("wait_replicas", wait_replicas, "0 or more")
        self.timeout = timeout
        self.prefix = prefix
        self.pattern = re.sub(r"([\\*?\[\]^-])", r"\\\1", prefix) + "*"
        self.checked = False
        self.server_collects = clock is None
        self._retention = repr(float(retention))
        self._patience = int(timeout * 750)  # milliseconds: an answer must come before the client hangs up
        self._wait_replicas = wait_replicas
        self._wait_aof = wait_aof
        self._allow_forgetful = allow_forgetful
        self._clock = clock
        self._waits: list[tuple[tuple[Any, ...], int, str]] = []

    # -- the operations of a ledger

    def arm(self, take: Take) -> Steps[Taken | Refused]:
        yield from self._check()
        waits = self._waits
        reply, *acknowledged = yield from self._say("arm", take.key, *_take(take), waits=waits)
        answer = _answer(take.key, reply)
        if isinstance(answer, Taken):
            for (_, wanted, who), got in zip(waits, acknowledged, strict=True):
                if isinstance(got, Exception) or _count(got) < wanted:
                    # Nobody will send on this arm: give it back rather than leave it to be held. If that fails too, or
                    # is lost, the key ends up held, and still nothing is sent.
                    yield from self._say("park", take.key, take.owner.hex(), answer.fence, "0.0", "0.0")
                    raise LedgerUnavailable(
                        f"ledger in Redis: the arm was not acknowledged by {who} in time; nothing was sent"
                    )
        return answer

    def claim(self, take: Take) -> Steps[Taken | Refused]:
        yield from self._check()
        (reply,) = yield from self._say("claim", take.key, *_take(take))
        return _answer(take.key, reply)

    def read(self, key: bytes) -> Steps[tuple[Record | None, float]]:
        (reply,) = yield from self._say("read", key)
        return record_of(key, reply[2:]), float(text_of(reply[1]))

    def park(self, key: bytes, owner: bytes, fence: int, lease: float, not_before: float) -> Steps[bool]:
        return self._change("park", key, owner.hex(), fence, repr(float(lease)), repr(float(not_before)))

    def done(self, key: bytes, result: Mapping[str, Any], provider: str) -> Steps[bool]:
        return self._change("done", key, _json(result), provider)

    def reject(self, key: bytes, owner: bytes, fence: int, sure: bool, not_before: float) -> Steps[bool]:
        return self._change("reject", key, owner.hex(), fence, int(sure), repr(float(not_before)))

    def unknown(self, key: bytes, owner: bytes, fence: int, not_before: float) -> Steps[bool]:
        return self._change("unknown", key, owner.hex(), fence, repr(float(not_before)))

    def expire(self, key: bytes, fence: int) -> Steps[bool]:
        return self._change("expire", key, fence)

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        quiet: float,
        result: Mapping[str, Any] | None,
    ) -> Steps[bool]:
        text = _json(result or {}) if result or verdict == "applied" else ""
        return self._change("resolve", key, fence, verdict, repr(float(quiet)), text)

    def purge(self, key: bytes) -> Steps[bool]:
        return self._change("purge", key)

    def problems(self) -> Steps[list[str]]:
        forgets, weak = yield from self._inspect()
        return forgets + weak

    # -- how

    def _change(self, operation: str, key: bytes, *arguments: Any) -> Steps[bool]:
        (reply,) = yield from self._say(operation, key, *arguments)
        return bool(reply[0])

    def _say(
        self, operation: str, key: bytes, *arguments: Any, waits: Sequence[tuple[tuple[Any, ...], int, str]] = ()
    ) -> Steps[list[Any]]:
        name = self.prefix + key.hex()
        now = "" if self._clock is None else repr(self._clock.now())
        arguments = (1, name, operation, self._retention, now, *arguments)
        commands = [("EVALSHA", _SHA, *arguments), *(command for command, _, _ in waits)]
        replies: list[Any] = yield Batch(name, commands)
        if is_a(replies[0], "NoScriptError"):  # a new server, or one that was restarted
            replies = yield Batch(name, [("EVAL", _SCRIPT, *arguments), *commands[1:]])
        if isinstance(replies[0], Exception):
            raise _of_another_version(operation, replies[0]) or unavailable(replies[0])
        return replies

    def _check(self) -> Steps[None]:
        """Once, and again after trouble: another server may have taken over."""
        if self.checked:
            return
        forgets, _ = yield from self._inspect()
        if forgets and not self._allow_forgetful:
            raise ConfigurationError(
                f"ledger in Redis: this server may forget what was sent, which is then sent twice: "
                f"{'; '.join(forgets)} (allow_forgetful=True accepts that)"
            )
        self.checked = True

    def _inspect(self) -> Steps[tuple[list[str], list[str]]]:
        """Why this server forgets, and where it is only weaker than it could be. Decides what an arm waits for."""
        forgets, weak = [], []
        policy = yield from self._setting("maxmemory-policy", "memory", "maxmemory_policy")
        aof = yield from self._setting("appendonly", "persistence", "aof_enabled")
        fsync = yield from self._setting("appendfsync")
        if policy is None or aof is None:
            weak.append("the server shows neither CONFIG nor INFO: whether it keeps what it is told can't be checked")
            logger.warning("ledger in Redis: %s", weak[-1])
        if policy not in (None, "noeviction"):
            forgets.append(f"maxmemory-policy is {policy}, must be noeviction")
        off = aof in ("no", "0")
        if off:
            forgets.append("appendonly is no, must be yes")
        elif aof and fsync != "always" and self._wait_aof is False:
            weak.append(f"appendfsync is {fsync or 'unknown'}: a power failure may forget the last sends")
        elif fsync == "no":
            forgets.append("appendfsync is no, must be always or everysec")
        waits: list[tuple[tuple[Any, ...], int, str]] = []
        by_itself = bool(aof) and fsync in ("everysec", None) and not self._wait_replicas
        if not off and (by_itself if self._wait_aof is None else self._wait_aof):
            if isinstance((yield from self._ask("WAITAOF", 0, 0, 0)), Exception):
                forgets.append("appendfsync is not always, and this server has no WAITAOF (Redis 7.2, Valkey)")
            waits.append((("WAITAOF", 1, 0, self._patience), 1, "the server's disk"))
        replication = yield from self._ask("INFO", "replication")
        replicas = 0 if isinstance(replication, Exception) else int(replication.get("connected_slaves", 0))
        if self._wait_replicas:
            waits.insert(0, (("WAIT", self._wait_replicas, self._patience), self._wait_replicas, "the replicas"))
            if replicas < self._wait_replicas:
                weak.append(f"wait_replicas is {self._wait_replicas}, but {replicas} are connected: arms are refused")
        elif replicas:
            weak.append("replicas follow without wait_replicas: a failover may forget the last sends")
        self._waits = waits
        return forgets, weak

    def _setting(self, name: str, section: str = "", field: str = "") -> Steps[str | None]:
        reply = yield from self._ask("CONFIG GET", name)
        if isinstance(reply, Exception) and section:  # managed services forbid CONFIG
            reply = yield from self._ask("INFO", section)
            name = field
        if isinstance(reply, Exception):
            return None
        found = {text_of(key): text_of(value) for key, value in reply.items()}
        return found.get(name)

    def _ask(self, *command: Any) -> Steps[Any]:
        (reply,) = yield Batch("", [command])
        return reply


def is_a(reply: Any, name: str) -> bool:
    """Whether this is an error of that class, of whichever client library."""
    return isinstance(reply, Exception) and any(kind.__name__ == name for kind in type(reply).__mro__)


def unavailable(error: Exception) -> LedgerUnavailable:
    """What a ledger raises instead of its client's error."""
    if isinstance(error, LedgerUnavailable):
        return error
    unavailable = LedgerUnavailable(f"ledger in Redis: {type(error).__name__}: {error}")
    unavailable.__cause__ = error
    return unavailable


def _of_another_version(operation: str, error: Exception) -> ConfigurationError | LedgerUnavailable | None:
    _, ours, version = str(error).partition("RETRYPOLICY ")
    if not ours:
        return None
    text = (
        f"ledger in Redis: a record of schema {version}, and this release reads {SCHEMA_VERSION}: upgrade retrypolicy"
    )
    # After a send, the caller still gets its answer.
    return (ConfigurationError if operation in ("arm", "claim", "read") else LedgerUnavailable)(text)


def is_current(fields: Mapping[Any, Any]) -> bool:
    """Whether a hash, as a client gives it, is a record of this version; or none."""
    return not fields or text_of(fields.get(b"ve") or fields.get("ve")) == str(SCHEMA_VERSION)


def record_of(key: bytes, flat: Sequence[Any]) -> Record | None:
    """The record from names and values in turn; None if there are none."""
    if not flat:
        return None
    values: dict[str, Any] = {}
    for short, value in zip(flat[::2], flat[1::2], strict=True):
        if (name := text_of(short)) != "ve":
            name, read = _FIELDS[name]
            values[name] = read(text_of(value))
    return Record(key=key, **values)


def _take(take: Take) -> tuple[Any, ...]:
    return (
        take.owner.hex(),
        take.token.hex(),
        take.fingerprint.hex(),
        repr(float(take.lease)),
        take.generation,
        take.attempts,
        "" if take.window is None else repr(float(take.window)),
        repr(float(take.not_before)),
        take.label.encode(),
        take.provider.encode(),
    )


def _answer(key: bytes, reply: Sequence[Any]) -> Taken | Refused:
    if not reply[0]:
        record = record_of(key, reply[2:])
        assert record is not None
        return Refused(record=record, now=float(text_of(reply[1])))
    fence, attempts, first_seen, first_armed, taint = map(text_of, reply[2:])
    return Taken(
        fence=int(fence),
        attempts=int(attempts or 0),
        first_seen=float(first_seen or 0),
        first_armed=float(first_armed) if first_armed else None,
        tainted=taint == "1",
    )


def _count(reply: Any) -> int:
    """How many acknowledged: WAIT answers a number, WAITAOF [this server, replicas]."""
    return int(reply[0] if isinstance(reply, (list, tuple)) else reply)


def text_of(value: Any) -> str:
    """A reply as text, whether or not the client decodes replies."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _json(result: Mapping[str, Any]) -> str:
    return json.dumps(dict(result), separators=(",", ":"))
