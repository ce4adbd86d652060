"""What the guard costs: a send's two ledger operations for each store, next to what the store itself needs at least.

Wall time, the median of pairs taken in turns with the bare limit, so that both meet the same disk and the same load.
Valkey and PostgreSQL run from wheels, on the loopback; without these packages they are left out.
"""

from __future__ import annotations

import argparse
import gc
import hmac
import json
import logging
import multiprocessing
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from retrypolicy.guard import Ledger, MemoryLedger, SQLiteLedger, open_ledger
from retrypolicy.guard.key import Secret, content_of, fingerprint
from retrypolicy.guard.ledger import Take

RESULT = {"status": 200, "id": "4ef9a417-02e9-4d39-ad75-9611e0fcc33c"}
OWNER, PRINT = b"o" * 16, b"f" * 32


def take() -> Take:
    return Take(key=os.urandom(32), owner=OWNER, token=os.urandom(8), fingerprint=PRINT, lease=60.0, label="order 42")


def pair(ledger: Ledger) -> None:
    """What a send asks of its ledger when all goes well."""
    wanted = take()
    ledger.arm(wanted)
    ledger.done(wanted.key, RESULT)


def turns(*works: Callable[[], object], rounds: int, warm_up: int = 20) -> list[float]:
    """The median microseconds of each, taken in turns."""
    took: list[list[float]] = [[] for _ in works]
    for number in range(rounds + warm_up):
        for work, times in zip(works, took, strict=True):
            began = time.perf_counter()
            work()
            if number >= warm_up:
                times.append(time.perf_counter() - began)
    return [statistics.median(times) * 1e6 for times in took]


def say(what: str, value: str, bound: str = "") -> None:
    print(f"{what:58s} {value:>22s}{f'  ({bound})' if bound else ''}", flush=True)


def memory(rounds: int) -> None:
    """Time of this thread alone, and its best: what else the machine does is not the ledger's cost."""
    ledger, best = MemoryLedger(), float("inf")
    for _ in range(400):
        wanted = [take() for _ in range(100)]
        began = time.thread_time()
        for one in wanted:
            ledger.arm(one)
            ledger.done(one.key, RESULT)
        best = min(best, (time.thread_time() - began) / 100)
    say("memory: pair", f"{best * 1e6:.1f} us", "at most 5")


def sqlite(folder: Path, rounds: int) -> None:
    ledger = SQLiteLedger(folder / "pair.db")
    bare = bare_sqlite(folder / "bare.db")
    ours, commit = turns(lambda: pair(ledger), bare, rounds=rounds)
    say("SQLite: pair, durability power", f"{ours:.0f} us")
    say("SQLite: bare synced commit of such a row", f"{commit:.0f} us")
    say("SQLite: pair, in bare commits", f"{ours / commit:.2f}", "at most 1.4")
    senders(folder / "senders.db", rounds)


def bare_sqlite(path: Path) -> Callable[[], object]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE t (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
    return lambda: connection.execute("INSERT INTO t VALUES (?, ?)", (os.urandom(32), bytes(180)))


def senders(path: Path, rounds: int) -> None:
    """Two processes of eight threads, each with calls of 10 to 30 ms between its arm and its done."""
    SQLiteLedger(path).close()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(eight_threads, [(str(path), max(10, rounds // 10))] * 2)
    times = sorted(t for process in found for t in process)
    worst, late = times[-1] * 1e3, times[int(len(times) * 0.99)] * 1e3
    say("SQLite: arm at 16 senders, 99 of 100", f"{late:.1f} ms")
    say("SQLite: arm at 16 senders, the slowest", f"{worst:.1f} ms", "at most 50")


def eight_threads(path: str, sends: int) -> list[float]:
    ledger = SQLiteLedger(path)
    start = threading.Barrier(8)

    def send(number: int) -> list[float]:
        chance, times = random.Random(number), []
        start.wait()
        for _ in range(sends):
            wanted = take()
            began = time.perf_counter()
            ledger.arm(wanted)
            times.append(time.perf_counter() - began)
            time.sleep(chance.uniform(0.01, 0.03))
            ledger.done(wanted.key, RESULT)
        return times

    with ThreadPoolExecutor(8) as pool:
        return [t for times in pool.map(send, range(8)) for t in times]


def many_keys(folder: Path, sizes: list[int], rounds: int) -> None:
    """The cost of an arm does not depend on how many keys there are; a step of the purge stays short."""
    path = folder / "many.db"
    ledger, small = SQLiteLedger(path), SQLiteLedger(folder / "few.db")
    pair(ledger)
    for before, keys in pairwise([0, *sizes]):
        ledger.close()
        fill(path, keys - before)
        few, many = turns(lambda: pair(small), lambda: pair(ledger), rounds=rounds)
        say(f"SQLite: pair at {keys:,} keys, of one among few", f"{many / few:.2f}", "about 1")
    purge("SQLite", ledger)


def purge(store: str, ledger: Ledger) -> None:
    times: list[float] = []
    while len(times) < 400:
        began = time.perf_counter()
        count = ledger.purge()
        times.append((time.perf_counter() - began) * 1e3)
        if not count:
            break
    say(f"{store}: step of a purge there, the median", f"{statistics.median(times):.1f} ms")
    say(f"{store}: step of a purge there, the slowest", f"{max(times):.1f} ms", "at most 50")


def fill(path: Path, keys: int) -> None:
    """Copies of the one record, under random keys in random order, as sends leave them; one of 16 has expired."""
    connection = sqlite3.connect(path, isolation_level=None)
    for name, value in (("journal_mode", "OFF"), ("synchronous", "OFF"), ("cache_size", "-4000000")):
        connection.execute(f"PRAGMA {name} = {value}")
    names = [row[1] for row in connection.execute("PRAGMA table_info(sends)")]
    new = {"key": "randomblob(32)", "expires": "until", "collect": "until"}
    kept = [name for name in names if name not in new]
    now = time.time()
    connection.execute(
        f"""
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        INSERT INTO sends SELECT {", ".join(new.get(name, name) for name in names)} FROM (
            SELECT {", ".join(kept)}, iif(n.i % 16, ? + n.i, ? - n.i * 1e-6) AS until
            FROM n, (SELECT * FROM sends LIMIT 1))
        """,
        (keys, now + 1e6, now - 1),
    )
    connection.close()


def valkey(rounds: int, sizes: list[int]) -> None:
    from tests.guard.servers import Valkey

    server = Valkey(auto_aof_rewrite_percentage="0", enable_debug_command="local")
    try:
        ledger, client = open_ledger(server.url), server.client()

        def bare() -> None:
            key = os.urandom(16)
            client.set(key, bytes(180))
            client.set(key, bytes(180))

        ours, sets = turns(lambda: pair(ledger), bare, rounds=rounds)
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        pair(ledger)
        trips = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
        say("Valkey, AOF always: pair", f"{ours:.0f} us")
        say("Valkey, AOF always: pair, in two bare SETs", f"{ours / sets:.2f}")
        say("Valkey: round trips of a send", str(trips), "at most 2")
        many_keys_in_valkey(server, sizes, rounds)
    finally:
        server.remove()


def many_keys_in_valkey(server: Any, sizes: list[int], rounds: int) -> None:
    """The server itself deletes what has expired, in steps for which senders may have to wait."""
    few, many = open_ledger(server.url), open_ledger(server.url.removesuffix("0") + "1")
    client = server.client(db=1, socket_timeout=600)
    pair(many)
    one = client.randomkey()
    copy = client.register_script(VALKEY_COPIES)
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    for before, keys in pairwise([0, *sizes]):
        client.config_set("appendfsync", "no")
        for number in range(before, keys, 10_000):
            copy(keys=[one], args=[number, min(keys, number + 10_000)])
        client.config_set("appendfsync", "always")
        at_few, at_many = turns(lambda: pair(few), lambda: pair(many), rounds=rounds)
        say(f"Valkey: pair at {keys:,} keys, of one among few", f"{at_many / at_few:.2f}", "about 1")

    client.config_set("latency-monitor-threshold", "1")  # it measures itself
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "1")
    end = time.perf_counter() + 20
    while time.perf_counter() < end:
        pair(many)
    longest = {event: worst for event, _, _, worst, *_ in client.execute_command("LATENCY", "LATEST")}
    deleted = client.info("stats")["expired_keys"]
    say(f"Valkey: longest step of deleting {deleted:,} of them", f"{longest.get(b'expire-cycle', 0)} ms", "at most 50")


# Copies of a record under random keys, number ARGV[1] to ARGV[2]; one of four expires at once.
VALKEY_COPIES = """
for number = ARGV[1] + 1, ARGV[2] do
  local name = redis.sha1hex(number) .. redis.sha1hex(-number)
  name = 'retrypolicy:send:' .. string.sub(name, 1, 64)
  redis.call('COPY', KEYS[1], name)
  if number % 4 == 0 then redis.call('PEXPIRE', name, 1) end
end
"""


def postgres(rounds: int, sizes: list[int]) -> None:
    import psycopg

    from tests.guard.servers import Postgres

    server = Postgres()
    try:
        connection = psycopg.connect(server.dsn, autocommit=True)
        for setting in ("fsync = on", "shared_buffers = '128MB'"):  # as installed; tests do with less
            connection.execute(f"ALTER SYSTEM SET {setting}")
        connection.close()
        server.kill()
        server.start()
        ledger = open_ledger(server.url)
        connection = psycopg.connect(server.dsn, autocommit=True, prepare_threshold=0)
        connection.execute("CREATE TABLE bare (key bytea PRIMARY KEY, row bytea)")

        def bare() -> None:
            connection.execute("INSERT INTO bare VALUES (%s, %s)", (os.urandom(32), bytes(180)))

        ours, insert = turns(lambda: pair(ledger), bare, rounds=rounds)
        say("PostgreSQL: pair", f"{ours:.0f} us")
        say("PostgreSQL: pair, in bare synced INSERTs", f"{ours / insert:.2f}")
        many = open_ledger(f"{server.url}&table=many")
        pair(many)
        for before, keys in pairwise([0, *sizes]):
            copy_in_postgres(connection, before, keys)
            at_few, at_many = turns(lambda: pair(ledger), lambda: pair(many), rounds=rounds)
            say(f"PostgreSQL: pair at {keys:,} keys, of one among few", f"{at_many / at_few:.2f}", "about 1")
        purge("PostgreSQL", many)
        connection.close()
        ledger.close()
        many.close()
    finally:
        server.remove()


def copy_in_postgres(connection: Any, before: int, keys: int) -> None:
    """Copies of the one record, under random keys, one a second; the oldest have expired, one of 16."""
    columns = [
        name for (name,) in connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'many'::regclass AND attnum > 0 AND attgenerated = ''"
        )
    ]  # fmt: skip
    new = {
        "key": "sha256(n::text::bytea)",
        "expires": f"extract(epoch FROM clock_timestamp()) + n - {before + (keys - before) // 16}",
    }
    [(index,)] = connection.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'many_collect'").fetchall()
    connection.execute("ALTER TABLE many DROP CONSTRAINT many_pkey")
    connection.execute("DROP INDEX many_collect")
    connection.execute(
        f"INSERT INTO many ({', '.join(columns)}) SELECT {', '.join(new.get(name, 'r.' + name) for name in columns)} "
        f"FROM (SELECT * FROM many LIMIT 1) r, generate_series({before + 1}, {keys}) n"
    )
    connection.execute("ALTER TABLE many ADD PRIMARY KEY (key)")
    connection.execute(index)
    connection.execute("VACUUM ANALYZE many")
    connection.execute("CHECKPOINT")


def fingerprints(rounds: int) -> None:
    secret = Secret.of("s" * 32)
    for kilobytes in (1, 10, 100):
        message = {"to": [{"email": "someone@example.com"}], "subject": "Receipt", "html": "x" * kilobytes * 1000}
        body = json.dumps(message).encode()

        def ours(left_out: Any, body: bytes = body) -> bytes:
            return fingerprint(
                secret, content_of("POST", "https://api.example.com/e", "application/json", body, left_out)
            )

        bare, known, unknown = turns(
            lambda body=body: hmac.digest(b"s" * 32, body, "sha256"),  # type: ignore[misc] # bound at once
            lambda ours=ours: ours(()),  # type: ignore[misc] # bound at once
            lambda ours=ours: ours(None),  # type: ignore[misc] # bound at once
            rounds=rounds * 5,
        )
        say(
            f"fingerprint of {kilobytes} KB, deterministic body, in HMACs",
            f"{known / bare:.2f} ({known:.1f} us)",
            "at most 1.15",
        )
        say(f"fingerprint of {kilobytes} KB, canonical JSON, in HMACs", f"{unknown / bare:.2f} ({unknown:.1f} us)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--keys", type=int, nargs="+", default=[100_000], help="for the cost among many keys; rising")
    args = parser.parse_args()
    logging.getLogger("retrypolicy").setLevel(logging.ERROR)  # that each ledger is new and empty
    gc.disable()
    memory(args.rounds)
    fingerprints(args.rounds)
    # Beside this file rather than in /tmp, which may be a file system in memory: a sync must reach a disk.
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:
        sqlite(Path(name), args.rounds)
        many_keys(Path(name), args.keys, args.rounds)
    for store in (valkey, postgres):
        try:
            store(args.rounds, args.keys)
        except ImportError as error:
            say(store.__name__, f"left out: no {error.name}")


if __name__ == "__main__":
    main()
