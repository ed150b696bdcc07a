from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from des.storage.latency import HedgeBudget, LatencyQuantile


def test_there_is_no_quantile_until_it_differs_from_the_maximum() -> None:
    times = LatencyQuantile()
    for seconds in range(19):
        times.add(seconds)
        assert times.value() is None
    times.add(19)
    assert times.value() == 18
    small = LatencyQuantile(size=3)
    for seconds in range(3):
        assert small.value() is None
        small.add(seconds)
    assert small.value() == 2


@given(
    st.lists(st.floats(0, 100) | st.sampled_from([0.1, 0.2]), min_size=20, max_size=200),
    st.integers(20, 64),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_it_is_the_nearest_rank_of_the_latest_times(times: list[float], size: int, quantile: float) -> None:
    latency = LatencyQuantile(quantile, size)
    for seconds in times:
        latency.add(seconds)
    latest = times[-size:]
    value = latency.value()
    assert value in latest
    not_above = sum(seconds <= value for seconds in latest)
    below = sum(seconds < value for seconds in latest)
    assert below < quantile * len(latest) + 1e-6
    assert not_above >= quantile * len(latest) - 1e-6


def test_a_tail_shows_within_its_share() -> None:
    times = LatencyQuantile(0.95, 256)
    for number in range(1000):
        times.add(0.3 if number % 100 < 3 else 0.001)
    assert times.value() == 0.001
    for number in range(256):
        times.add(0.3 if number % 10 == 0 else 0.001)
    assert times.value() == 0.3


def test_each_request_earns_its_share() -> None:
    budget = HedgeBudget(0.05)
    spent = []
    for number in range(1, 101):
        budget.earned()
        if budget.spend():
            spent.append(number)
    assert spent == [20, 40, 60, 80, 100]
    tenth = HedgeBudget(0.1)
    for _ in range(10):
        assert not tenth.spend()
        tenth.earned()
    assert tenth.spend()
    none = HedgeBudget(0)
    for _ in range(1000):
        none.earned()
    assert not none.spend()


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=300))
def test_extra_requests_never_exceed_their_share(share: float, calls: list[bool]) -> None:
    budget = HedgeBudget(share)
    earned = spent = 0
    for is_request in calls:
        if is_request:
            budget.earned()
            earned += 1
        else:
            spent += budget.spend()
        assert spent <= share * earned + 1e-3


def test_savings_are_bounded() -> None:
    budget = HedgeBudget(0.05)
    for _ in range(100_000):
        budget.earned()
    assert sum(budget.spend() for _ in range(100)) == 10
