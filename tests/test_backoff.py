"""Laws of the backoffs, and the published means of their schedules."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from urllib3.util.retry import RequestHistory, Retry

from retrypolicy.backoff import Backoff, Constant, Decorrelated, Exponential, Jitter, Linear, Urllib3Backoff
from retrypolicy.errors import PolicyError

seconds = st.floats(0, 1e6)
jitters: st.SearchStrategy[Jitter] = st.sampled_from(["none", "full", "equal", "proportional"])
randoms = st.floats(0, 1, exclude_max=True)
retries = st.integers(1, 10**6)
bases_and_caps = st.tuples(seconds, seconds).map(sorted)

Known = Constant | Linear | Exponential | Decorrelated | Urllib3Backoff
backoffs: st.SearchStrategy[Known] = st.one_of(
    st.builds(Constant, seconds=seconds, jitter=jitters),
    st.builds(lambda b, s, j: Linear(base=b[0], cap=b[1], step=s, jitter=j), bases_and_caps, seconds, jitters),
    st.builds(
        lambda b, f, j: Exponential(base=b[0], cap=b[1], factor=f, jitter=j),
        bases_and_caps,
        st.floats(1e-3, 1e3) | st.integers(1, 10),
        jitters,
    ),
    st.builds(lambda b: Decorrelated(base=b[0], cap=b[1]), bases_and_caps),
    st.builds(Urllib3Backoff, factor=seconds, cap=seconds, jitter=seconds),
)


def schedule(backoff: Backoff, count: int, random: float) -> list[float]:
    waits: list[float] = []
    for retry in range(1, count + 1):
        waits.append(backoff.delay(retry, waits[-1] if waits else None, random))
    return waits


def mean(backoff: Backoff, retry: int, previous: float | None = None) -> float:
    """The mean over `random`. Every delay is linear in it, so the middle is the mean."""
    return backoff.delay(retry, previous, 0.5)


@given(backoffs, retries, randoms, st.none() | seconds)
def test_a_delay_is_finite_and_within_its_bounds(
    backoff: Known, retry: int, random: float, previous: float | None
) -> None:
    if isinstance(backoff, Decorrelated) and previous is not None:
        previous = min(previous, backoff.bounds(retry - 1)[1]) if retry > 1 else None
    low, high = backoff.bounds(retry)
    delay = backoff.delay(retry, previous, random)
    assert math.isfinite(delay)
    assert 0 <= low <= high
    assert low - 1e-9 * low <= delay <= high + 1e-9 * high


@given(backoffs, retries, st.none() | seconds, randoms, randoms, randoms)
def test_a_delay_is_linear_in_random(
    backoff: Known, retry: int, previous: float | None, one: float, other: float, share: float
) -> None:
    def delay(random: float) -> float:
        return backoff.delay(retry, previous, random)

    assume(not isinstance(backoff, Urllib3Backoff))  # its jitter is cut off by the cap
    mixed = share * one + (1 - share) * other
    assume(mixed < 1)
    assert delay(mixed) == pytest.approx(share * delay(one) + (1 - share) * delay(other), rel=1e-9, abs=1e-9)


@given(st.floats(0.001, 1e6), retries, st.sampled_from(["full", "equal", "proportional"]), randoms, randoms)
def test_jitter_survives_the_cap(cap: float, retry: int, jitter: Jitter, one: float, other: float) -> None:
    """Cap first, then jitter: two clients at the cap don't come back at the same moment."""
    assume(abs(one - other) > 1e-6)
    for backoff in (
        Exponential(base=cap, cap=cap, jitter=jitter),
        Linear(base=cap, cap=cap, jitter=jitter),
        Decorrelated(base=cap / 2, cap=cap),
    ):
        assert backoff.delay(retry, cap, one) != backoff.delay(retry, cap, other)


@given(backoffs)
def test_a_backoff_can_be_written_down_compared_and_pickled(backoff: Known) -> None:
    for copy in (eval(repr(backoff)), pickle.loads(pickle.dumps(backoff))):
        assert copy == backoff
        assert hash(copy) == hash(backoff)


@given(backoffs, st.integers(1, 1000))
def test_without_jitter_waits_never_shrink(backoff: Known, retry: int) -> None:
    if isinstance(backoff, Exponential):
        assume(backoff.factor >= 1)
    assert backoff.bounds(retry + 1)[1] >= backoff.bounds(retry)[1]


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Constant(), [1, 1, 1, 1]),
        (Linear(base=1, step=2, cap=6, jitter="none"), [1, 3, 5, 6]),
        (Exponential(jitter="none"), [0.5, 1, 2, 4, 8, 10, 10]),
        (Exponential(base=0.005, cap=2, jitter="none"), [0.005, 0.01, 0.02, 0.04]),
        (Exponential(base=0.05, cap=20, jitter="none"), [0.05, 0.1, 0.2]),  # AWS 2.1
    ],
)
def test_schedules(backoff: Backoff, waits: list[float]) -> None:
    assert schedule(backoff, len(waits), 0.25) == pytest.approx(waits)


def test_ranges_of_the_jitters() -> None:
    """Full: U(0, d). Equal: d/2 + U(0, d/2). Proportional: d * U(0.8, 1.2), above the cap too (gRPC A6)."""
    ranges = {"none": (8, 8), "full": (0, 8), "equal": (4, 8), "proportional": (6.4, 9.6)}
    for jitter, bounds in ranges.items():
        given: Any = {"jitter": jitter}
        for backoff in (
            Exponential(base=8, cap=8, **given),
            Linear(base=8, cap=8, **given),
            Constant(seconds=8, **given),
        ):
            assert backoff.bounds(3) == pytest.approx(bounds)
            assert backoff.delay(3, None, 0.5) == pytest.approx(sum(bounds) / 2)


@given(seconds, seconds, st.integers(1, 1000))
def test_urllib3s_waits(factor: float, cap: float, retry: int) -> None:
    """As `Retry.get_backoff_time` of urllib3 itself; a jitter is added to them before the cap."""
    failed = RequestHistory("GET", "/", OSError(), None, None)
    theirs = Retry(backoff_factor=factor, backoff_max=cap, history=(failed,) * retry).get_backoff_time()
    assert Urllib3Backoff(factor=factor, cap=cap).bounds(retry) == (theirs, theirs)
    low, high = Urllib3Backoff(factor=factor, cap=cap, jitter=3.0).bounds(retry)
    assert (low, high) == (theirs, theirs if retry == 1 else min(cap, theirs + 3.0))


def test_mean_total_of_full_equal_and_proportional_jitter() -> None:
    """All attempts fail: full sum/2, equal 3/4 sum, proportional sum, of the capped delays c_k = min(cap, b m^k)."""
    capped = [1, 2, 4, 8]
    for jitter, share in {"full": 0.5, "equal": 0.75, "proportional": 1.0, "none": 1.0}.items():
        backoff = Exponential(base=1, cap=60, jitter=jitter)  # type: ignore[arg-type] # str from a dict
        assert sum(mean(backoff, k) for k in range(1, 5)) == pytest.approx(share * sum(capped))
    assert sum(mean(Exponential(base=1, cap=60), k) for k in range(1, 5)) == 7.5
    # AWS 2.1: base 50 ms, cap 20 s; three attempts .075 s, twelve 32.775 s.
    aws = Exponential(base=0.05, cap=20)
    assert sum(mean(aws, k) for k in range(1, 3)) == pytest.approx(0.075)
    assert sum(mean(aws, k) for k in range(1, 12)) == pytest.approx(32.775)


def test_variance_of_full_and_equal_jitter() -> None:
    """Var of the total: sum c^2 / 12 (full), sum c^2 / 48 (equal); of a uniform draw it is width^2 / 12."""
    for jitter, divisor in {"full": 12, "equal": 48}.items():
        backoff = Exponential(base=1, cap=60, jitter=jitter)  # type: ignore[arg-type] # str from a dict
        widths = [high - low for low, high in map(backoff.bounds, range(1, 5))]
        assert sum(w**2 / 12 for w in widths) == pytest.approx(85 / divisor)


def test_mean_of_decorrelated_jitter() -> None:
    """Without a cap E[s_k] = b (2 * 1.5^k - 1), and the sums are 2, 5.5, 11.25, 20.375, 34.5625, 56.34375 times b.

    A delay is linear in `random` and in the one before, so the mean of one is the delay of the mean of the other.
    """
    backoff = Decorrelated(base=0.5, cap=1e9)
    total, previous = 0.0, None
    for k, expected in enumerate([2, 5.5, 11.25, 20.375, 34.5625, 56.34375], start=1):
        previous = mean(backoff, k, previous)
        assert previous == pytest.approx(0.5 * (2 * 1.5**k - 1))
        total += previous
        assert total == pytest.approx(0.5 * expected)


def test_range_of_decorrelated_jitter() -> None:
    backoff = Decorrelated(base=1, cap=20)
    assert [backoff.bounds(k) for k in (1, 2, 3, 4, 10**6)] == [(1, 3), (1, 9), (1, 20), (1, 20), (1, 20)]
    assert backoff.delay(1, None, 0.0) == 1
    assert backoff.delay(2, 20, 0.5) == 10.5  # in the middle of its range, not at the cap
    assert backoff.delay(2, 0.0, 0.0) == 1  # a hint of nothing does not shrink the range


@pytest.mark.parametrize(
    "backoff",
    [
        Exponential(base=1, factor=3, cap=7, jitter="none"),
        Exponential(base=1, factor=10**9, cap=7, jitter="none"),
        Linear(base=1, step=1e6, cap=7, jitter="none"),
        Urllib3Backoff(factor=1, cap=7),
    ],
)
def test_a_millionth_retry_waits_as_long_as_the_cap(backoff: Backoff) -> None:
    assert backoff.delay(10**6, None, 0.0) == 7


def test_a_millionth_retry_of_nothing() -> None:
    assert Exponential(base=0, cap=7).delay(10**6, None, 0.5) == 0
    assert Exponential(base=1, factor=0.5, cap=7, jitter="none").delay(10**6, None, 0.5) == 0


def test_exact_values_of_the_default() -> None:
    """The default in exact arithmetic: min(10, 1/2 * 2^(n-1)) times the random number."""
    for retry in range(1, 20):
        exact = min(Fraction(10), Fraction(1, 2) * 2 ** (retry - 1)) * Fraction(3, 8)
        assert Exponential().delay(retry, None, 0.375) == exact


@pytest.mark.parametrize(
    ("build", "fields", "name"),
    [
        (Constant, {"seconds": -1}, "Constant.seconds"),
        (Constant, {"seconds": "1"}, "Constant.seconds"),
        (Constant, {"seconds": True}, "Constant.seconds"),
        (Constant, {"seconds": math.inf}, "Constant.seconds"),
        (Constant, {"jitter": "some"}, "Constant.jitter"),
        (Linear, {"step": -0.1}, "Linear.step"),
        (Linear, {"base": 2, "cap": 1}, "Linear.cap"),
        (Exponential, {"base": -0.5}, "Exponential.base"),
        (Exponential, {"factor": 0}, "Exponential.factor"),
        (Exponential, {"factor": math.nan}, "Exponential.factor"),
        (Exponential, {"cap": 0.1}, "Exponential.cap"),
        (Exponential, {"jitter": None}, "Exponential.jitter"),
        (Decorrelated, {"cap": 0.1}, "Decorrelated.cap"),
    ],
)
def test_bad_values_are_named(build: Any, fields: dict[str, Any], name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        build(**fields)
    assert caught.value.field == name
    assert caught.value.value is fields[name.rpartition(".")[2]]
    assert caught.value.allowed
    assert repr(caught.value.value) in str(caught.value)
