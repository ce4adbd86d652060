"""The ledger in Redis or Valkey: one script, one hash for each key, one round trip for each operation.

What is said to the server, and when, is in `redis_steps`; what a single operation does there, in `redis.lua`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import Filter, Phase, Record
from retrypolicy.guard.redis_steps import Batch, RedisSteps, is_a, is_current, record_of, text_of, unavailable
from retrypolicy.guard.stepped import SteppedLedger, Steps, take_options, yes_or_no

T = TypeVar("T")
_PAGE = 500

_OPTIONS: dict[str, Callable[[str], Any]] = {
    "retention": float,
    "timeout": float,
    "wait_replicas": int,
    "wait_aof": yes_or_no,
    "allow_forgetful": yes_or_no,
    "prefix": str,
}


class RedisLedger(SteppedLedger[RedisSteps]):
    """A ledger in Redis (6.2 or newer) or Valkey, for any number of machines.

    `client_or_url`: a URL as redis-py understands it (`redis://`, `rediss://`, `unix://`; `valkey://` and `valkeys://`
    as well), or a client of redis-py or valkey-py, single or cluster. A client keeps its own time-outs and retries; one
    made here has `timeout` seconds for an answer, half of it to connect, and asks again once after a lost connection.

    The server must not forget. One without append-only file, or that evicts, is refused when a key is first armed
    (`ConfigurationError`), unless `allow_forgetful`. `wait_aof`: every arm waits until it is on the server's disk;
    None means where appendfsync is not "always" and no replicas are waited for (with "everysec" that takes up to a
    second for each send: prefer "always"); False accepts that a power failure forgets the last second. `wait_replicas`
    is how many replicas must have an arm before anything is sent: without it, a failover can forget arms, and those
    sends happen twice. All times are the server's; `clock` is for tests, and stops the server from collecting expired
    records by itself. Listing scans the whole database.
    """

    def __init__(self, client_or_url: Any, **options: Any) -> None:
        self._steps = RedisSteps(**options)
        self._own = isinstance(client_or_url, str)
        self._client = connect(client_or_url, self._steps.timeout) if self._own else a_client(client_or_url)

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None, **options: Any) -> RedisLedger:
        """A URL may carry this class's own options and redis-py's: `redis://host/0?wait_replicas=1&health_check_interval=30`."""
        url, found = split_options(url)
        return cls(url, clock=clock, **(found | options))

    def records(self, where: Filter = Filter()) -> Iterator[Record]:  # noqa: B008 - an immutable value
        for record, now in self._scan():
            if transitions.matches(record, where, now):
                yield record

    def counts(self) -> Mapping[Phase, int]:
        return Counter(record.phase for record in self.records())

    def purge(self, limit: int = 500, *, dry_run: bool = False) -> int:
        if self._steps.server_collects:
            return 0  # the server does it
        over = (record.key for record, now in self._scan() if transitions.live(record, now) is None)
        if dry_run:
            return len(list(over))
        return sum(self._run(self._steps.purge(key)) for key in islice(over, limit))

    def close(self) -> None:
        if self._own:
            self._client.close()

    def _scan(self) -> Iterator[tuple[Record, float]]:
        """Every record as stored, and the time. A growing table may show some twice: those are left out."""
        names = self._client.scan_iter(match=self._steps.pattern, count=_PAGE)
        seen: set[bytes] = set()
        while True:
            try:
                page = [text_of(name) for name in islice(names, _PAGE)]
                pipeline = self._client.pipeline(transaction=False)
                for name in page:
                    pipeline.hgetall(name)
                found = pipeline.execute() if page else []
            except Exception as error:
                raise unavailable(error) from error
            if not page:
                return
            keys = [bytes.fromhex(name.removeprefix(self._steps.prefix)) for name in page]
            _, now = self.read(keys[0])
            for key, flat in zip(keys, found, strict=True):
                if is_current(flat):
                    record = record_of(key, [item for pair in flat.items() for item in pair])
                else:
                    record = self.read(key)[0]
                if record is not None and key not in seen:
                    seen.add(key)
                    yield record, now

    def _run(self, steps: Steps[T]) -> T:
        try:
            batch = next(steps)
            while True:
                batch = steps.send(self._exchange(batch))
        except StopIteration as end:
            answer: T = end.value
            return answer
        except LedgerUnavailable:
            self._steps.checked = False
            raise

    def _exchange(self, batch: Batch) -> list[Any]:
        give_up = _system.monotonic() + self._steps.timeout / 4
        try:
            return self._send(batch)
        except Exception as error:
            # A connection from before the server's restart. What was said may be said again.
            if not is_a(error, "ConnectionError") or _system.monotonic() > give_up:
                raise unavailable(error) from error
        try:
            return self._send(batch)
        except Exception as error:
            raise unavailable(error) from error

    def _send(self, batch: Batch) -> list[Any]:
        client = self._client
        if len(batch.commands) == 1:
            try:
                return [client.execute_command(*batch.commands[0])]
            except Exception as error:
                if not is_a(error, "ResponseError"):
                    raise
                return [error]
        if hasattr(client, "get_node_from_key"):  # a cluster: WAIT must follow on the same connection
            client = client.get_redis_connection(client.get_node_from_key(batch.name))
        pipeline = client.pipeline(transaction=False)
        for command in batch.commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        if is_a(replies[0], "MovedError"):
            self._client.nodes_manager.initialize()
        return replies


_system = SystemClock()


def a_client(given: Any) -> Any:
    """The client, if it is one. Raises `ConfigurationError`."""
    if not callable(getattr(given, "execute_command", None)):
        raise ConfigurationError(
            f"ledger in Redis: {type(given).__name__} is not allowed; "
            "must be a URL or a client of redis-py or valkey-py"
        )
    return given


def connect(url: str, timeout: float, kind: str = "") -> Any:
    """A client with short time-outs and without retries of its own. `kind` is "" or ".asyncio"."""
    for library in ("redis", "valkey"):
        try:
            module, retry, backoff = (import_module(library + part) for part in (kind, f"{kind}.retry", ".backoff"))
            break
        except ImportError:
            continue
    else:
        raise ConfigurationError("a ledger in Redis needs the package redis: pip install 'retrypolicy[redis]'")
    url = "redis" + url.removeprefix("valkey") if url.startswith("valkey") else url
    try:
        client = module.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout / 2,
            retry=retry.Retry(backoff.NoBackoff(), 0),
        )
    except ValueError:
        # Its words may quote the URL, password included.
        raise ConfigurationError(
            "ledger: this URL is not allowed; must be redis://, rediss://, valkey:// or valkeys:// with a host, "
            "a port and the number of a database"
        ) from None
    pool = client.connection_pool
    try:
        pool.connection_class(**pool.connection_kwargs)  # does not connect yet
    except Exception as error:  # it says what it does not know, and in a class of its library's own
        raise ConfigurationError(f"ledger: the options in this URL are not allowed: {error}") from None
    return client


def split_options(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without our own options, and these."""
    return take_options(url, _OPTIONS)
