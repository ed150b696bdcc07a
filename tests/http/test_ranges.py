"""`des.http.ranges`: RFC 9110 section 14."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.http.ranges import Slice, Unsatisfiable, select_range

HUGE = "9" * 15_000
NO = Unsatisfiable()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=0-0", Slice(0, 1)),
        ("bytes=0-9", Slice(0, 10)),
        ("bytes=2-", Slice(2, 10)),
        ("bytes=9-", Slice(9, 10)),
        ("bytes=3-99", Slice(3, 10)),
        (f"bytes=3-{HUGE}", Slice(3, 10)),
        ("bytes=0003-0004", Slice(3, 5)),
        (f"bytes={'0' * 9000}3-4", Slice(3, 5)),
        ("bytes=-1", Slice(9, 10)),
        ("bytes=-10", Slice(0, 10)),
        ("bytes=-11", Slice(0, 10)),
        (f"bytes=-{HUGE}", Slice(0, 10)),
        ("BYTES=1-2", Slice(1, 3)),
        ("bytes=1-2,", Slice(1, 3)),
        ("bytes=, ,1-2 , ,", Slice(1, 3)),
        ("bytes=10-", NO),
        ("bytes=10-20", NO),
        (f"bytes={HUGE}-", NO),
        (f"bytes={HUGE}-{HUGE}", NO),
        ("bytes=-0", NO),
        ("bytes=-000", NO),
        ("bytes=9-3", None),
        ("bytes=10-9", None),
        (f"bytes={HUGE}-3", None),
        (f"bytes={HUGE}1-{HUGE}0", None),
        ("bytes=0-1,2-3", None),
        ("bytes=20-,30-", None),
        ("bytes=0-1,rubbish", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=,", None),
        ("bytes", None),
        ("", None),
        ("bytes 0-1", None),
        ("bytes= 0-1", None),
        ("bytes =0-1", None),
        ("bytes=0 - 1", None),
        ("bytes=0-1;2", None),
        ("bytes=+0-1", None),
        ("bytes=0--1", None),
        ("bytes=--1", None),
        ("bytes=a-b", None),
        ("bytes=0x0-0x1", None),
        ("bytes=1.0-2", None),
        ("bytes=1_0-20", None),
        ("bytes=\xb2-3", None),
        ("items=0-1", None),
        ("seconds=1-2", None),
    ],
)
def test_a_range_of_ten_bytes(value: str, expected: Slice | Unsatisfiable | None) -> None:
    assert select_range(value.encode("latin-1"), 10) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("bytes=0-", NO), ("bytes=0-0", NO), ("bytes=-0", NO), ("bytes=-1", None), ("bytes=1-0", None)],
)
def test_a_range_of_nothing(value: str, expected: Unsatisfiable | None) -> None:
    assert select_range(value.encode(), 0) == expected


def test_ten_thousand_ranges_are_the_whole_file() -> None:
    assert select_range(b"bytes=" + b"0-0," * 10_000 + b"1-1", 10) is None
    assert select_range(b"bytes=" + b" ,\t" * 10_000 + b"1-1", 10) is None


@given(st.binary(max_size=64) | st.from_regex(rb"bytes=[0-9, -]{0,20}", fullmatch=True), st.integers(0, 40))
def test_whatever_comes_the_slice_lies_in_the_file(value: bytes, size: int) -> None:
    selected = select_range(value, size)
    if isinstance(selected, Slice):
        assert 0 <= selected.start < selected.end <= size


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 60))
def test_a_range_selects_what_it_says(first: int, last: int, size: int) -> None:
    content = bytes(range(size))
    selected = select_range(f"bytes={first}-{last}".encode(), size)
    if last < first:
        assert selected is None
    elif isinstance(selected, Slice):
        assert content[selected.start : selected.end] == content[first : last + 1] != b""
    else:
        assert selected == NO
        assert not content[first : last + 1]
