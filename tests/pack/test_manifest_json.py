from __future__ import annotations

import io
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from des.errors import ManifestError
from des.pack import manifest_json
from des.pack.manifest import MAX_ROW_BYTES, READ_BYTES, BadRow, ManifestRow
from tests.pack.manifests import read

if TYPE_CHECKING:
    from pathlib import Path

GOOD: dict[str, Any] = {"uid": "a", "created_at": "2024-01-31T12:00:00Z", "source_path": "/sources/a"}


def write(tmp_path: Path, content: str | bytes, name: str = "manifest.json") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(params=["json", "jsonl"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def of(form: str, *rows: str) -> str:
    """Return rows that are JSON already as a manifest."""
    return "[" + ",\n".join(rows) + "]" if form == "json" else "\n".join(rows)


class TestBoth:
    @pytest.mark.parametrize("text", ["a\\u00fc", "\\ud83d\\ude00", "\\/", "😀", "\\u0041"])
    def test_text_is_what_json_says(self, tmp_path: Path, form: str, text: str) -> None:
        written = json.dumps(GOOD | {"uid": "UID"}).replace("UID", text)
        (row,) = read(write(tmp_path, of(form, written), f"m.{form}"))
        assert isinstance(row, ManifestRow)
        assert row.uid == json.loads(f'"{text}"')

    @pytest.mark.parametrize("field", ["uid", "source_path", "created_at", "metadata"])
    @pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "\\udc00\\ud800", "\\ud83d\\u0041", "\\\\\\ud800"])
    def test_a_lone_surrogate_is_no_text(self, tmp_path: Path, form: str, field: str, escape: str) -> None:
        """It must not become another name, or another value, silently."""
        value: object = {"k": "VALUE"} if field == "metadata" else "VALUE"
        bad = json.dumps(GOOD | {field: value}).replace("VALUE", f"a{escape}")
        first, second = read(write(tmp_path, of(form, bad, json.dumps(GOOD)), f"m.{form}"))
        assert isinstance(first, BadRow)
        assert isinstance(second, ManifestRow)

    @pytest.mark.parametrize("uid", [2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1])
    def test_numbers_of_any_length_are_uids(self, tmp_path: Path, form: str, uid: int) -> None:
        rows = read(write(tmp_path, of(form, json.dumps(GOOD | {"uid": uid}), json.dumps(GOOD)), f"m.{form}"))
        assert [row.uid for row in rows] == [str(uid), "a"]
        assert isinstance(rows[0], ManifestRow)

    @pytest.mark.parametrize("digits", ["1" * 5000, "5.5", "1e400"])
    @pytest.mark.parametrize("field", ["size_bytes", "created_at", "uid", "source_path", "metadata"])
    def test_a_number_that_is_none_fails_its_row_alone(
        self, tmp_path: Path, form: str, field: str, digits: str
    ) -> None:
        bad = json.dumps(GOOD | {field: "VALUE"}).replace('"VALUE"', digits)
        first, second = read(write(tmp_path, of(form, bad, json.dumps(GOOD)), f"m.{form}"))
        assert isinstance(first, BadRow)
        assert isinstance(second, ManifestRow)

    def test_a_byte_order_mark_is_passed_over(self, tmp_path: Path, form: str) -> None:
        assert len(read(write(tmp_path, "\ufeff" + of(form, json.dumps(GOOD)), f"m.{form}"))) == 1

    def test_rows_across_the_pieces_that_are_read(self, tmp_path: Path, form: str) -> None:
        """Whatever is cut in two by the end of a piece, it comes out whole."""
        source = random.Random(3)
        rows = [
            GOOD
            | {"uid": f"{at}-" + 'ü\\"\n😀x'[: source.randrange(7)].replace("\n", ""), "size_bytes": at}
            | {"metadata": {"k": [-1.5e-3, True, None, "\u2028" * source.randrange(50)]}}
            for at in range(3 * READ_BYTES // 200)
        ]
        texts = [json.dumps(row, ensure_ascii=source.random() < 0.5) for row in rows]
        found = read(
            write(tmp_path, of(form, *texts).replace("\n", "\n \r\n" if form == "json" else "\r\n\n"), f"m.{form}")
        )
        assert [(row.uid, row.size_bytes) for row in found if isinstance(row, ManifestRow)] == [
            (row["uid"], row["size_bytes"]) for row in rows
        ]


class TestArray:
    @pytest.mark.parametrize(
        "content", ["[]", " [ ] ", "\n[\n]\n", "\ufeff[]", " " * READ_BYTES + "[]" + " " * READ_BYTES]
    )
    def test_an_empty_array_is_fine(self, tmp_path: Path, content: str) -> None:
        assert read(write(tmp_path, content)) == []

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
            "[1 2]",
            "[1.",
            "[,1]",
            '[{"uid": "a"}',
            '[{"uid": "a"},',
            '[{"uid": "a}]',
            "[] x",
            "[][]",
            "[]]",
            "[1]]",
            "[] // comment",
            "[NaN]",
            "[-Infinity]",
            "['a']",
            '["\t"]',
            b'["\xff"]',
            b'["\xc3',
            b"\x1f\x8b\x08\x00",
            "[" * 1000,
            "[" * 100_000,
            "[" + "1" * (MAX_ROW_BYTES + READ_BYTES),
            '["' + "x" * (MAX_ROW_BYTES + READ_BYTES) + '"]',
        ],
    )
    def test_what_is_no_json_array(self, tmp_path: Path, content: str | bytes) -> None:
        path = write(tmp_path, content)
        with pytest.raises(ManifestError) as caught:
            read(path)
        sentence = str(caught.value)
        assert str(path) in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence

    def test_an_object_a_line_is_hinted_at(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"name it \.jsonl"):
            read(write(tmp_path, json.dumps(GOOD) + "\n" + json.dumps(GOOD)))

    @pytest.mark.parametrize("behind", ["]", "," + json.dumps([GOOD] * 50_000)[1:]])
    def test_garbage_far_behind_good_rows_is_located(self, tmp_path: Path, behind: str) -> None:
        before = json.dumps([GOOD] * 5000)[:-1]
        with pytest.raises(ManifestError, match=f"not valid JSON: Expecting value \\(character {len(before) + 3:,}\\)"):
            read(write(tmp_path, before + ", oops" + behind))


class TestLines:
    def test_a_bad_line_fails_alone(self, tmp_path: Path) -> None:
        bad = [
            "{",
            "[1,2]",
            "5",
            '{"uid": "a"} x',
            "{'a': 1}",
            '{"a": NaN}',
            "\0",
            '{"metadata": {"a": ' + "[" * 5000,
            '"',
        ]
        lines = [json.dumps(GOOD), *bad, json.dumps(GOOD)]
        rows = read(write(tmp_path, "\n".join(lines), "m.jsonl"))
        assert [row.number for row in rows if isinstance(row, BadRow)] == list(range(2, len(bad) + 2))
        assert all("\n" not in row.error and row.error.endswith(".") for row in rows if isinstance(row, BadRow))

    def test_bytes_that_are_no_utf_8_fail_their_line_alone(self, tmp_path: Path) -> None:
        good = json.dumps(GOOD).encode()
        rows = read(write(tmp_path, good + b"\n" + good.replace(b'"a"', b'"\xff"') + b"\n" + good, "m.jsonl"))
        assert [type(row) for row in rows] == [ManifestRow, BadRow, ManifestRow]

    @pytest.mark.parametrize("content", ["", "\n", " \r\n\t\n", "\ufeff"])
    def test_nothing_is_no_row(self, tmp_path: Path, content: str) -> None:
        assert read(write(tmp_path, content, "m.jsonl")) == []

    @pytest.mark.parametrize("length", [MAX_ROW_BYTES + 1, MAX_ROW_BYTES + 3 * READ_BYTES, 3 * MAX_ROW_BYTES])
    @pytest.mark.parametrize("end", ["\n", ""])
    def test_a_line_that_is_too_long_fails_alone(self, tmp_path: Path, length: int, end: str) -> None:
        good = json.dumps(GOOD)
        rows = read(write(tmp_path, f"{good}\n{'x' * length}{end}" + (f"{good}\n{good}" if end else ""), "m.jsonl"))
        assert [type(row) for row in rows] == [ManifestRow, BadRow] + [ManifestRow] * (2 if end else 0)
        assert isinstance(rows[1], BadRow)
        assert "longer than" in rows[1].error

    def test_a_line_of_the_greatest_length(self, tmp_path: Path) -> None:
        line = json.dumps(GOOD | {"more": ""})
        line = line.replace('""', '"' + "x" * (MAX_ROW_BYTES - len(line)) + '"')
        assert len(line) == MAX_ROW_BYTES
        rows = read(write(tmp_path, f"{line}\n{line}\n", "m.jsonl"))
        assert [type(row) for row in rows] == [ManifestRow, ManifestRow]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("read_bytes", [700, 5_000])
def test_an_array_in_pieces_is_what_it_is_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, indent: int | None, read_bytes: int
) -> None:
    """However the text is cut, and whatever looks like the end of a row."""
    odd: list[object] = [
        {"uid": "},{", "source_path": '"}, {"uid": 1}, {'},
        {"uid": 2**70, "size_bytes": 10**30, "created_at": -0.0},
        {"metadata": {"a": [{"b": 2**64}, {"c": {}}], "d": 1.5}, "uid": -(2**63)},
        {"uid": "\ud800", "more": [{}, {}]},
        [{"uid": 1}, {"uid": 2}],
        {},
        None,
        "},",
        5,
    ]
    plain = [{"uid": f"file-{at}", "created_at": GOOD["created_at"], "size_bytes": at} for at in range(40)]
    rows = [row for one in odd for row in [*plain, one, one, *plain[:3]]]
    text = json.dumps(rows, indent=indent).replace('"file-7"', '"first", "uid": "file-7"')
    monkeypatch.setattr(manifest_json, "READ_BYTES", read_bytes)
    pieces = [piece() for piece in manifest_json.json_array(io.BufferedReader(io.BytesIO(text.encode())), "m")]
    assert [repr(value) for values in pieces for value in values] == [repr(value) for value in rows]
    assert len(pieces) > len(text) // read_bytes
