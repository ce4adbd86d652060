"""Many threads, one writer: interruptions, patience, and nobody left behind."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from retrypolicy.errors import LedgerUnavailable
from retrypolicy.guard.grouping import Group

Work = Callable[[], Any]


def serve(works: Sequence[Work], deadline: float) -> list[Any]:
    return [work() for work in works]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def in_thread(group: Group[Work], work: Work, answers: list[Any]) -> threading.Thread:
    def target() -> None:
        try:
            answers.append(group.run(work))
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread


def test_those_who_wait_are_served_together_in_the_order_they_came() -> None:
    batches: list[int] = []

    def counting(works: Sequence[Work], deadline: float) -> list[Any]:
        batches.append(len(works))
        return serve(works, deadline)

    group: Group[Work] = Group(counting, 30.0)
    order: list[int] = []
    answers: list[Any] = []
    threads = []
    with group.alone():
        for number in range(5):
            threads.append(in_thread(group, lambda n=number: order.append(n), answers))  # type: ignore[misc] - a default
            wait_for(lambda n=number: len(group._queue) == n + 1)  # type: ignore[misc] - a default
    for thread in threads:
        thread.join()
    assert sum(batches) == 5
    assert len(batches) <= 2  # whoever came first served the rest; at most the leader had begun alone
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_a_work_that_fails_fails_alone() -> None:
    group: Group[Work] = Group(serve, 30.0)
    answers: list[Any] = []
    threads = []
    with group.alone():
        works: tuple[Work, ...] = (lambda: "a", lambda: 1 / 0, lambda: "c")
        threads.extend(in_thread(group, work, answers) for work in works)
        wait_for(lambda: len(group._queue) == 3)
    for thread in threads:
        thread.join()
    assert {answer for answer in answers if isinstance(answer, str)} == {"a", "c"}
    assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [ZeroDivisionError]


def test_patience_ends_and_a_work_that_was_not_begun_is_never_done() -> None:
    group: Group[Work] = Group(serve, 0.05)
    done: list[str] = []
    answers: list[Any] = []
    with group.alone():
        in_thread(group, lambda: done.append("late"), answers).join()
    assert isinstance(answers[0], TimeoutError)
    group.run(lambda: done.append("next"))
    assert done == ["next"]


def test_an_interrupted_leader_leaves_nobody_waiting_for_ever() -> None:
    group: Group[Work] = Group(serve, 30.0)
    answers: list[Any] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with group.alone():  # the crowd is there before anybody takes the turn; who does is up to the system
        threads = [in_thread(group, work, answers) for work in (interrupted, *[lambda: "served"] * 3)]
        wait_for(lambda: len(group._queue) == 4)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [type(answer) for answer in answers].count(KeyboardInterrupt) == 1
    assert all(answer == "served" or isinstance(answer, (KeyboardInterrupt, LedgerUnavailable)) for answer in answers)
    assert group.run(lambda: "works on") == "works on"


def test_a_thread_that_comes_in_again_while_it_serves_is_refused_and_breaks_nothing() -> None:
    group: Group[Work] = Group(serve, 30.0)

    def again() -> Any:
        with pytest.raises(TimeoutError, match="in the middle"):
            group.run(lambda: "nested")
        return "outer"

    assert group.run(again) == "outer"
    assert group.run(lambda: "next") == "next"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of that kind")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_soft_time_limit_at_any_moment_leaves_the_group_usable() -> None:
    """A signal handler raises, as a queue's soft time limit does, wherever the thread happens to be."""

    class SoftLimit(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise SoftLimit

    group: Group[Work] = Group(serve, 30.0)
    before = signal.signal(signal.SIGALRM, raise_it)
    interrupted = 0
    try:
        for number in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + number * 0.0000005)
                for _ in range(2_000):  # far more than it takes; Python swallows what is raised in a finaliser
                    group.run(lambda: None)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except SoftLimit:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 350
    answers: list[Any] = []
    in_thread(group, lambda: "another thread", answers).join(30)
    assert answers == ["another thread"]
