from __future__ import annotations

import pytest

from des.storage.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def outcomes(breaker: Breaker, word: str) -> None:
    for letter in word:
        {"s": breaker.succeeded, "f": breaker.failed, "a": breaker.abandoned}[letter]()


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock, in_a_row=3, first_pause=1.0, longest_pause=30.0, probe_seconds=10.0)
    outcomes(breaker, "fff")
    assert breaker.is_open
    return breaker


@pytest.mark.parametrize(
    ("word", "is_open"),
    [
        ("", False),
        ("ff", False),
        ("fff", True),
        ("ffsff", False),
        ("ffaf", True),  # what was given up says nothing, neither good nor bad
        ("ffs" * 3, False),  # nine outcomes have no share yet
        ("ffs" * 3 + "f", True),  # ten do: seven of them failed
        ("sssf" * 5, False),
        ("fsfsssssff" + "sff", False),  # six in all, but never more than four of the latest ten
        ("s" * 10 + "fsfsfsfsf", True),  # half of the latest ten
    ],
)
def test_failures_in_a_row_or_a_share_of_them_open_it(word: str, is_open: bool, clock: Clock) -> None:
    breaker = Breaker(clock, in_a_row=3, window=10, share=0.5)
    outcomes(breaker, word)
    assert breaker.is_open is is_open
    assert breaker.allows() is not is_open


def test_after_the_pause_exactly_one_probe_passes(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 0.49
    assert not breaker.allows()
    clock.now += 0.51
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.is_open
    breaker.succeeded()
    assert [breaker.allows() for _ in range(5)] == [True] * 5


def test_success_forgets_the_past(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 1
    assert breaker.allows()
    outcomes(breaker, "sff")
    assert not breaker.is_open
    breaker.failed()
    clock.now += 1  # the first pause again, not a longer one
    assert breaker.allows()


def test_what_began_before_it_opened_changes_nothing(clock: Clock) -> None:
    breaker = opened(clock)
    outcomes(breaker, "sfsf")
    assert breaker.is_open
    assert not breaker.allows()
    clock.now += 1
    assert breaker.allows()


def test_a_probe_that_is_given_up_makes_room_for_the_next(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 1
    assert breaker.allows()
    breaker.abandoned()
    assert breaker.is_open
    assert [breaker.allows() for _ in range(2)] == [True, False]


def test_a_probe_that_nobody_reports_does_not_leave_it_stuck(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 1
    assert breaker.allows()
    clock.now += 9.9
    assert not breaker.allows()
    clock.now += 0.1
    assert [breaker.allows() for _ in range(2)] == [True, False]


def test_pauses_double_up_to_a_bound_and_are_random() -> None:
    lengths: list[set[float]] = [set() for _ in range(8)]
    for _ in range(200):
        clock = Clock()
        breaker = opened(clock)
        for seen in lengths:
            began = clock.now
            while not breaker.allows():
                clock.now += 0.125
            seen.add(clock.now - began)
            breaker.failed()
            assert breaker.is_open
    for seen, longest in zip(lengths, [1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert longest / 2 <= min(seen)
        assert max(seen) <= longest
        assert len(seen) > 2
