"""What is said to PostgreSQL for each operation of a ledger, and what the rows mean. No I/O.

Each operation reads the row, asks the pure transition, and writes what it says if the row is still the same (xmin).
The usual arm and the usual done are one statement each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Literal, TypeVar

from attrs import fields, frozen

from retrypolicy.clock import Clock, SystemClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable, PolicyError
from retrypolicy.guard import transitions
from retrypolicy.guard.ledger import ARM_TIMEOUT, RETENTION, Filter, Phase, Record, Refused, Take, Taken
from retrypolicy.guard.stepped import Steps

T = TypeVar("T")

TABLE = "retrypolicy_ledger"
SCHEMA_VERSION = 1
_COMMENT = "retrypolicy ledger, schema "
# From each older version to the next one, as statements of PL/pgSQL with {table} in them. They may only add what has a
# default: processes of an older release go on.
_UPGRADES: dict[int, str] = {}
_LOCK = 0x52504C47  # one creation of a table at a time
_PAGE = 500
_AT_ONCE, _STEP = 25, 0.01  # of a purge: records in one transaction, and seconds after which no other one is begun
_ROUNDS = 20  # how often a record may change under our hands before we give up

_system = SystemClock()
_NAMES = tuple(field.name for field in fields(Record))
_COLUMNS = ", ".join(_NAMES)
_values = attrgetter(*_NAMES)

# `collect_hour` stays the same from arm to done (but for those that meet the full hour), and no other column of an
# index changes: the update is a HOT one, which leaves the indexes alone.
_SCHEMA = """
SELECT pg_advisory_xact_lock({lock});
CREATE TABLE IF NOT EXISTS {table} (
    key bytea PRIMARY KEY, phase smallint NOT NULL, taint boolean NOT NULL, fence bigint NOT NULL,
    generation integer NOT NULL, owner bytea, token bytea, lease float8 NOT NULL, first_seen float8 NOT NULL,
    first_armed float8, last_armed float8, attempts integer NOT NULL, not_before float8 NOT NULL,
    fingerprint bytea NOT NULL, result text, label text NOT NULL, provider text NOT NULL, expires float8 NOT NULL,
    collect_hour integer NOT NULL GENERATED ALWAYS AS (least(floor(expires / 3600), 2147483647)::integer) STORED
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS {index} ON {table} (collect_hour);
COMMENT ON TABLE {table} IS '{comment}{version}'
"""
# One process after the other, and only if none did it meanwhile: each statement looks anew, whatever the session's
# isolation. And without patience: behind a table that is read for long, all senders would wait with us.
_UPGRADE = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SELECT pg_advisory_xact_lock({lock});
DO $upgrade$ BEGIN
    IF obj_description(to_regclass({name}), 'pg_class') = '{comment}{version}' THEN
        {steps}
        COMMENT ON TABLE {table} IS '{comment}{next}';
    END IF;
END $upgrade$;
COMMIT
"""

# A time taken once for the whole statement, never now(): that is when the transaction began. And whether this commit
# waits for the disk, whatever the session says; set for this one statement.
_BEGIN = """
WITH t AS MATERIALIZED (
    SELECT coalesce(%(clock)s::float8, extract(epoch FROM clock_timestamp())::float8) AS now,
    set_config('synchronous_commit', %(sync)s, true) AS sync)
"""
# What was decided a while ago (by a process that was stopped in between) is decided anew.
_STILL = "abs(t.now - %(now)s) < 1"

_READ = "{begin} SELECT t.now, r.xmin::text, {columns} FROM t LEFT JOIN {table} r ON r.key = %(key)s"
_TAKE = """{begin}, fresh AS (
    INSERT INTO {table} AS r ({columns})
    SELECT %(key)s, %(phase)s, false, 1, %(generation)s, %(owner)s, %(token)s, t.now + %(lease)s, t.now,
        CASE WHEN %(armed)s THEN t.now END, CASE WHEN %(armed)s THEN t.now END, %(attempts)s,
        CASE WHEN %(armed)s THEN 0 ELSE %(not_before)s::float8 END, %(fingerprint)s, NULL, %(label)s, %(provider)s,
        greatest(t.now + %(retention)s, %(not_before)s::float8 + %(retention)s)
    FROM t ON CONFLICT (key) DO NOTHING RETURNING {columns})
SELECT t.now, '' AS xmin, {columns} FROM t, fresh
UNION ALL
SELECT t.now, r.xmin::text, {columns} FROM t, {table} r WHERE r.key = %(key)s AND NOT EXISTS (SELECT FROM fresh)
"""
# transitions.done for the usual case: the record is armed or held.
_DONE = """{begin}
UPDATE {table} r SET phase = 3, taint = false, owner = NULL, token = NULL, lease = 0, not_before = 0,
    result = %(result)s, expires = greatest(r.expires, t.now + %(retention)s)
FROM t WHERE r.key = %(key)s AND r.phase IN (2, 5) RETURNING true
"""
_INSERT = """{begin}
INSERT INTO {table} ({columns}) SELECT {values} FROM t WHERE {still} ON CONFLICT (key) DO NOTHING RETURNING true
"""
_UPDATE = """{begin}
UPDATE {table} r SET {changes} FROM t WHERE r.key = %(key)s AND r.xmin::text = %(version)s AND {still} RETURNING true
"""
_LIST = """{begin}
SELECT t.now, {columns} FROM t, {table} r WHERE r.key > %(last)s
AND (%(phases)s::smallint[] IS NULL OR r.phase = ANY(%(phases)s))
AND (%(provider)s::text IS NULL OR r.provider = %(provider)s) AND r.label LIKE %(label)s
ORDER BY r.key LIMIT %(limit)s
"""
_COUNT = """{begin}
SELECT r.phase, count(*) FROM t, {table} r WHERE r.phase IN (2, 5) OR r.expires > t.now GROUP BY r.phase
"""
_PAST = """r.collect_hour <= (SELECT floor(t.now / 3600)::integer FROM t) AND r.expires <= (SELECT t.now FROM t)
        AND r.phase IN (1, 3, 4)"""
_OVER = "{begin} SELECT count(*) FROM {table} r WHERE {past}"
_PURGE = """{begin}, over AS MATERIALIZED (
    SELECT r.key FROM {table} r WHERE {past}
    ORDER BY r.collect_hour LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED)
DELETE FROM {table} r USING over WHERE r.key = over.key RETURNING true
"""
_VERSION = "SELECT to_regclass({name}) IS NOT NULL, obj_description(to_regclass({name}), 'pg_class')"
_PROBLEMS = """
SELECT current_setting('fsync'), current_setting('full_page_writes'), pg_is_in_recovery(),
    (SELECT relpersistence FROM pg_class WHERE oid = to_regclass({name})),
    EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'async')
"""


@frozen
class Statement:
    """One round trip. `prepare` False: never as a prepared statement (it may be several); None: as is usual."""

    text: str
    values: Mapping[str, Any] | None = None
    prepare: bool | None = None


class NotReplicated(Exception):
    """Thrown in where a commit stopped waiting for its standby: it may be lost in a failover."""


class PostgresSteps:
    """The operations of a ledger as statements, so that the sync and the async ledger share them."""

    def __init__(
        self,
        *,
        table: str = TABLE,
        retention: float = RETENTION,
        timeout: float = ARM_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        for name, seconds in (("retention", retention), ("timeout", timeout)):
            if not seconds > 0:
                raise PolicyError.of(name, seconds, "more than 0 seconds")
        if not re.fullmatch(r"([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_]{0,47}", table):
            raise PolicyError.of("table", table, "a name, or schema.name, of a-z, 0-9 and _")
        self.timeout = timeout
        self._table = table
        self._retention = retention
        self._clock = clock
        self._ready = False
        names = {"begin": _BEGIN, "still": _STILL, "table": table, "columns": _COLUMNS, "past": _PAST}
        self._read, self._take, self._done, self._list, self._count, self._over, self._purge = (
            text.format(**names) for text in (_READ, _TAKE, _DONE, _LIST, _COUNT, _OVER, _PURGE)
        )
        self._insert = _INSERT.format(**names, values=", ".join(f"%({name})s" for name in _NAMES))
        self._update = _UPDATE.format(**names, changes=", ".join(f"{n} = %({n})s" for n in _NAMES if n != "key"))

    # -- the operations of a ledger

    def arm(self, take: Take) -> Steps[Taken | Refused]:
        def step(record: Record | None, now: float) -> tuple[Record | None, Taken | Refused]:
            return transitions.arm(record, take, now, self._retention)

        try:
            return (yield from self._step(take.key, step, take=take, synced=True))
        except NotReplicated:
            # Nobody will send on this arm: give it back rather than leave it to be held. If that fails too, the key
            # ends up held, and still nothing is sent.
            yield from self._change(
                take.key,
                lambda record, now: (
                    record
                    if record is None or record.token != take.token
                    else transitions.park(record, take.owner, record.fence, now, self._retention)
                ),
            )
            raise LedgerUnavailable(
                "ledger in PostgreSQL: the arm was not acknowledged by the standby; nothing was sent"
            ) from None

    def claim(self, take: Take) -> Steps[Taken | Refused]:
        def step(record: Record | None, now: float) -> tuple[Record | None, Taken | Refused]:
            return transitions.claim(record, take, now, self._retention)

        return (yield from self._step(take.key, step, take=take))

    def read(self, key: bytes) -> Steps[tuple[Record | None, float]]:
        yield from self._prepare()
        record, now, _ = _row((yield self._say(self._read, key=key)))
        return transitions.live(record, now), now

    def park(self, key: bytes, owner: bytes, fence: int, lease: float, not_before: float) -> Steps[bool]:
        return self._change(
            key,
            lambda record, now: transitions.park(
                record, owner, fence, now, self._retention, lease=lease, not_before=not_before
            ),
        )

    def done(self, key: bytes, result: Mapping[str, Any], provider: str) -> Steps[bool]:
        yield from self._prepare()
        if (yield self._say(self._done, key=key, result=_json(result), retention=self._retention)):
            return True
        return (
            yield from self._change(
                key, lambda record, now: transitions.done(record, key, result, now, self._retention, provider=provider)
            )
        )

    def reject(self, key: bytes, owner: bytes, fence: int, sure: bool, not_before: float) -> Steps[bool]:
        return self._change(
            key,
            lambda record, now: transitions.reject(
                record, owner, fence, now, self._retention, sure=sure, not_before=not_before
            ),
        )

    def unknown(self, key: bytes, owner: bytes, fence: int, not_before: float) -> Steps[bool]:
        return self._change(key, lambda record, now: transitions.unknown(record, owner, fence, not_before=not_before))

    def expire(self, key: bytes, fence: int) -> Steps[bool]:
        return self._change(key, lambda record, now: transitions.expire(record, fence, now))

    def resolve(
        self,
        key: bytes,
        fence: int,
        verdict: Literal["applied", "not_applied"],
        quiet: float,
        result: Mapping[str, Any] | None,
    ) -> Steps[bool]:
        return self._change(
            key,
            lambda record, now: transitions.resolve(
                record, fence, verdict, now, self._retention, quiet=quiet, result=result
            ),
            synced=True,
        )

    def page(self, where: Filter, last: bytes) -> Steps[tuple[list[Record], bytes | None]]:
        """Records that match, of the next 500 in the order of keys; and where to go on, None at the end."""
        yield from self._prepare()
        looked_for: dict[str, Any] = {
            "phases": [int(phase) for phase in where.phases] or None,
            "provider": where.provider,
            "label": "%" + re.sub(r"([%_\\])", r"\\\1", where.label or "") + "%",
        }
        # Not prepared: what is rare, as held records are, is planned for only where it is known what is looked for.
        rows = yield self._say(self._list, prepare=False, last=last, limit=_PAGE, **looked_for)
        found = [(_record(row[1:]), row[0]) for row in rows]
        matching = [record for record, now in found if transitions.matches(record, where, now)]
        return matching, found[-1][0].key if len(found) == _PAGE else None

    def counts(self) -> Steps[dict[Phase, int]]:
        yield from self._prepare()
        rows = yield self._say(self._count)
        return {Phase(phase): count for phase, count in rows}

    def over(self) -> Steps[int]:
        """How many records have expired."""
        yield from self._prepare()
        ((count,),) = yield self._say(self._over)
        return int(count)

    def purge(self, limit: int) -> Steps[int]:
        # In small transactions, and for a short while only: whoever wants more asks again.
        yield from self._prepare()
        deleted, end = 0, _system.monotonic() + _STEP
        while deleted < limit and (over := (yield self._say(self._purge, limit=min(limit - deleted, _AT_ONCE)))):
            deleted += len(over)
            if _system.monotonic() > end:
                break
        return deleted

    def problems(self) -> Steps[list[str]]:
        yield from self._prepare()
        ((fsync, full_page_writes, standby, persistence, behind),) = yield Statement(
            _PROBLEMS.format(name=f"'{self._table}'")
        )
        found = []
        if fsync == "off" or full_page_writes == "off":
            found.append("fsync or full_page_writes is off: a power failure may forget sends")
        if persistence == "u":
            found.append(f"the table {self._table} is unlogged: a crash of the server forgets every send")
        if standby:
            found.append("this server is a standby: it takes no writes")
        if behind:
            found.append("a standby follows asynchronously: a failover to it may forget the last sends")
        return found

    # -- how

    def _change(
        self, key: bytes, change: Callable[[Record | None, float], Record | None], *, synced: bool = False
    ) -> Steps[bool]:
        def step(record: Record | None, now: float) -> tuple[Record | None, bool]:
            after = change(record, now)
            return after, after is not record

        return self._step(key, step, synced=synced)

    def _step(
        self,
        key: bytes,
        step: Callable[[Record | None, float], tuple[Record | None, T]],
        *,
        take: Take | None = None,
        synced: bool = False,
    ) -> Steps[T]:
        yield from self._prepare()
        for _ in range(_ROUNDS):
            if take is None:
                rows = yield self._say(self._read, key=key)
            else:  # only an arm is synced
                rows = yield self._say(self._take, synced=synced, **self._fresh(take, armed=synced))
            if not rows:
                continue  # somebody else's, committed while we looked
            before, now, version = _row(rows)
            if before is not None and version == "":
                # The row is ours, by this very statement.
                _, answer = step(before, now)
                return answer
            after, answer = step(before, now)
            repeated = after is before and synced and isinstance(answer, Taken)
            if after is None or (after is before and not repeated):
                return answer
            # An arm said again is written again: the commit then waits for the first one as well.
            values = dict(zip(_NAMES, _values(after), strict=True))
            values |= {"phase": int(after.phase), "result": None if after.result is None else _json(after.result)}
            statement = self._insert if before is None else self._update
            if (yield self._say(statement, synced=synced, version=version, now=now, **values)):
                return answer
        raise LedgerUnavailable("ledger in PostgreSQL: too many others change this key at the same time")

    def _fresh(self, take: Take, *, armed: bool) -> dict[str, Any]:
        return {
            "key": take.key,
            "phase": int(Phase.ARMED if armed else Phase.CLAIMED),
            "armed": armed,
            "generation": take.generation,
            "owner": take.owner,
            "token": take.token,
            "lease": float(take.lease),
            "attempts": take.attempts,
            "not_before": float(take.not_before),
            "fingerprint": take.fingerprint,
            "label": take.label,
            "provider": take.provider,
            "retention": self._retention,
        }

    def _say(self, text: str, *, synced: bool = False, prepare: bool | None = None, **values: Any) -> Statement:
        values["clock"] = None if self._clock is None else self._clock.now()
        values["sync"] = "on" if synced else "off"
        return Statement(text, values, prepare)

    def _prepare(self) -> Steps[None]:
        """Once: the table is there, and of this version."""
        if self._ready:
            return
        name = f"'{self._table}'"
        names = {"table": self._table, "name": name, "lock": _LOCK, "comment": _COMMENT}
        version = yield from self._version(name)
        if version is None:
            index = self._table.rpartition(".")[2] + "_collect"
            yield Statement(_SCHEMA.format(**names, index=index, version=SCHEMA_VERSION), prepare=False)
            version = yield from self._version(name)
        while version in _UPGRADES:
            steps = _UPGRADES[version].format(**names)
            yield Statement(_UPGRADE.format(**names, steps=steps, version=version, next=version + 1), prepare=False)
            version = yield from self._version(name)
        if version != SCHEMA_VERSION:
            who = "a newer release" if (version or 0) > SCHEMA_VERSION else "no release of retrypolicy"
            raise ConfigurationError(
                f"ledger in PostgreSQL: the table {self._table} was made by {who} "
                f"(schema {version}; this one knows up to {SCHEMA_VERSION})"
            )
        self._ready = True

    def _version(self, name: str) -> Steps[int | None]:
        """Of the table's schema; None: there is no table. Raises `ConfigurationError` for a table of somebody else."""
        look = Statement(_VERSION.format(name=name))
        ((exists, comment),) = yield look
        if exists and comment is None:
            # Made at this moment: that a table is there shows before what was said of it.
            ((exists, comment),) = yield look
        if not exists:
            return None
        version = (comment or "").removeprefix(_COMMENT)
        if version == (comment or "") or not version.isdigit():
            raise ConfigurationError(f"ledger in PostgreSQL: the table {self._table} is something else, not a ledger")
        return int(version)


def _row(rows: list[tuple[Any, ...]]) -> tuple[Record | None, float, str | None]:
    ((now, version, *columns),) = rows
    return (None if columns[0] is None else _record(columns)), now, version


def _record(columns: Any) -> Record:
    values = dict(zip(_NAMES, columns, strict=True))
    values["phase"] = Phase(values["phase"])
    if values["result"] is not None:
        values["result"] = json.loads(values["result"])
    return Record(**values)


def _json(result: Mapping[str, Any]) -> str:
    return json.dumps(dict(result), separators=(",", ":"))
