from __future__ import annotations

import os
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from des.errors import ManifestError
from des.pack import manifest_tables
from des.pack.manifest import MAX_ROW_BYTES, BadRow, ManifestRow
from tests.pack.manifests import read

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "uid,created_at,source_path,size_bytes,content_type,metadata"
GOOD = "a,2024-01-31T12:00:00Z,/sources/a,,,"


class TestCSV:
    def read(self, tmp_path: Path, *lines: str | bytes, end: bytes = b"\n") -> list[ManifestRow | BadRow]:
        path = tmp_path / "m.csv"
        path.write_bytes(end.join(line.encode() if isinstance(line, str) else line for line in lines))
        return read(path)

    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_columns_in_any_order_among_others(self, tmp_path: Path, end: bytes) -> None:
        header = "\ufeffmore,metadata, source_path ,created_at,uid,size_bytes"
        line = 'x,"{""a"": ""b\nc"", ""n"": 1}",/sources/a,2024-01-31,7,5'
        (row,) = self.read(tmp_path, header, line.replace("b\nc", "b\\nc"), "", end=end)
        assert isinstance(row, ManifestRow)
        assert row[2:] == ("7", 1_706_659_200_000_000, "/sources/a", 5, None, b'{"a":"b\\nc","n":1}')

    def test_blank_lines_are_nothing_and_quoted_ones_are_text(self, tmp_path: Path) -> None:
        rows = self.read(tmp_path, "", HEADER, "", GOOD, "", '"a b",2024-01-31,"/sources/a,\nb",,,', "")
        assert [(row.number, row.uid, row.source_path) for row in rows] == [
            (1, "a", "/sources/a"),
            (2, "a b", "/sources/a,\nb"),
        ]

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("a,2024-01-31,/sources/a", "3 fields"),
            (GOOD + ",", "7 fields"),
            (",2024-01-31,/sources/a,,,", "uid is missing"),
            ("a,2024-01-31,/sources/a,5.5,,", "size_bytes"),
            ("a,2024-01-31,/sources/a,-1,,", "size_bytes"),
            ("a,2024-01-31,/sources/a,٣,,", "size_bytes"),
            ("a,2024-01-31,/sources/a," + "9" * 5000 + ",,", "size_bytes"),
            ("a,2024-01-31,/sources/a,,text,", "content_type"),
            ("a,2024-01-31,/sources/a,,,{a}", "metadata"),
            ("a,2024-01-31,/sources/a,,,[1]", "metadata"),
            ('a,2024-01-31,/sources/a,,,"{""a"": NaN}"', "metadata"),
            ('a,2024-01-31,/sources/a,,,"{""a"": ""\\ud800""}"', "metadata"),
            ("a\0b,2024-01-31,/sources/a,,,", "control character"),
            ("a,2024-01-31,/sources/a\0,,,", "source_path"),
            (b"\xff,2024-01-31,/sources/a,,,", "surrogate"),
            (b"a,2024-01-31,/sources/\xff,,,", "source_path"),
            ('"a"b,2024-01-31,/sources/a,,,', "not valid CSV: .* \\(line 3\\)"),
            ("x" * 200_000 + ",2024-01-31,/sources/a,,,", "field limit"),
            ("x" * (MAX_ROW_BYTES + 1), "longer than"),
        ],
        ids=range(19),
    )
    def test_a_bad_row_fails_alone(self, tmp_path: Path, line: str | bytes, why: str) -> None:
        first, bad, last = self.read(tmp_path, HEADER, GOOD, line, GOOD)
        assert isinstance(first, ManifestRow)
        assert isinstance(last, ManifestRow)
        assert isinstance(bad, BadRow)
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(bad.error)

    def test_a_quote_that_is_not_closed_says_where_it_began(self, tmp_path: Path) -> None:
        *_, bad = self.read(tmp_path, HEADER, GOOD, '"a,2024-01-31,/sources/a,,,', GOOD, GOOD)
        assert isinstance(bad, BadRow)
        assert "lines 3 to 5" in bad.error

    def test_a_row_of_lines_without_end_is_bounded(self, tmp_path: Path) -> None:
        field = '"' + "x" * 1000 + '\n",'
        good, bad, *_ = self.read(tmp_path, HEADER, GOOD, field * (MAX_ROW_BYTES // 1000), GOOD)
        assert isinstance(good, ManifestRow)
        assert isinstance(bad, BadRow)
        assert "longer than" in bad.error

    @pytest.mark.parametrize("read_bytes", [60, 333, 5_000])
    def test_rows_in_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
        """However the text is cut: quoted lines among plain ones, and errors that count the lines."""
        monkeypatch.setattr(manifest_tables, "READ_BYTES", read_bytes)
        odd = [
            '"x y",2024-01-31,"/a,\n\n""b""",,,',
            "",
            'x"y",2024-01-31,/a,,,',
            '"a"b,2024-01-31,/a,,,',
            "a\rb,,,,,",
            "a",
        ]
        lines = [line for one in odd for line in [GOOD] * 9 + [one] + [GOOD] * 2]
        rows = self.read(tmp_path, HEADER, *lines)
        good = ["a"] * 9 + ["x y"] + ["a"] * 22 + ['x"y"'] + ["a"] * 35
        assert [row.number for row in rows] == list(range(1, len(good) + 4))
        assert [row.uid for row in rows if isinstance(row, ManifestRow)] == good
        errors = [row.error for row in rows if isinstance(row, BadRow)]
        assert [error.rpartition("(")[2] for error in errors if "valid CSV" in error] == ["line 49).", "line 61)."]

    @pytest.mark.parametrize(
        ("header", "why"),
        [
            ("", "is empty; CSV needs a header"),
            ("uid,created_at", "no column source_path"),
            ("a,b", "no column uid and no column created_at and no column source_path"),
            (HEADER + ",uid", "'uid' twice"),
            ('"uid', "no header line"),
            ("x" * (MAX_ROW_BYTES + 1), "no header line"),
            (GOOD, "no column uid"),
        ],
        ids=range(7),
    )
    def test_a_header_that_will_not_do(self, tmp_path: Path, header: str, why: str) -> None:
        with pytest.raises(ManifestError, match=why):
            self.read(tmp_path, header)


class TestParquet:
    def read(
        self, tmp_path: Path, columns: dict[str, Any], row_group_size: int | None = None
    ) -> list[ManifestRow | BadRow]:
        path = tmp_path / "m.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
        return read(path)

    def test_columns_of_their_own_types(self, tmp_path: Path) -> None:
        zone = timezone(timedelta(hours=2))
        columns = {
            "more": [b"x", b"y"],
            "uid": [7, 2**62],
            "created_at": pa.array(
                [datetime(2024, 2, 1, 1, 30, tzinfo=zone), datetime(2024, 1, 1, tzinfo=UTC)],
                pa.timestamp("ns", "+02:00"),
            ),
            "source_path": pa.array(["/sources/a", "/sources/a"]).dictionary_encode(),
            "size_bytes": pa.array([5, None], pa.uint64()),
            "metadata": [{"a": 1, "b": ["x"]}, None],
        }
        first, second = self.read(tmp_path, columns)
        assert isinstance(first, ManifestRow)
        assert first.shard >> 16 == 20240131
        assert first[2:] == ("7", 1_706_743_800_000_000, "/sources/a", 5, None, b'{"a":1,"b":["x"]}')
        assert isinstance(second, ManifestRow)
        assert second[2:] == (str(2**62), 1_704_067_200_000_000, "/sources/a", None, None, b"")

    def test_dates_and_naive_times(self, tmp_path: Path) -> None:
        columns = {"uid": ["a"], "created_at": [date(2024, 1, 31)], "source_path": ["/sources/a"]}
        (row,) = self.read(tmp_path, columns)
        assert isinstance(row, ManifestRow)
        (row,) = self.read(tmp_path, columns | {"created_at": [datetime(2024, 1, 31, 12)]})  # noqa: DTZ001 - the point
        assert isinstance(row, BadRow)
        assert "no time zone" in row.error
        assert row.fields == {"created_at": "2024-01-31T12:00:00"}

    def test_many_row_groups(self, tmp_path: Path) -> None:
        names = [f"file-{at}" for at in range(5000)]
        columns = {"uid": names, "created_at": ["2024-01-31"] * 5000, "source_path": names}
        assert [row.uid for row in self.read(tmp_path, columns, row_group_size=300)] == names

    @pytest.mark.parametrize("missing", ["uid", "created_at", "source_path"])
    def test_a_missing_column(self, tmp_path: Path, missing: str) -> None:
        columns = {name: ["2024-01-31"] for name in ("uid", "created_at", "source_path") if name != missing}
        with pytest.raises(ManifestError, match=f"no column {missing}"):
            self.read(tmp_path, columns)

    @pytest.mark.parametrize("at", [0, 4, 40, 200, -1, -6, -40])
    def test_damage(self, tmp_path: Path, at: int) -> None:
        """Damage is refused, or in bytes that nobody reads."""
        columns = {"uid": ["a"] * 50, "created_at": ["2024-01-31"] * 50, "source_path": ["/sources/a"] * 50}
        path = tmp_path / "m.parquet"
        pq.write_table(pa.table(columns), path, write_page_checksum=True)
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)
        try:
            rows = read(path)
        except ManifestError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right
        else:
            assert [row.uid for row in rows] == ["a"] * 50

    def test_it_breaks_off(self, tmp_path: Path) -> None:
        path = tmp_path / "m.parquet"
        pq.write_table(pa.table({"uid": [os.urandom(9).hex() for _ in range(100)]}), path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ManifestError, match="not valid Parquet"):
            read(path)

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        path = tmp_path / "m.parquet"
        path.write_bytes(b"PAR1")
        with pytest.raises(ManifestError, match=r"pip install 'data-easy-store\[parquet\]'"):
            read(path)
