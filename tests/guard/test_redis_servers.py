"""The ledger in Valkey when the server forgets, fills up, hangs, dies or is replaced."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable

import pytest
import redis

from retrypolicy.errors import ConfigurationError, LedgerUnavailable
from retrypolicy.guard.ledger import Phase, Taken
from retrypolicy.guard.redis import RedisLedger

from .servers import Valkey, new_valkey, valkey
from .takes import OTHER, arm, key, phase, standing, take

__all__ = ["new_valkey", "valkey"]


# -- servers that forget


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"appendonly": "no"}, "appendonly is no"),
        ({"appendfsync": "no"}, "appendfsync is no"),
        ({"maxmemory-policy": "allkeys-lru"}, "allkeys-lru"),
        ({"maxmemory-policy": "volatile-ttl"}, "volatile-ttl"),
    ],
)
def test_a_server_that_may_forget_is_refused(valkey: Valkey, settings: dict[str, str], reason: str) -> None:
    with valkey.client() as client:
        before = {name: client.config_get(name)[name] for name in settings}
        try:
            for name, value in settings.items():
                client.config_set(name, value)
            with pytest.raises(ConfigurationError, match=reason):
                RedisLedger(valkey.url).arm(take(reason))
            assert phase(RedisLedger(valkey.url), reason) is None
            assert any(reason in problem for problem in RedisLedger(valkey.url).problems())
            arm(RedisLedger(valkey.url, allow_forgetful=True), reason)
        finally:
            for name, value in before.items():
                client.config_set(name, value)
    assert RedisLedger(valkey.url).problems() == []


def test_everysec_is_waited_for_unless_told_otherwise(new_valkey: Callable[..., Valkey]) -> None:
    server = new_valkey(appendfsync="everysec")
    ledger = RedisLedger(server.url)
    arm(ledger, 1)
    assert ledger.problems() == []
    assert ledger._steps._waits
    trusting = RedisLedger(server.url, wait_aof=False)
    arm(trusting, 2)
    assert not trusting._steps._waits
    assert ["appendfsync is everysec" in problem for problem in trusting.problems()] == [True]


def test_a_service_without_config_is_asked_by_info(
    new_valkey: Callable[..., Valkey], caplog: pytest.LogCaptureFixture
) -> None:
    server = new_valkey(appendonly="no")
    with server.client() as client:
        client.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config"])
        client.acl_setuser("blind", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config", "-info"])
    url = server.url.replace("127.0.0.1", "app:x@127.0.0.1")
    with pytest.raises(ConfigurationError, match="appendonly"):
        RedisLedger(url).arm(take())
    with caplog.at_level(logging.WARNING, "retrypolicy.ledger"):
        blind = RedisLedger(url.replace("app", "blind"))
        arm(blind)
    assert "can't be checked" in caplog.text
    assert len(blind.problems()) == 1


def test_a_full_server_takes_no_arm(new_valkey: Callable[..., Valkey]) -> None:
    server = new_valkey()
    ledger = RedisLedger(server.url)
    taken = arm(ledger, 1)
    with server.client() as client:
        client.config_set("maxmemory", "1mb")
        with pytest.raises(LedgerUnavailable, match="OutOfMemory"):
            ledger.arm(take(2))
        client.config_set("maxmemory", "0")
    assert phase(ledger, 2) is None
    assert standing(ledger, 1).fence == taken.fence


# -- servers that go away


def test_kill_9_loses_no_acknowledged_arm(valkey: Valkey) -> None:
    ledger = RedisLedger(valkey.url, prefix="kill9:")
    acknowledged: list[int] = []
    finished: list[int] = []

    def send(thread: int) -> None:
        for number in range(thread * 1_000_000, (thread + 1) * 1_000_000):
            try:
                arm(ledger, number)
                acknowledged.append(number)
                ledger.done(key(number), {"status": 200})
                finished.append(number)
            except LedgerUnavailable:
                return

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 200:
        time.sleep(0.01)
    valkey.kill()
    for thread in threads:
        thread.join()
    valkey.start()
    after = {record.key: record.phase for record in ledger.records()}
    assert len(acknowledged) >= 200
    assert [number for number in acknowledged if key(number) not in after] == []
    assert [number for number in finished if after[key(number)] is not Phase.DONE] == []


def test_a_restart_is_not_noticed(valkey: Valkey) -> None:
    ledger = RedisLedger(valkey.url, prefix="restart:")
    arm(ledger, 1)
    valkey.kill()
    valkey.start()
    arm(ledger, 2)  # over a connection made anew, with a script told anew
    assert phase(ledger, 1) is Phase.ARMED


def test_a_server_that_is_gone_or_hangs_is_unavailable_in_time_and_then_back(valkey: Valkey) -> None:
    ledger = RedisLedger(valkey.url, timeout=0.5, prefix="gone:")
    arm(ledger, 1)
    for stop, back in [
        (valkey.kill, valkey.start),
        (lambda: valkey.signal(signal.SIGSTOP), lambda: valkey.signal(signal.SIGCONT)),
    ]:
        stop()
        try:
            for ask in (lambda: ledger.arm(take(2)), lambda: ledger.done(key(1), {}), lambda: ledger.read(key(1))):
                begin = time.monotonic()
                with pytest.raises(LedgerUnavailable):
                    ask()
                assert time.monotonic() - begin < 2.5
        finally:
            back()
        assert phase(ledger, 1) in (Phase.ARMED, Phase.DONE)
    # The arm may have been read after all, by the server that hung: then its owner is taken for dead, nobody sends.
    assert phase(ledger, 2) in (None, Phase.ARMED)


# -- replicas


def _pair(new_valkey: Callable[..., Valkey]) -> tuple[Valkey, Valkey]:
    master = new_valkey()
    replica = new_valkey(replicaof=f"127.0.0.1 {master.port}")
    with master.client() as client:
        deadline = time.monotonic() + 15
        client.set("first", "")
        while not client.wait(1, 1000):  # the first answer of a new replica takes a second
            assert time.monotonic() < deadline
    return master, replica


def _promote(master: Valkey, replica: Valkey) -> RedisLedger:
    master.kill()
    with replica.client() as client:
        client.replicaof("NO", "ONE")
    return RedisLedger(replica.url)


def test_a_failover_keeps_what_was_waited_for(new_valkey: Callable[..., Valkey]) -> None:
    master, replica = _pair(new_valkey)
    ledger = RedisLedger(master.url, wait_replicas=1, timeout=0.8)
    assert ledger.problems() == []
    arm(ledger, "safe")

    # The replica is cut off: no acknowledgement, so nothing may be sent, and nothing is left to be held.
    replica.signal(signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="replicas"):
        ledger.arm(take("cut"))
    assert time.monotonic() - begin < 2.5
    assert phase(ledger, "cut") is Phase.CLAIMED

    # Saying the same again must not take the arm that was not acknowledged for one that was.
    again = take("twice")
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="replicas"):
            ledger.arm(again)
    replica.signal(signal.SIGCONT)
    assert isinstance(ledger.arm(take("cut", OTHER)), Taken)

    survivor = _promote(master, replica)
    assert phase(survivor, "safe") is Phase.ARMED
    assert phase(survivor, "cut") is Phase.ARMED


def test_an_arm_said_again_on_another_connection_waits_for_the_first(new_valkey: Callable[..., Valkey]) -> None:
    master, replica = _pair(new_valkey)
    replica.signal(signal.SIGSTOP)
    ask = take()
    arm_alone = RedisLedger(master.url)
    assert isinstance(arm_alone.arm(ask), Taken)  # acknowledged by nobody else
    with pytest.raises(LedgerUnavailable, match="replicas"):
        RedisLedger(master.url, wait_replicas=1, timeout=0.5).arm(ask)


def test_a_failover_without_waiting_forgets_arms(new_valkey: Callable[..., Valkey]) -> None:
    """Why `wait_replicas` is there: this is how a send happens twice. `problems` says so beforehand."""
    master, replica = _pair(new_valkey)
    ledger = RedisLedger(master.url)
    assert any("failover" in problem for problem in ledger.problems())
    with replica.client() as client:
        client.replicaof("127.0.0.1", "1")  # cut off
    arm(ledger)
    assert phase(_promote(master, replica)) is None


def test_a_cluster(new_valkey: Callable[..., Valkey]) -> None:
    server = new_valkey(cluster_enabled="yes")
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 10
        while client.cluster("INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with redis.RedisCluster(host="127.0.0.1", port=server.port) as cluster:
        for options in ({}, {"wait_aof": True}):
            ledger = RedisLedger(cluster, **options)
            ledger.problems()
            for number in range(20):
                arm(ledger, (str(options), number))
                assert ledger.done(key((str(options), number)), {"status": 200})
        assert ledger.counts() == {Phase.DONE: 40}
        cluster.script_flush()
        arm(ledger, "after")


def test_everything_is_refused_while_too_few_replicas_are_connected(valkey: Valkey) -> None:
    ledger = RedisLedger(valkey.url, wait_replicas=2, timeout=0.8, prefix="few:")
    assert any("2" in problem and "0 are connected" in problem for problem in ledger.problems())
    with pytest.raises(LedgerUnavailable):
        ledger.arm(take())
    assert phase(ledger) is Phase.CLAIMED
