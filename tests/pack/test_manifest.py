from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from des.errors import SettingsError
from des.pack.manifest import BadRow, ManifestRow, RowChecker
from des.pack.partition import Partition
from des.routing import locate_shard
from des.shard.layout import to_microseconds
from des.storage.descriptor import Descriptor, Epoch, IndexRange

CREATED_AT = "2024-01-31T12:00:00Z"
GOOD: dict[str, Any] = {"uid": "a", "created_at": CREATED_AT, "source_path": "/sources/a"}


def check(value: object, number: int = 7) -> ManifestRow | BadRow:
    rows = RowChecker(Descriptor.new(8)).check_all(number, [value])
    assert len(rows.good) + len(rows.bad) == 1
    return rows.good[0] if rows.good else rows.bad[0]


def checked(**fields: object) -> ManifestRow:
    row = check(GOOD | fields)
    assert isinstance(row, ManifestRow), row
    return row


def refused(**fields: object) -> str:
    value = {name: value for name, value in (GOOD | fields).items() if value is not ...}
    row = check(value)
    assert isinstance(row, BadRow)
    assert row.number == 7
    assert row.error.endswith(".")
    assert "\n" not in row.error
    return row.error


class TestRows:
    def test_the_least(self) -> None:
        instant = to_microseconds(datetime(2024, 1, 31, 12, tzinfo=UTC))
        place = locate_shard("a", CREATED_AT)
        shard = int(place.date_dir) << 16 | place.shard_index
        assert checked() == ManifestRow(7, shard, "a", instant, "/sources/a", None, None, b"")

    def test_the_most(self) -> None:
        row = checked(
            size_bytes=0, content_type="text/plain; charset=utf-8", metadata={"b": [1, 2.5], "a": "ü"}, more=1
        )
        assert (row.size_bytes, row.content_type) == (0, "text/plain; charset=utf-8")
        assert row.metadata == '{"a":"ü","b":[1,2.5]}'.encode()

    def test_null_means_that_it_is_not_given(self) -> None:
        assert checked(size_bytes=None, content_type=None, metadata=None) == checked()
        assert checked(metadata={}) == checked()

    @pytest.mark.parametrize("uid", [0, -5, 42, 2**80])
    def test_a_number_as_uid_means_its_digits(self, uid: int) -> None:
        assert checked(uid=uid).uid == str(uid)

    @pytest.mark.parametrize("uid", ["0", "-x", "/a//b/../c/", " ", "a b%+?#", "😀", "x" * 1024, "\x7f", "\u2028"])
    def test_any_text_is_a_uid(self, uid: str) -> None:
        assert checked(uid=uid).uid == uid

    @pytest.mark.parametrize(
        ("uid", "why"),
        [
            ("", "0 bytes"),
            ("x" * 1025, "1025 bytes"),
            ("ü" * 513, "1026 bytes"),
            ("a\0b", r"control character U\+0000"),
            ("a\nb", r"control character U\+000A"),
            ("\x1f", r"control character U\+001F"),
            ("\ud800", "surrogate"),
            (True, "not bool"),
            (1.0, "not float"),
            (["a"], "not list"),
            ({"a": 1}, "not dict"),
        ],
    )
    def test_what_is_no_uid(self, uid: object, why: str) -> None:
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(refused(uid=uid))

    @pytest.mark.parametrize("name", ["uid", "created_at", "source_path"])
    @pytest.mark.parametrize("value", [None, ...])
    def test_a_missing_field_is_named(self, name: str, value: object) -> None:
        assert refused(**{name: value}) == f"the field {name} is missing."

    @pytest.mark.parametrize(
        ("text", "instant"),
        [
            ("2024-01-31", datetime(2024, 1, 31, tzinfo=UTC)),
            ("2024-02-29T23:59:59.1234567-00:30", datetime(2024, 3, 1, 0, 29, 59, 123456, tzinfo=UTC)),
            ("0001-01-01T00:00:00z", datetime(1, 1, 1, tzinfo=UTC)),
        ],
    )
    def test_times(self, text: str, instant: datetime) -> None:
        assert checked(created_at=text).created_at == to_microseconds(instant)

    def test_time_in_microseconds(self) -> None:
        row = checked(created_at="1969-12-31T23:59:59.999999Z")
        assert row.created_at == -1

    @pytest.mark.parametrize(
        "value",
        [
            "2024-01-31T12:00:00",
            "2023-02-29",
            "2024-01-31T24:00:00Z",
            "2024-01-31T12:00:60Z",
            "2024-01-31T12:00:00+24:00",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-00:01",
            "yesterday",
            "",
            "20240131",
            1706702400,
            1706702400.5,
            True,
            ["2024-01-31"],
        ],
    )
    def test_naive_or_impossible_times(self, value: object) -> None:
        assert "created_at" in refused(created_at=value)

    @pytest.mark.parametrize("value", ["", "a\0b", "a\ud800", 5, ["a"], {}, True])
    def test_what_is_no_source_path(self, value: object) -> None:
        assert "source_path" in refused(source_path=value)

    @pytest.mark.parametrize("value", [-1, 5.0, 5.5, True, False, "5", [5], 2**63])
    def test_what_is_no_size(self, value: object) -> None:
        assert "size_bytes" in refused(size_bytes=value)

    @pytest.mark.parametrize("value", ["text/plain", "image/svg+xml", 'multipart/x; b="a b"', "x-y/z ; a=1"])
    def test_content_types(self, value: str) -> None:
        assert checked(content_type=value).content_type == value

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "text",
            "text/",
            "/plain",
            "text/plain\n",
            "text/plain;\r\nx",
            "text/plain\n;x",
            "text/plain\u2028;x",
            "tëxt/plain",
            "a/" + "b" * 255,
            5,
            True,
            {},
        ],
    )
    def test_what_is_no_content_type(self, value: object) -> None:
        assert "content_type" in refused(content_type=value)

    @pytest.mark.parametrize(
        "value",
        [[], [1], "text", 5, True, {"a": float("nan")}, {"a": float("inf")}, {"a": "x" * 8192}, {"a": "\ud800"}],
    )
    def test_what_is_no_metadata(self, value: object) -> None:
        assert "metadata" in refused(metadata=value)

    def test_metadata_up_to_its_limit(self) -> None:
        assert len(checked(metadata={"a": "x" * 8184}).metadata) == 8192
        assert "8,193 bytes" in refused(metadata={"a": "x" * 8185})

    @pytest.mark.parametrize("value", [None, 5, "text", ["a"], True])
    def test_what_is_no_object(self, value: object) -> None:
        row = check(value, 3)
        assert isinstance(row, BadRow)
        assert (row.number, row.uid, row.source_path) == (3, None, None)

    def test_a_bad_row_says_which_it_is(self) -> None:
        row = check(GOOD | {"uid": 5, "created_at": "x"})
        assert isinstance(row, BadRow)
        assert (row.number, row.uid, row.source_path) == (7, "5", "/sources/a")
        row = check({"uid": ["a"], "source_path": 5})
        assert isinstance(row, BadRow)
        assert (row.uid, row.source_path) == (None, None)

    def test_numbers_of_more_digits_than_python_writes(self) -> None:
        assert "uid" in refused(uid=10**5000)
        assert "size_bytes" in refused(size_bytes=10**5000)
        assert "metadata" in refused(metadata={"a": 10**5000})

    def test_a_bad_row_gives_back_what_it_takes_to_pack_it_again(self) -> None:
        fields = {"created_at": "yesterday", "size_bytes": 5, "content_type": "text/plain", "metadata": {"a": 1}}
        row = check(GOOD | fields | {"more": 1})
        assert isinstance(row, BadRow)
        assert row.fields == fields
        row = check(GOOD | {"created_at": date(2024, 1, 31), "size_bytes": -1, "metadata": {"a": float("nan")}})
        assert isinstance(row, BadRow)
        assert row.fields == {"created_at": "2024-01-31", "size_bytes": -1}

    def test_the_ends_of_the_calendar_are_no_shortcut(self) -> None:
        """Dates and times of day are remembered apart: together they may lead out of the calendar."""
        values = [
            GOOD | {"created_at": time}
            for time in ["0001-01-01", "2024-01-31T00:00:00+01:00", "0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00Z"]
        ]
        rows = RowChecker(Descriptor.new(8)).check_all(1, values)
        assert [row.number for row in rows.good] == [1, 2, 4]
        assert [row.number for row in rows.bad] == [3]
        assert rows.good[1].created_at == to_microseconds(datetime(2024, 1, 30, 23, tzinfo=UTC))


class TestRouting:
    def test_n_bits_by_date(self) -> None:
        whole = IndexRange(8, 0, 255)
        grown = Descriptor(b"s" * 16, (Epoch("00010101", 1), Epoch("20240201", 12)), whole)
        values = [GOOD | {"uid": uid, "created_at": day} for uid in "abc" for day in ("2024-01-31", "2024-02-01")]
        rows = RowChecker(grown).check_all(1, values).good
        for row, value in zip(rows, values, strict=True):
            place = locate_shard(value["uid"], value["created_at"], 12 if value["created_at"] >= "2024-02" else 1)
            assert row.shard == int(place.date_dir) << 16 | place.shard_index

    def test_a_row_of_another_zone_is_refused(self) -> None:
        index = locate_shard("a", CREATED_AT, 1).shard_index
        zones = [Descriptor(b"s" * 16, (Epoch("00010101", 8),), IndexRange(1, at, at)) for at in (index, 1 - index)]
        assert len(RowChecker(zones[0]).check_all(1, [GOOD]).good) == 1
        with pytest.raises(SettingsError, match="zone"):
            RowChecker(zones[1]).check_all(1, [GOOD])

    def test_partitions_share_the_rows(self) -> None:
        """Each row that has a shard, good or bad, is in exactly one of them, and they are about equally large."""
        values: list[object] = [
            GOOD | {"uid": f"file-{at}", "created_at": f"2024-01-{at % 30 + 1:02}"} for at in range(6000)
        ]
        values[::100] = [GOOD | {"uid": f"bad-{at}", "size_bytes": -1} for at in range(60)]
        values[1::100] = [None] * 60
        shares = [RowChecker(Descriptor.new(2), Partition(at, 3)).check_all(1, values) for at in range(3)]
        numbers = [row.number for share in shares for row in share.good]
        numbers += [row.number for share in shares for row in share.bad if row.is_routed]
        unrouted = [[row.number for row in share.bad if not row.is_routed] for share in shares]
        assert unrouted == [list(range(2, 6001, 100))] * 3  # whose number is whose, the intake says
        assert sorted(numbers + unrouted[0]) == list(range(1, 6001))
        assert all(1800 < len(share.good) < 2200 for share in shares)
        assert all(60 < len(share.bad) < 100 for share in shares)
        of_shard: dict[int, set[int]] = {}
        for at, share in enumerate(shares):
            for row in share.good:
                of_shard.setdefault(row.shard, set()).add(at)
        assert {len(owners) for owners in of_shard.values()} == {1}
