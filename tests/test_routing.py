from __future__ import annotations

import hashlib
import sqlite3
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from des.errors import InvalidRequestError
from des.routing import (
    CreatedAt,
    Uid,
    date_dir,
    file_id,
    head_key,
    locate_shard,
    normalize_uid,
    parse_created_at,
    parse_day,
    segment_key,
    segment_prefix,
    shard_hex,
    shard_index,
)

DAY = "2024-01-31"
PROPERTY = settings(deadline=None, database=None)
# What UTF-8 can say, less the C0 control characters.
UIDS = st.text(st.characters(codec="utf-8", min_codepoint=0x20), min_size=1, max_size=200).filter(
    lambda text: len(text.encode()) <= 1024
)
ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def utc(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type,misc]  # fields of a datetime, in their order


@pytest.mark.parametrize(
    ("uid", "n_bits", "expected"),
    [
        # SHA-256("a") = ca978112ca1bbdca..., 0xca97 = 0b1100_1010_1001_0111
        ("a", 1, "1"),
        ("a", 2, "3"),
        ("a", 3, "6"),
        ("a", 4, "C"),
        ("a", 5, "19"),
        ("a", 8, "CA"),
        ("a", 9, "195"),
        ("a", 12, "CA9"),
        ("a", 13, "1952"),
        ("a", 16, "CA97"),
        # SHA-256("abc") = ba7816bf..., the vector of FIPS 180-4
        ("abc", 8, "BA"),
        ("abc", 16, "BA78"),
        # SHA-256("12345") = 5994471a...
        ("12345", 8, "59"),
        (12345, 8, "59"),
        # SHA-256("日本語") = 77710aed...
        ("日本語", 12, "777"),
        # SHA-256("39") = 0b918943...: the digits of an index are padded
        ("39", 8, "0B"),
    ],
)
def test_known_vectors(uid: Uid, n_bits: int, expected: str) -> None:
    location = locate_shard(uid, DAY, n_bits)
    assert location.shard_hex == expected
    assert location.shard_index == int(expected, 16)
    assert location.object_key == f"20240131/{expected}.des"
    assert (location.uid, location.date_dir, location.created_at) == (str(uid), "20240131", utc(2024, 1, 31))


@PROPERTY
@given(UIDS, st.integers(1, 16))
def test_index_is_the_first_bits_of_the_hash(uid: str, n_bits: int) -> None:
    bits = f"{int(hashlib.sha256(uid.encode()).hexdigest(), 16):0256b}"
    location = locate_shard(uid, DAY, n_bits)
    assert location.shard_index == int(bits[:n_bits], 2)
    assert len(location.shard_hex) == (n_bits + 3) // 4
    assert location.shard_hex == location.shard_hex.upper()
    assert file_id(uid) == hashlib.sha256(uid.encode()).digest()[:16]
    assert shard_index(file_id(uid), n_bits) == location.shard_index


@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 5, 8, 12, 16])
def test_every_index_is_used_evenly(n_bits: int) -> None:
    counts = [0] * (1 << min(n_bits, 5))
    for number in range(8000):
        index = locate_shard(number, DAY, n_bits).shard_index
        assert index < 1 << n_bits
        counts[index >> max(0, n_bits - 5)] += 1
    assert min(counts) > 0.6 * 8000 / len(counts)


@pytest.mark.parametrize("n_bits", [4, 8, 12, 16])
def test_a_database_computes_the_same(n_bits: int) -> None:
    rows = [
        ("a", "2024-01-31T00:00:00Z"),
        ("日本語", "2024-01-31T23:59:59.999Z"),
        ("x/y z", "2024-01-31T23:30:00-01:00"),
        ("12", "2024-03-01T00:30:00+01:00"),
        ("12", "2023-03-01T00:30:00+14:00"),
    ]
    database = sqlite3.connect(":memory:")
    database.create_function("sha256", 1, lambda text: hashlib.sha256(text.encode()).hexdigest())
    key = "strftime('%Y%m%d', ?2) || '/' || upper(substr(sha256(?1), 1, ?3)) || '.des'"
    for uid, created_at in rows:
        (computed,) = database.execute(f"SELECT {key}", (uid, created_at, n_bits // 4)).fetchone()
        assert computed == locate_shard(uid, created_at, n_bits).object_key
    database.close()


@pytest.mark.parametrize("n_bits", [0, -1, 17, 256])
def test_impossible_n_bits(n_bits: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"n_bits is {n_bits}"):
        locate_shard("a", DAY, n_bits)


@pytest.mark.parametrize(
    ("uid", "expected"),
    [
        ("a", "a"),
        (0, "0"),
        (-5, "-5"),
        (10**30, "1" + "0" * 30),
        ("007", "007"),
        (" leading and trailing ", " leading and trailing "),
        ("a//b/../c/", "a//b/../c/"),
        ("100% +?#&=\\\"'", "100% +?#&=\\\"'"),
        ("é", "é"),
        ("e\u0301", "e\u0301"),
        ("\x7f\x80\x9f\u2028\ufeff\ufffd\uffff", "\x7f\x80\x9f\u2028\ufeff\ufffd\uffff"),
        ("🙂" * 256, "🙂" * 256),
        ("u" * 1024, "u" * 1024),
        ("é" * 512, "é" * 512),
    ],
)
def test_uids_are_opaque(uid: Uid, expected: str) -> None:
    assert normalize_uid(uid) == expected
    assert locate_shard(uid, DAY).uid == expected


def test_spellings_that_look_alike_are_different_files() -> None:
    assert file_id("é") != file_id("e\u0301")
    assert file_id("7") != file_id("07")


@pytest.mark.parametrize(
    ("uid", "sentence"),
    [
        ("", "0 bytes"),
        ("u" * 1025, "1025 bytes"),
        ("é" * 512 + "x", "1025 bytes"),
        ("🙂" * 257, "1028 bytes"),
        (10**1024, "1025 bytes"),
        pytest.param(10**5000, "more digits", id="5000 digits"),
        ("a\x00b", r"U\+0000 at position 1"),
        ("\n", r"U\+000A at position 0"),
        ("a\r\n", r"U\+000D"),
        ("tab\t", r"U\+0009"),
        ("\x1f", r"U\+001F"),
        ("\ud800", "lone surrogate"),
        ("a\udfff", "lone surrogate"),
        (True, "not bool"),
        (False, "not bool"),
        (None, "not NoneType"),
        (1.5, "not float"),
        (b"a", "not bytes"),
        (["a"], "not list"),
    ],
)
def test_uids_that_are_refused(uid: Uid, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        normalize_uid(uid)
    with pytest.raises(InvalidRequestError, match=sentence):
        locate_shard(uid, DAY)


@PROPERTY
@given(st.text(st.characters(exclude_categories=[]), max_size=300) | st.integers())
def test_any_uid_is_taken_as_it_is_or_refused(uid: Uid) -> None:
    try:
        text = normalize_uid(uid)
    except InvalidRequestError:
        assert isinstance(uid, str)
        bad = any(c < " " or "\ud800" <= c <= "\udfff" for c in uid)
        assert bad or not 1 <= len(uid.encode()) <= 1024
    else:
        assert text == str(uid)


@pytest.mark.parametrize(
    ("created_at", "expected"),
    [
        ("2024-01-31", utc(2024, 1, 31)),
        ("2024-01-31T12:34:56Z", utc(2024, 1, 31, 12, 34, 56)),
        ("2024-01-31t12:34:56z", utc(2024, 1, 31, 12, 34, 56)),
        ("2024-01-31 12:34:56Z", utc(2024, 1, 31, 12, 34, 56)),
        ("2024-01-31T12:34:56.7Z", utc(2024, 1, 31, 12, 34, 56, 700_000)),
        ("2024-01-31T12:34:56.000001Z", utc(2024, 1, 31, 12, 34, 56, 1)),
        ("2024-01-31T23:59:59.999999999Z", utc(2024, 1, 31, 23, 59, 59, 999_999)),
        ("2024-01-31T12:34:56.123456789012+00:00", utc(2024, 1, 31, 12, 34, 56, 123_456)),
        ("2024-01-31T00:30:00+01:00", utc(2024, 1, 30, 23, 30)),
        ("2024-01-31T23:30:00-01:00", utc(2024, 2, 1, 0, 30)),
        ("2024-01-31T12:00:00-00:00", utc(2024, 1, 31, 12)),
        ("2024-01-31T12:00:00+23:59", utc(2024, 1, 30, 12, 1)),
        ("2024-01-31T12:00:00-23:59", utc(2024, 2, 1, 11, 59)),
        ("2024-01-31T12:00:00+05:45", utc(2024, 1, 31, 6, 15)),
        ("2024-02-29T00:00:00Z", utc(2024, 2, 29)),
        ("2023-12-31T23:30:00-01:00", utc(2024, 1, 1, 0, 30)),
        ("2024-01-01T00:30:00+01:00", utc(2023, 12, 31, 23, 30)),
        ("0001-01-01T00:00:00Z", utc(1, 1, 1)),
        ("0001-01-01", utc(1, 1, 1)),
        ("0001-01-01T01:00:00+01:00", utc(1, 1, 1)),
        ("9999-12-31T23:59:59.999999Z", utc(9999, 12, 31, 23, 59, 59, 999_999)),
        ("9999-12-31T22:59:59-01:00", utc(9999, 12, 31, 23, 59, 59)),
        (date(2024, 1, 31), utc(2024, 1, 31)),
        (date(1, 1, 1), utc(1, 1, 1)),
        (utc(2024, 1, 31, 5), utc(2024, 1, 31, 5)),
        (datetime(2024, 1, 31, 1, tzinfo=timezone(timedelta(hours=2))), utc(2024, 1, 30, 23)),
        (datetime(2024, 7, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), utc(2024, 6, 30, 23)),
        # Twice in the night when summer time ends: `fold` says which one.
        (datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=0), utc(2024, 10, 27, 0, 30)),
        (datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1), utc(2024, 10, 27, 1, 30)),
    ],
)
def test_times(created_at: CreatedAt, expected: datetime) -> None:
    instant = parse_created_at(created_at)
    assert instant == expected
    assert instant.tzinfo is UTC
    assert locate_shard("a", created_at).date_dir == f"{expected.year:04}{expected.month:02}{expected.day:02}"


@pytest.mark.parametrize(
    ("created_at", "sentence"),
    [
        # Naive: whatever zone were assumed, somebody's files would be lost.
        ("2024-01-31T12:34:56", "no time zone"),
        ("2024-01-31 12:34:56", "no time zone"),
        ("2024-01-31T12:34:56.5", "no time zone"),
        (datetime(2024, 1, 31), "no time zone"),  # noqa: DTZ001 - that is the point
        # Impossible.
        ("2024-02-30", "not a possible date"),
        ("2023-02-29T00:00:00Z", "not a possible date"),
        ("2024-13-01", "not a possible date"),
        ("2024-00-10", "not a possible date"),
        ("2024-01-00", "not a possible date"),
        ("0000-01-01", "not a possible date"),
        ("0001-01-01T00:00:00+01:00", "not a possible date"),
        ("9999-12-31T23:59:59-01:00", "not a possible date"),
        ("2024-01-31T24:00:00Z", ""),
        ("2024-01-31T12:60:00Z", ""),
        ("2024-01-31T25:00:00Z", ""),
        # A leap second has no place on the POSIX time line that the format keeps.
        ("2016-12-31T23:59:60Z", ""),
        ("2024-01-31T12:00:00+24:00", ""),
        ("2024-01-31T12:00:00+01:60", ""),
        ("2024-01-31T12:00:00-99:99", ""),
        # Not RFC 3339, though several parsers take it.
        ("", "not RFC 3339"),
        (" ", "not RFC 3339"),
        ("now", "not RFC 3339"),
        ("20240131", "not RFC 3339"),
        ("2024-1-31", "not RFC 3339"),
        ("2024-01-31T12Z", "not RFC 3339"),
        ("2024-01-31T12:34Z", "not RFC 3339"),
        ("20240131T123456Z", "not RFC 3339"),
        ("2024-W05-3", "not RFC 3339"),
        ("2024-031", "not RFC 3339"),
        ("2024-01-31T12:34:56,5Z", "not RFC 3339"),
        ("2024-01-31T12:34:56.Z", "not RFC 3339"),
        ("2024-01-31T12:34:56+0100", "not RFC 3339"),
        ("2024-01-31T12:34:56+01", "not RFC 3339"),
        ("2024-01-31T12:34:56 Z", "not RFC 3339"),
        ("2024-01-31T12:34:56Z ", "not RFC 3339"),
        ("2024-01-31T12:34:56Z\n", "not RFC 3339"),
        ("2024-01-31\n", "not RFC 3339"),
        (" 2024-01-31", "not RFC 3339"),
        ("2024-01-31Z", "not RFC 3339"),
        ("2024-01-31T12:34:56UTC", "not RFC 3339"),
        ("2024-01-31T12:34:56\u221201:00", "not RFC 3339"),
        ("\uff12\uff10\uff12\uff14-01-31", "not RFC 3339"),
        ("\u0662\u0660\u0662\u0664-01-31", "not RFC 3339"),
        ("+2024-01-31", "not RFC 3339"),
        ("-2024-01-31", "not RFC 3339"),
        ("12024-01-31", "not RFC 3339"),
        ("2024-01-31_12:34:56Z", "not RFC 3339"),
        ("1706659200", "not RFC 3339"),
        ("\ud800", "not RFC 3339"),
        # Not a time at all.
        (None, "not NoneType"),
        (1706659200, "not int"),
        (1706659200.0, "not float"),
        (True, "not bool"),
        (b"2024-01-31", "not bytes"),
        (timedelta(days=1), "not timedelta"),
    ],
)
def test_times_that_are_refused(created_at: CreatedAt, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence or "created_at"):
        parse_created_at(created_at)
    with pytest.raises(InvalidRequestError, match=sentence or "created_at"):
        locate_shard("a", created_at)


def test_a_long_bad_time_is_not_echoed_whole() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_created_at("9" * 10_000)
    assert len(str(caught.value)) < 200


@PROPERTY
@given(st.datetimes(timezones=ZONES))
def test_date_dir_is_the_day_in_utc(instant: datetime) -> None:
    try:
        in_utc = instant.astimezone(UTC)
    except OverflowError:
        with pytest.raises(InvalidRequestError):
            locate_shard("a", instant)
        return
    day = f"{in_utc.year:04}{in_utc.month:02}{in_utc.day:02}"
    assert date_dir(instant) == day
    assert locate_shard("a", instant).date_dir == day
    # The text of an instant is the same instant, whatever its zone.
    assert parse_created_at(instant.isoformat()) == instant
    assert parse_created_at(in_utc.isoformat().replace("+00:00", "Z")) == instant


@PROPERTY
@given(st.text(alphabet="0123456789-+:.TZtz ", max_size=30) | st.text(max_size=30))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        instant = parse_created_at(text)
    except InvalidRequestError:
        return
    assert text.startswith(("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"))
    assert instant.tzinfo is UTC


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        ("20240131", "20240131"),
        ("2024-01-31", "20240131"),
        ("00010101", "00010101"),
        (date(2024, 1, 31), "20240131"),
        (date(1, 1, 1), "00010101"),
        (datetime(2024, 1, 31, 0, 30, tzinfo=timezone(timedelta(hours=1))), "20240130"),
    ],
)
def test_days(day: date | str, expected: str) -> None:
    assert parse_day(day) == expected


@pytest.mark.parametrize(
    "day",
    [
        *("", "2024", "20240230", "2024-13-01", "00000101", "2024/01/31", "20240131\n", "202401311", "today"),
        *("2024-01-31T00:00:00Z", "\uff12\uff10\uff12\uff140131"),
    ],
)
def test_days_that_are_refused(day: str) -> None:
    with pytest.raises(InvalidRequestError, match="day"):
        parse_day(day)


def test_naive_datetime_is_no_day() -> None:
    with pytest.raises(InvalidRequestError, match="no time zone"):
        parse_day(datetime(2024, 1, 31))  # noqa: DTZ001 - that is the point


def test_keys() -> None:
    assert head_key("20240131", "0A") == "20240131/0A.des"
    assert segment_prefix("20240131", "0A") == "20240131/0A/"
    assert segment_key("20240131", "0A", bytes(range(16))) == "20240131/0A/000102030405060708090a0b0c0d0e0f.des"
    assert [shard_hex(5, n_bits) for n_bits in (3, 4, 5, 8, 9, 12, 13, 16)] == [
        "5", "5", "05", "05", "005", "005", "0005", "0005",
    ]  # fmt: skip
