from __future__ import annotations

import pytest

from des.errors import PreconditionFailedError, StorageUnavailableError
from des.storage.s3_errors import Failure, Subject
from des.storage.s3_ranges import Conditions, RangeRead, version_of

SUBJECT = Subject("http://endpoint", "bucket", "key", "read")


def partial(start: int, last: int, total: int, etag: str = '"v"', **headers: str) -> dict[str, str]:
    return {"content-range": f"bytes {start}-{last}/{total}", "etag": etag, **headers}


def test_a_range_asks_for_what_is_still_to_come() -> None:
    read = RangeRead(SUBJECT, 10, 110, None)
    assert read.conditions == Conditions("bytes=10-109", None, None)
    read.accept(206, partial(10, 109, 1000))
    read.advance(30)
    assert read.conditions == Conditions("bytes=40-109", "v", None)
    read.accept(206, partial(40, 109, 1000))
    assert not read.complete
    read.advance(70)
    assert read.complete


def test_a_range_at_a_version_asks_for_it_at_once() -> None:
    assert RangeRead(SUBJECT, 0, 1, "v").conditions == Conditions("bytes=0-0", "v", None)


def test_a_suffix_becomes_a_range_once_its_place_is_known() -> None:
    read = RangeRead.of_suffix(SUBJECT, 64, "old")
    assert read.conditions == Conditions("bytes=-64", None, "old")
    read.accept(206, partial(936, 999, 1000))
    assert (read.start, read.end, read.total, read.version) == (936, 1000, 1000, "v")
    read.advance(10)
    assert read.conditions == Conditions("bytes=946-999", "v", None)


@pytest.mark.parametrize(
    ("start", "end", "headers", "expected_end"),
    [
        (0, 10, partial(0, 9, 100), 10),
        (0, 10, partial(0, 4, 5), 5),
        (4, 10**12, partial(4, 99, 100), 100),
        (0, 10, partial(0, 9, 100, **{"content-length": "10"}), 10),
        (0, 10, partial(0, 9, 100, etag='W/"v"'), 10),
    ],
)
def test_what_was_asked_for_is_believed(start: int, end: int, headers: dict[str, str], expected_end: int) -> None:
    read = RangeRead(SUBJECT, start, end, "v")
    read.accept(206, headers)
    assert (read.outcome, read.offset, read.end) == ("body", start, expected_end)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, partial(1, 9, 100)),
        (206, partial(0, 8, 100)),
        (206, partial(0, 10, 100)),
        (206, partial(0, 9, 100, **{"content-length": "9"})),
        (206, partial(0, 9, 100, etag="")),
        (206, {"etag": '"v"'}),
        (206, {"etag": '"v"', "content-range": "bytes 0-9/*"}),
        (206, {"etag": '"v"', "content-range": "bytes */100"}),
        (206, {"etag": '"v"', "content-range": "items 0-9/100"}),
        (206, {"etag": '"v"', "content-range": "bytes 0-9/99999999999999999999999"}),
        (206, {"etag": '"v"', "content-range": "bytes \uff10-\uff19/100"}),
        (200, {"etag": '"v"', "content-length": "100"}),
        (200, {"etag": '"v"'}),
        (204, {"etag": '"v"'}),
        (304, {"etag": '"v"'}),
        (416, {"content-range": "bytes */100"}),
    ],
)
def test_anything_else_is_a_failed_attempt(status: int, headers: dict[str, str]) -> None:
    with pytest.raises(Failure) as caught:
        RangeRead(SUBJECT, 0, 10, None).accept(status, headers)
    assert isinstance(caught.value.error, StorageUnavailableError)
    assert caught.value.transient
    assert "when bytes 0-9 of s3://bucket/key was asked for" in str(caught.value)


@pytest.mark.parametrize(("end", "length"), [(100, 100), (101, 100), (5, 0)])
def test_200_is_the_whole_object_or_nothing(end: int, length: int) -> None:
    read = RangeRead(SUBJECT, 0, end, None)
    read.accept(200, {"etag": '"v"', "content-length": str(length)})
    assert (read.end, read.total) == (length, length)
    read.advance(length)
    assert read.complete


def test_200_to_a_resumed_read_is_refused() -> None:
    read = RangeRead(SUBJECT, 0, 100, None)
    read.accept(200, {"etag": '"v"', "content-length": "100"})
    read.advance(10)
    with pytest.raises(Failure):
        read.accept(200, {"etag": '"v"', "content-length": "100"})


@pytest.mark.parametrize(
    ("read", "headers"),
    [
        (RangeRead(SUBJECT, 0, 10, "other"), partial(0, 9, 100)),
        (RangeRead(SUBJECT, 0, 100, "other"), {"content-length": "100", "etag": '"v"'}),
    ],
)
def test_another_version_is_no_trouble_of_the_storage(read: RangeRead, headers: dict[str, str]) -> None:
    with pytest.raises(Failure) as caught:
        read.accept(206 if "content-range" in headers else 200, headers)
    assert isinstance(caught.value.error, PreconditionFailedError)
    assert not caught.value.transient


def test_the_version_of_the_first_reply_holds_for_the_rest() -> None:
    read = RangeRead(SUBJECT, 0, 10, None)
    read.accept(206, partial(0, 9, 100))
    read.advance(3)
    with pytest.raises(Failure) as caught:
        read.accept(206, partial(3, 9, 100, etag='"w"'))
    assert isinstance(caught.value.error, PreconditionFailedError)


def test_the_size_of_the_first_reply_holds_for_the_rest() -> None:
    read = RangeRead(SUBJECT, 0, 10, None)
    read.accept(206, partial(0, 9, 100))
    read.advance(3)
    with pytest.raises(Failure):
        read.accept(206, partial(3, 9, 101))


def test_more_bytes_than_asked_for() -> None:
    read = RangeRead(SUBJECT, 0, 10, None)
    read.accept(206, partial(0, 9, 100))
    with pytest.raises(Failure, match="more bytes"):
        read.advance(11)


@pytest.mark.parametrize(
    ("read", "content_range", "believed"),
    [
        (RangeRead(SUBJECT, 100, 110, None), "bytes */100", True),
        (RangeRead(SUBJECT, 100, 110, None), "", True),
        (RangeRead(SUBJECT, 100, 110, None), "bytes */101", False),
        (RangeRead.of_suffix(SUBJECT, 10, None), "bytes */0", True),
        (RangeRead.of_suffix(SUBJECT, 10, None), "", True),
        (RangeRead.of_suffix(SUBJECT, 10, None), "bytes */5", False),
    ],
)
def test_416(read: RangeRead, content_range: str, believed: bool) -> None:
    if believed:
        read.accept(416, {"content-range": content_range})
        assert read.outcome == "past_end"
    else:
        with pytest.raises(Failure):
            read.accept(416, {"content-range": content_range})


def test_304_is_good_only_where_it_was_asked_for() -> None:
    read = RangeRead.of_suffix(SUBJECT, 10, "v")
    read.accept(304, {})
    assert read.outcome == "unmodified"
    with pytest.raises(Failure):
        RangeRead.of_suffix(SUBJECT, 10, None).accept(304, {})


@pytest.mark.parametrize("etag", ['"abc-2"', 'W/"abc-2"', "abc-2"])
def test_version_of_an_etag(etag: str) -> None:
    assert version_of(etag) == "abc-2"
