from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from des.errors import ManifestError
from des.pack.manifest import BadRow, ManifestRow, check_row, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

GOOD: dict[str, Any] = {"uid": "a", "created_at": "2024-01-31T12:00:00Z", "source_path": "/sources/a"}


def checked(**fields: object) -> ManifestRow:
    row = check_row(7, GOOD | fields)
    assert isinstance(row, ManifestRow), row
    return row


def refused(**fields: object) -> str:
    value = {name: value for name, value in (GOOD | fields).items() if value is not ...}
    row = check_row(7, value)
    assert isinstance(row, BadRow)
    assert row.number == 7
    assert row.error.endswith(".")
    assert "\n" not in row.error
    return row.error


class TestRows:
    def test_the_least(self) -> None:
        instant = datetime(2024, 1, 31, 12, tzinfo=UTC)
        assert checked() == ManifestRow(7, "a", instant, "/sources/a", None, None, b"")

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
        assert checked(created_at=text).created_at == instant

    def test_time_in_microseconds(self) -> None:
        row = checked(created_at="1969-12-31T23:59:59.999999Z")
        assert row.created_at_microseconds == -1

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

    @pytest.mark.parametrize("value", ["", "a\0b", 5, ["a"], {}, True])
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
        row = check_row(3, value)
        assert isinstance(row, BadRow)
        assert (row.number, row.uid, row.source_path) == (3, None, None)

    def test_a_bad_row_says_which_it_is(self) -> None:
        row = check_row(7, GOOD | {"uid": 5, "created_at": "x"})
        assert isinstance(row, BadRow)
        assert (row.number, row.uid, row.source_path) == (7, "5", "/sources/a")
        row = check_row(7, {"uid": ["a"], "source_path": 5})
        assert isinstance(row, BadRow)
        assert (row.uid, row.source_path) == (None, None)

    def test_numbers_of_more_digits_than_python_writes(self) -> None:
        assert "uid" in refused(uid=10**5000)
        assert "size_bytes" in refused(size_bytes=10**5000)
        assert "metadata" in refused(metadata={"a": 10**5000})


class TestFiles:
    def write(self, tmp_path: Path, content: str | bytes) -> Path:
        path = tmp_path / "manifest.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def test_rows_are_numbered_on(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, json.dumps([GOOD, 5, GOOD | {"uid": "b"}]))
        first, bad, second = read_manifest(path, 11)
        assert isinstance(first, ManifestRow)
        assert isinstance(second, ManifestRow)
        assert isinstance(bad, BadRow)
        assert (first.number, bad.number, second.number) == (11, 12, 13)

    @pytest.mark.parametrize("content", ["[]", " [ ] ", "\n[\n]\n"])
    def test_an_empty_array_is_fine(self, tmp_path: Path, content: str) -> None:
        assert list(read_manifest(self.write(tmp_path, content))) == []

    @pytest.mark.parametrize("text", ["a\\u00fc", "\\ud83d\\ude00", "\\/", "😀", "\\u0041"])
    def test_text_is_what_json_says(self, tmp_path: Path, text: str) -> None:
        content = json.dumps([GOOD | {"uid": "UID"}]).replace("UID", text)
        (row,) = read_manifest(self.write(tmp_path, content))
        assert isinstance(row, ManifestRow)
        assert row.uid == json.loads(f'"{text}"')

    @pytest.mark.parametrize("uid", [2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1])
    def test_numbers_of_any_length_are_uids(self, tmp_path: Path, uid: int) -> None:
        rows = list(read_manifest(self.write(tmp_path, json.dumps([GOOD | {"uid": uid}, GOOD]))))
        assert [row.uid for row in rows] == [str(uid), "a"]
        assert isinstance(rows[0], ManifestRow)

    @pytest.mark.xfail(reason="the streaming parser's C library writes a question mark for an escaped lone surrogate")
    def test_a_lone_surrogate_is_no_uid(self, tmp_path: Path) -> None:
        (row,) = read_manifest(self.write(tmp_path, json.dumps([GOOD | {"uid": "a\ud800"}])))
        assert isinstance(row, BadRow), "it must not become another uid silently"

    @pytest.mark.parametrize("field", ["size_bytes", "created_at", "uid", "source_path"])
    def test_a_number_with_a_fraction_fails_its_row_alone(self, tmp_path: Path, field: str) -> None:
        bad, good = read_manifest(self.write(tmp_path, json.dumps([GOOD | {field: 5.5}, GOOD])))
        assert isinstance(bad, BadRow)
        assert isinstance(good, ManifestRow)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            " \n",
            "{}",
            '{"rows": []}',
            "5",
            '"text"',
            "null",
            "[",
            "[1,]",
            "[1",
            '[{"uid": "a"}',
            '[{"uid": "a"},',
            "[] x",
            "[][]",
            "[]]",
            "[] // comment",
            "[NaN]",
            "['a']",
            "\ufeff[]",
            b'["\xff"]',
            b"\x1f\x8b\x08\x00",
            "[" * 1000,
        ],
    )
    def test_what_is_no_json_array(self, tmp_path: Path, content: str | bytes) -> None:
        path = self.write(tmp_path, content)
        with pytest.raises(ManifestError) as caught:
            list(read_manifest(path))
        sentence = str(caught.value)
        assert str(path) in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence

    def test_garbage_far_behind_good_rows(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, json.dumps([GOOD] * 5000)[:-1] + ", oops]")
        rows = read_manifest(path)
        assert isinstance(next(rows), ManifestRow)
        with pytest.raises(ManifestError, match="not valid JSON"):
            list(rows)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="No such file"):
            list(read_manifest(tmp_path / "missing.json"))

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="directory"):
            list(read_manifest(tmp_path))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "[]")
        path.chmod(0)
        with pytest.raises(ManifestError, match="Permission denied"):
            list(read_manifest(path))
