from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.store.planning import MAX_GAP_BYTES, MAX_READ_BYTES, Read, Want, coalesce

Ranges = list[tuple[int, int]]


def wants(*ranges: tuple[int, int]) -> list[Want]:
    return [Want(number, start, end) for number, (start, end) in enumerate(ranges)]


def over_read(read: Read) -> int:
    """Return how many bytes of a read nobody wants."""
    covered, position = 0, read.start
    for want in read.wants:
        covered += max(0, want.end - max(position, want.start))
        position = max(position, want.end)
    return read.end - read.start - covered


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], []),
        ([(5, 9)], [(5, 9)]),
        ([(0, 10), (10, 20)], [(0, 20)]),
        ([(0, 10), (15, 20)], [(0, 20)]),
        ([(0, 10), (16, 20)], [(0, 10), (16, 20)]),
        ([(30, 40), (0, 10)], [(0, 10), (30, 40)]),
        ([(12, 20), (0, 10)], [(0, 20)]),
        ([(0, 10), (0, 10)], [(0, 10)]),
        ([(0, 20), (5, 8), (22, 24)], [(0, 24)]),
        ([(0, 20), (10, 30)], [(0, 30)]),
        ([(0, 50), (50, 100), (100, 101)], [(0, 100), (100, 101)]),
        ([(0, 500)], [(0, 500)]),
        ([(0, 500), (500, 501)], [(0, 500), (500, 501)]),
        ([(0, 10), (10, 500)], [(0, 10), (10, 500)]),
        ([(0, 500), (3, 7)], [(0, 500), (3, 7)]),
        ([(7, 7)], [(7, 7)]),
        ([(7, 7), (7, 9)], [(7, 9)]),
        ([(0, 9), (9, 9)], [(0, 9)]),
    ],
)
def test_what_is_read(ranges: Ranges, expected: Ranges) -> None:
    reads = coalesce(wants(*ranges), max_gap=5, max_read=100)
    assert [(read.start, read.end) for read in reads] == expected


def test_every_read_names_whom_it_serves() -> None:
    reads = coalesce(wants((20, 30), (0, 5), (20, 30), (5, 9)), max_gap=2)
    assert reads == [
        Read(0, 9, (Want(1, 0, 5), Want(3, 5, 9))),
        Read(20, 30, (Want(0, 20, 30), Want(2, 20, 30))),
    ]


@pytest.mark.parametrize(
    ("ranges", "unwanted"),
    [([(0, 10)], 0), ([(0, 10), (12, 20)], 2), ([(0, 20), (5, 8)], 0), ([(0, 10), (5, 12), (15, 16)], 3)],
)
def test_over_read(ranges: Ranges, unwanted: int) -> None:
    (read,) = coalesce(wants(*ranges))
    assert over_read(read) == unwanted


@given(
    st.lists(st.tuples(st.integers(0, 4 << 20), st.integers(0, 2 << 20))),
    st.integers(0, 2 * MAX_GAP_BYTES),
    st.integers(1, 2 * MAX_READ_BYTES),
)
def test_every_want_is_covered_once_and_little_more_is_read(
    ranges: list[tuple[int, int]], max_gap: int, max_read: int
) -> None:
    asked = wants(*((start, start + length) for start, length in ranges))
    reads = coalesce(asked, max_gap, max_read)
    assert sorted(want.number for read in reads for want in read.wants) == [want.number for want in asked]
    for read in reads:
        assert all(read.start <= want.start <= want.end <= read.end for want in read.wants)
        assert read.end - read.start <= max_read or len(read.wants) == 1
        assert 0 <= over_read(read) <= max_gap * (len(read.wants) - 1)
    starts = [read.start for read in reads]
    assert starts == sorted(starts)
