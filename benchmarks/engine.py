"""What the engine costs: a decision, a budget check, an attempt against tenacity's and stamina's, the import.

CPU time of this thread, the least of many rounds; ratios are taken in one run, from rounds that take turns.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import stamina
import tenacity
from attrs import evolve

from retrypolicy import Answered, Constant, Engine, Failed, History, RetryBudget, RetryPolicy, Stage, decide
from retrypolicy.clock import SystemClock

HEADERS = {
    "date": "Tue, 24 Nov 2026 04:07:04 GMT",
    "content-type": "application/json",
    "content-length": "48",
    "connection": "keep-alive",
    "server": "nginx",
    "cache-control": "no-store",
    "x-request-id": "4f1c2d",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "strict-transport-security": "max-age=63072000",
    "referrer-policy": "no-referrer",
    "vary": "Accept-Encoding",
    "via": "1.1 edge",
    "x-cache": "MISS",
    "retry-after": "1",
}
NOW = 1_795_000_000.0


def least(work: Callable[[], object], rounds: int, calls: int = 2000) -> float:
    """Microseconds of one call, in the best of the rounds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.thread_time()
        for _ in range(calls):
            work()
        best = min(best, time.thread_time() - began)
    return best / calls * 1e6


def decisions(rounds: int) -> None:
    policy, history = RetryPolicy(), History(method="GET")
    fine, busy = Answered(status=200, headers=HEADERS), Answered(status=503, headers=HEADERS)
    plain = Answered(status=503, headers={k: v for k, v in HEADERS.items() if k != "retry-after"})
    broken = Failed(error=ConnectionError(), stage=Stage.SENT)
    for name, outcome, bound in (
        ("decide(), success", fine, 2),
        ("decide(), 503 with Retry-After, 15 headers", busy, 6),
        ("decide(), 503 without, 14 headers", plain, 6),
        ("decide(), broken connection", broken, 6),
    ):
        took = float("inf")
        for _ in range(rounds):
            fresh = [evolve(outcome) for _ in range(2000)]  # what is found in an answer is kept with it
            began = time.thread_time()
            for one in fresh:
                decide(policy, history, one, now=NOW, random=0.5)
            took = min(took, (time.thread_time() - began) / len(fresh) * 1e6)
        print(f"{name:52s} {took:6.2f} us  (at most {bound})")


def budgets(rounds: int) -> None:
    budget, clock = RetryBudget(name="benchmark"), SystemClock()

    state = budget.state("api.example.com", clock)

    def success() -> None:
        budget.state("api.example.com", clock).on_success()

    full = RetryBudget(name="full")
    print(f"{'budget: state() and on_success(), full':52s} {least(success, rounds):6.2f} us  (at most 1)")
    print(f"{'budget: permit()':52s} {least(state.permit, rounds):6.2f} us  (at most 1)")
    assert full.state("api.example.com", clock).balance == 100


class Flaky:
    """Fails with OSError twice, then returns: the script that all of them run."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls % 3:
            raise OSError
        return self.calls


def attempts(rounds: int) -> None:
    stamina.instrumentation.set_on_retry_hooks([])  # no log lines: neither library's hooks are what is compared
    engine = Engine(RetryPolicy(backoff=Constant(seconds=0)))
    flaky = Flaky()

    def bare() -> None:
        for _ in range(2):
            try:
                flaky()
            except OSError:
                continue
        flaky()

    # What a user would write once and call often, in each library's own way.
    ours: Any = engine.retry(on=OSError, idempotent=True)(flaky)
    tenacious: Any = tenacity.retry(
        stop=tenacity.stop_after_attempt(4), retry=tenacity.retry_if_exception_type(OSError)
    )(flaky)
    caller = stamina.RetryingCaller(attempts=4, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0).on(OSError)

    contenders: dict[str, Callable[[], object]] = {
        "bare": bare,
        "retrypolicy": ours,
        "tenacity": tenacious,
        "stamina": lambda: caller(flaky),
    }
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            took[name].append(least(work, 1, 200) / 3)
    floor = min(took["bare"])
    costs = {name: min(times) - floor for name, times in took.items()}
    for name in ("retrypolicy", "tenacity", "stamina"):
        ratio = "" if name == "retrypolicy" else f"  (we: {costs['retrypolicy'] / costs[name]:.2f} of it; at most 0.20)"
        print(f"{f'an attempt, {name}':52s} {costs[name]:6.2f} us{ratio}")


def imports(rounds: int) -> None:
    def seconds(statement: str) -> float:
        code = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    ratios = []
    for _ in range(rounds):
        attrs = seconds("import attrs")
        ratios.append(seconds("import attrs, retrypolicy") / attrs)
    print(f"{'import retrypolicy, of importing attrs':52s} {statistics.median(ratios):6.2f}     (at most 1.10)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    gc.disable()
    decisions(args.rounds)
    budgets(args.rounds)
    attempts(args.rounds)
    imports(args.rounds)


if __name__ == "__main__":
    main()
