"""The ledger in Valkey: the same as the model, two round trips a send, and what it does when the client errs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from retrypolicy.clock import VirtualClock
from retrypolicy.errors import ConfigurationError, LedgerUnavailable, PolicyError
from retrypolicy.guard.key import Secret, fingerprint, key_digest
from retrypolicy.guard.ledger import Filter, Ledger, Phase, Refused, Take, Taken
from retrypolicy.guard.opening import open_ledger
from retrypolicy.guard.redis import RedisLedger
from retrypolicy.testing.machines import LedgerMachine, Subject
from tests.scaling import stateful

from .servers import Valkey, new_valkey, quick_valkey, valkey
from .takes import OTHER, OWNER, arm, key, phase, standing, take

__all__ = ["new_valkey", "quick_valkey", "valkey"]

_running: list[Valkey] = []


@pytest.fixture(autouse=True, scope="module")
def _server(quick_valkey: Valkey) -> None:
    _running[:] = [quick_valkey]


@pytest.fixture
def ledger(valkey: Valkey, request: pytest.FixtureRequest) -> RedisLedger:
    return RedisLedger(valkey.url, prefix=f"{request.node.name}:")


# -- the model


def _with_our_clock() -> Subject:
    clock = VirtualClock()
    ledger = RedisLedger(_running[0].url, clock=clock, allow_forgetful=True)
    ledger._client.flushdb()
    return Subject(
        ledger=ledger,
        advance=clock.jump,
        reopen=lambda: RedisLedger(_running[0].url, clock=clock, allow_forgetful=True),
        close=ledger.close,
    )


def _with_the_servers_clock() -> Subject:
    ledger = RedisLedger(_running[0].url, allow_forgetful=True)
    ledger._client.flushdb()
    return Subject(ledger=ledger, close=ledger.close, tolerance=2.0)


class AgainstTheModel(LedgerMachine):
    open = staticmethod(_with_our_clock)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = stateful(40, 25)


class AgainstTheModelByTheServersClock(LedgerMachine):
    open = staticmethod(_with_the_servers_clock)


TestAgainstTheModelByTheServersClock = AgainstTheModelByTheServersClock.TestCase
TestAgainstTheModelByTheServersClock.settings = stateful(15, 20)


def test_times_come_back_to_the_last_digit(quick_valkey: Valkey) -> None:
    clock = VirtualClock(start=1_795_492_588.251_187_3)
    ledger = RedisLedger(quick_valkey.url, clock=clock, allow_forgetful=True, prefix="digits:")
    arm(ledger, lease=0.1 + 0.2)
    record = standing(ledger)
    assert record.first_armed == clock.now()
    assert record.lease == clock.now() + (0.1 + 0.2)


# -- what it costs


class _Counting(redis.Connection):
    sent = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        type(self).sent += 1
        super().send_packed_command(command, check_health)


def _counted(server: Valkey, **options: Any) -> RedisLedger:
    pool = redis.ConnectionPool(connection_class=_Counting, host="127.0.0.1", port=server.port)
    ledger = RedisLedger(redis.Redis(connection_pool=pool), prefix=f"counted{len(options)}:", **options)
    arm(ledger, "warm")
    _Counting.sent = 0
    return ledger


@pytest.mark.parametrize("options", [{}, {"wait_aof": True}])
def test_a_send_is_two_round_trips(valkey: Valkey, options: dict[str, Any]) -> None:
    ledger = _counted(valkey, **options)
    arm(ledger, os.urandom(8))
    assert _Counting.sent == 1
    assert ledger.done(key("two trips"), {"status": 200})
    assert _Counting.sent == 2


def test_armed_and_held_records_have_no_end_and_others_do(ledger: RedisLedger) -> None:
    def left() -> int:
        return int(ledger._client.ttl(ledger._steps.prefix + key().hex()))

    taken = arm(ledger)
    assert left() == -1
    ledger.park(key(), OWNER, taken.fence, lease=5)
    assert 13.9 * 86400 < left() <= 14 * 86400
    taken = arm(ledger)
    assert left() == -1
    ledger.unknown(key(), OWNER, taken.fence)
    assert left() == -1
    ledger.done(key(), {})
    assert 13.9 * 86400 < left() <= 14 * 86400
    assert ledger.purge() == 0  # the server's own business


# -- clients


def _valkey_client(server: Valkey) -> Any:
    import valkey

    return valkey.Valkey(port=server.port)


@pytest.mark.parametrize(
    "client",
    [
        lambda server: server.client(),
        lambda server: server.client(decode_responses=True),
        lambda server: server.client(protocol=3),
        lambda server: server.client(encoding="latin-1"),
        _valkey_client,
        lambda server: server.url,
        lambda server: server.url.replace("redis://", "valkey://"),
    ],
    ids=["redis", "decoding", "resp3", "latin-1", "valkey", "url", "valkey-url"],
)
def test_any_client_will_do(valkey: Valkey, client: Callable[[Valkey], Any], request: pytest.FixtureRequest) -> None:
    ledger: Ledger = RedisLedger(client(valkey), prefix=f"{request.node.name}:")
    one = arm(ledger, label="Ångström", provider="resend")
    assert isinstance(ledger.arm(take(owner=OTHER)), Refused)
    ledger.park(key(), OWNER, one.fence)
    two = arm(ledger)
    assert not ledger.reject(key(), OWNER, one.fence)
    ledger.unknown(key(), OWNER, two.fence)
    assert ledger.counts() == {Phase.HELD: 1}
    assert ledger.resolve(key(), two.fence, "applied", result={"id": "mü"})
    (record,) = ledger.records(Filter(label="ström"))
    assert (record.phase, record.label, record.result, record.provider) == (
        Phase.DONE, "Ångström", {"id": "mü"}, "resend",
    )  # fmt: skip
    assert ledger.problems() == []
    ledger.close()
    assert standing(ledger) == record


def test_listing_goes_through_many_pages(quick_valkey: Valkey) -> None:
    ledger = RedisLedger(quick_valkey.url, prefix="many:", allow_forgetful=True)
    for number in range(1200):
        arm(ledger, number)
    assert {record.key for record in ledger.records()} == {key(number) for number in range(1200)}
    assert ledger.counts() == {Phase.ARMED: 1200}


class _LosesReplies(redis.Connection):
    """The server does what it is told, but the answer does not come back."""

    losses = 0

    def read_response(self, *args: Any, **options: Any) -> Any:
        reply = super().read_response(*args, **options)
        if type(self).losses and isinstance(reply, list):
            type(self).losses -= 1
            raise redis.ConnectionError("lost")
        return reply


@pytest.mark.parametrize("retries", [0, 5])
def test_what_a_client_says_again_changes_nothing(valkey: Valkey, retries: int) -> None:
    """redis-py 8 says a command up to ten times more, on its own account."""
    retry = Retry(NoBackoff(), retries)
    pool = redis.ConnectionPool(connection_class=_LosesReplies, host="127.0.0.1", port=valkey.port, retry=retry)
    ledger = RedisLedger(redis.Redis(connection_pool=pool, retry=retry), prefix=f"lossy{retries}:")
    arm(ledger, "warm")
    losses = max(1, retries)
    _LosesReplies.losses = losses
    first = arm(ledger)
    assert (first.fence, first.attempts) == (1, 1)
    _LosesReplies.losses = losses
    ledger.park(key(), OWNER, first.fence, lease=10)
    assert phase(ledger) is Phase.CLAIMED
    _LosesReplies.losses = losses
    second = arm(ledger)
    assert (second.fence, second.attempts) == (2, 2)
    assert not ledger.park(key(), OWNER, first.fence)  # a late copy of the first park
    assert phase(ledger) is Phase.ARMED
    _LosesReplies.losses = losses
    assert not ledger.done(key(), {"status": 200})  # it was, the first time
    assert phase(ledger) is Phase.DONE


def test_one_of_many_gets_the_key(ledger: RedisLedger) -> None:
    start = threading.Barrier(8)

    def contend(number: int) -> Taken | Refused:
        start.wait()
        return ledger.arm(take(owner=bytes([number]) * 16))

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(contend, range(8)))
    assert sum(isinstance(answer, Taken) for answer in answers) == 1


def test_a_script_that_the_server_lost_is_told_again(ledger: RedisLedger) -> None:
    first = arm(ledger)
    ledger._client.script_flush()
    assert ledger.park(key(), OWNER, first.fence)
    ledger._client.script_flush()
    assert arm(ledger).fence == first.fence + 1


def test_a_forked_child_speaks_for_itself(ledger: RedisLedger) -> None:
    arm(ledger, "parent")
    child = os.fork()
    if child == 0:
        try:
            arm(ledger, "child", OTHER)
        except BaseException:
            os._exit(1)
        os._exit(0)
    arm(ledger, "parent 2")
    assert os.waitpid(child, 0)[1] == 0
    assert standing(ledger, "child").owner == OTHER
    assert standing(ledger, "parent 2").owner == OWNER


def test_the_callers_words_are_not_in_the_server(valkey: Valkey) -> None:
    secret = Secret.of("pepper")
    ledger = RedisLedger(valkey.url, prefix="words:")
    ask = Take(
        key=key_digest(secret, "receipt/ada@example.com"),
        owner=os.urandom(16),
        token=os.urandom(16),
        fingerprint=fingerprint(secret, b'{"to": "ada@example.com"}'),
        lease=10,
    )
    taken = ledger.arm(ask)
    assert isinstance(taken, Taken)
    ledger.done(ask.key, {"status": 202})
    written = b"".join(file.read_bytes() for file in Path(valkey.folder).rglob("*") if file.is_file())
    assert ask.key.hex().encode() in written
    for word in (b"receipt", b"ada@", b"example.com", b"pepper"):
        assert word not in written


# -- what it is given


def test_a_url_carries_options(valkey: Valkey) -> None:
    ledger = open_ledger(valkey.url + "?timeout=1.5&wait_aof=yes&retention=60&prefix=opt:&health_check_interval=7")
    assert isinstance(ledger, RedisLedger)
    assert ledger._steps.timeout == 1.5
    assert ledger._client.get_connection_kwargs()["health_check_interval"] == 7
    arm(ledger)
    record = standing(ledger)
    assert record.expires == pytest.approx(record.first_seen + 60)


@pytest.mark.parametrize(
    "url", ["redis://:pass:word@host:port", "redis://[host", "redis://h/0?timeout=soon", "redis://h/0?wait_aof=maybe"]
)
def test_a_bad_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises((ConfigurationError, PolicyError)) as caught:
        open_ledger(url)
    assert "word" not in str(caught.value)
    assert "must be" in str(caught.value)


def test_a_client_made_here_says_nothing_again_by_itself_and_does_not_wait_for_long() -> None:
    """redis-py's own settings would: ten times, and without a time-out."""
    ledger = RedisLedger("redis://127.0.0.1:1", timeout=1.5)
    assert ledger._client.get_retry()._retries == 0
    settings = ledger._client.get_connection_kwargs()
    assert (settings["socket_timeout"], settings["socket_connect_timeout"]) == (1.5, 0.75)
    ledger.close()


@pytest.mark.parametrize(("name", "value"), [("timeout", 0), ("retention", -1), ("wait_replicas", -1)])
def test_bad_options(name: str, value: float) -> None:
    with pytest.raises(PolicyError, match=name):
        RedisLedger("redis://127.0.0.1:1", **{name: value})


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="int"):
        RedisLedger(6379)


def test_nobody_there() -> None:
    ledger = RedisLedger("redis://127.0.0.1:1")
    with pytest.raises(LedgerUnavailable, match="ConnectionError"):
        ledger.arm(take())
    with pytest.raises(LedgerUnavailable):
        list(ledger.records())
    with pytest.raises(LedgerUnavailable):
        ledger.problems()
