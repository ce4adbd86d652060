"""One SQLite ledger under greenlets, and in children that were forked while it was open and busy."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrypolicy.guard.ledger import Phase
from retrypolicy.guard.sqlite import SQLiteLedger

_COMMON = """
import os, sys, time
from retrypolicy.guard.ledger import Phase, Take, Taken
from retrypolicy.guard.sqlite import SQLiteLedger

path = sys.argv[1]

def key(*numbers):
    return bytes(numbers).ljust(32, b"k")

def take(*numbers):
    return Take(key=key(*numbers), owner=os.urandom(16), token=os.urandom(8), fingerprint=b"f" * 32, lease=60.0)

def send(ledger, *numbers):
    assert isinstance(ledger.arm(take(*numbers)), Taken), numbers
    assert ledger.done(key(*numbers), {"status": 200}), numbers
"""


def run(code: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMMON + textwrap.dedent(code), str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_sound(path: Path) -> bool:
    with sqlite3.connect(path) as raw:
        found: str = raw.execute("PRAGMA integrity_check").fetchone()[0]
    raw.close()
    return found == "ok"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sends.db"


# -- greenlets


BUSY = """
n = 0
ledger = SQLiteLedger(path, timeout=20.0)
print("ready", flush=True)
while True:
    send(ledger, 250, n // 250, n % 250)
    n += 1
    time.sleep(0.002)
"""


@pytest.fixture
def neighbour(path: Path) -> Iterator[None]:
    """A process that writes to the same file all the time: who waits for it must let other greenlets run."""
    pytest.importorskip("gevent")
    process = subprocess.Popen([sys.executable, "-c", _COMMON + BUSY, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield
    process.kill()
    process.wait()
    process.stdout.close()


def test_greenlets_get_their_turn_while_another_goes_on_and_on(path: Path) -> None:
    """gevent's locks alone are given to whoever asks first, and that is who just had it."""
    pytest.importorskip("gevent")
    code = """
        from gevent import monkey
        monkey.patch_all()
        import gevent
        from retrypolicy.guard.grouping import Group

        def serve(works, deadline):
            gevent.sleep(0.001)  # a neighbour has the file
            return works

        group, done = Group(serve, 60.0), [0] * 8

        def work(number):
            for n in range(20):
                if number % 2:
                    group.run(n)
                else:
                    with group.alone():
                        gevent.sleep(0.001)
                done[number] += 1
            return list(done)

        jobs = [gevent.spawn(work, number) for number in range(8)]
        gevent.joinall(jobs, timeout=60, raise_error=True)
        first_to_end = min((job.value for job in jobs), key=sum)
        print(sum(done), min(first_to_end) > 0)
    """
    assert run(code, path) == "160 True\n"


@pytest.mark.usefixtures("neighbour")
def test_greenlets_share_a_ledger_and_none_starves(path: Path) -> None:
    code = """
        from gevent import monkey
        monkey.patch_all()
        import gevent

        ledger = SQLiteLedger(path, timeout=20.0)
        ticks = []

        def work(number):
            for n in range(8):
                assert isinstance(ledger.arm(take(number, n)), Taken), (number, n)
                gevent.sleep(0.005)  # the request
                assert ledger.done(key(number, n), {"status": 200}), (number, n)

        def heart():
            while True:
                ticks.append(time.monotonic())
                gevent.sleep(0.005)

        beating = gevent.spawn(heart)
        jobs = [gevent.spawn(work, number) for number in range(16)]
        gevent.joinall(jobs, timeout=60, raise_error=True)
        beating.kill()
        longest = max(b - a for a, b in zip(ticks, ticks[1:]))
        mine = [record for record in ledger.records() if record.key[0] < 16]
        print(len(mine), len(ticks) > 5, longest < 5.0)
    """
    assert run(code, path) == "128 True True\n"
    assert is_sound(path)


@pytest.mark.usefixtures("neighbour")
def test_a_greenlets_timeout_at_any_moment_leaves_the_ledger_usable(path: Path) -> None:
    code = """
        from gevent import monkey
        monkey.patch_all()
        import random
        import gevent
        from retrypolicy.errors import LedgerUnavailable

        ledger = SQLiteLedger(path, timeout=20.0)
        chance = random.Random(4)
        torn = 0

        def work(number):
            global torn
            for n in range(20):
                try:
                    with gevent.Timeout(chance.uniform(0, 0.01)):
                        for again in range(20):
                            ledger.arm(take(number, n, again))
                            ledger.read(key(number))
                except gevent.Timeout:
                    torn += 1
                except LedgerUnavailable:  # another greenlet wrote for this one, and was torn out
                    pass

        gevent.joinall([gevent.spawn(work, number) for number in range(10)], timeout=60, raise_error=True)
        send(ledger, 200)
        print(torn > 20)
    """
    assert run(code, path) == "True\n"
    assert is_sound(path)


# -- forks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_children_of_a_busy_parent(path: Path) -> None:
    """Forked while a thread writes: inside SQLite it would leave them locks that nobody releases. Ended as usual."""
    code = """
        import threading

        ledger = SQLiteLedger(path, timeout=20.0)
        busy, sent = True, 0

        def parent_writes():
            global sent
            while busy:
                send(ledger, 0, sent // 250, sent % 250)
                sent += 1

        thread = threading.Thread(target=parent_writes)
        thread.start()
        children = []
        for number in range(1, 7):
            time.sleep(0.02)
            child = os.fork()
            if not child:
                for n in range(25):
                    send(ledger, number, n)
                sys.exit(0)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        before = sent
        while sent < before + 10:  # the parent goes on
            time.sleep(0.001)
        busy = False
        thread.join()
        print(codes, ledger.counts()[Phase.DONE] == sent + 6 * 25)
    """
    assert run(code, path) == f"{[0] * 6} True\n"
    assert is_sound(path)


@needs_fork
def test_a_child_that_ends_does_not_give_up_the_lock_of_its_parent(path: Path) -> None:
    ledger = SQLiteLedger(path)
    ledger._file._lock.acquire(5.0)
    child = os.fork()
    if not child:
        ledger.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert not lock_is_free(path)
    ledger._file._lock.release()
    assert lock_is_free(path)


def lock_is_free(path: Path) -> bool:
    """Whether another process could have the side lock now."""
    code = """
        from retrypolicy.guard.sqlite_file import SideLock
        try:
            SideLock(path + ".lock").acquire(0.0)
        except TimeoutError:
            print("taken")
        else:
            print("free")
    """
    return run(code, path) == "free\n"


@needs_fork
def test_pre_forking_servers_open_before_they_fork(path: Path) -> None:
    """As gunicorn with --preload: the ledger is opened and used by the parent, which then only waits."""
    code = """
        ledger = SQLiteLedger(path, timeout=20.0)
        send(ledger, 0, 0)
        children = []
        for number in range(1, 5):
            child = os.fork()
            if not child:
                for n in range(25):
                    send(ledger, number, n)
                sys.exit(0)
            children.append(child)
        print([os.waitpid(child, 0)[1] for child in children])
    """
    assert run(code, path) == f"{[0] * 4}\n"
    assert SQLiteLedger(path).counts() == {Phase.DONE: 101}
    assert is_sound(path)
