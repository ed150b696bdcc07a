from __future__ import annotations

import json
import os
import resource
import sys
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from des.errors import ManifestError
from des.pack.inputs import Manifests
from des.pack.manifest import BadRow, ManifestRow
from tests.pack.manifests import FORMATS, PACKINGS, encoded, packed, read

if TYPE_CHECKING:
    from pathlib import Path

CREATED_AT = "2024-01-31T12:00:00Z"
ROWS: list[dict[str, Any]] = [
    {"uid": "a/ü 😀,\"'", "created_at": CREATED_AT, "source_path": "/sources/a b"},
    {
        "uid": "most",
        "created_at": "2024-01-31T13:00:00.5+01:00",
        "source_path": "/sources/most",
        "size_bytes": 5,
        "content_type": "text/plain",
        "metadata": {"b": [1, 2.5, None, 12345678901234567890123], "a": "ü\n"},
    },
    {"uid": "naive", "created_at": "2024-01-31T12:00:00", "source_path": "/sources/naive", "size_bytes": 7},
    {"uid": None, "created_at": "2024-01-31", "source_path": "/sources/no-uid"},
    {"uid": "last", "created_at": "2024-01-31", "source_path": "/sources/last", "size_bytes": 0},
]


def check(rows: list[ManifestRow | BadRow]) -> None:
    """Check that rows are what `ROWS` come to."""
    first, most, naive, no_uid, last = rows
    assert isinstance(first, ManifestRow)
    assert first[2:] == (ROWS[0]["uid"], 1_706_702_400_000_000, "/sources/a b", None, None, b"")
    assert isinstance(most, ManifestRow)
    metadata = '{"a":"ü\\n","b":[1,2.5,null,12345678901234567890123]}'.encode()
    assert most[2:] == ("most", 1_706_702_400_500_000, "/sources/most", 5, "text/plain", metadata)
    assert isinstance(naive, BadRow)
    assert (naive.number, naive.uid, naive.source_path) == (3, "naive", "/sources/naive")
    assert naive.fields == {"created_at": "2024-01-31T12:00:00", "size_bytes": 7}
    assert isinstance(no_uid, BadRow)
    assert no_uid.error == "the field uid is missing."
    assert isinstance(last, ManifestRow)
    assert (last.number, last.uid, last.size_bytes) == (5, "last", 0)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_and_compression(tmp_path: Path, form: str, packing: str) -> None:
    path = tmp_path / f"manifest.{form}{packing}"
    path.write_bytes(packed(encoded(ROWS, form), packing))
    check(read(path))
    nameless = path.rename(tmp_path / "manifest")
    check(read(nameless))
    if form in {"json", "jsonl"}:
        check(
            read(nameless.rename(tmp_path / "manifest.csv"), only_json=True)
            if not packing
            else read(nameless, only_json=True)
        )


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_manifest_that_breaks_off(tmp_path: Path, form: str, packing: str) -> None:
    """Wherever it does, and be it between two members: what is left is never taken for all of it."""
    rows = [ROWS[0] | {"uid": f"file-{at}-{os.urandom(8).hex()}"} for at in range(500)]
    data = packed(encoded(rows, form), packing)
    path = tmp_path / f"manifest.{form}{packing}"
    for length in (1, 15, len(data) // 3, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ManifestError, match=r"manifest\.\w+\.\w+ (cannot be read|is not valid): .*\.$"):
            read(path)


@pytest.mark.parametrize("name", ["manifest.jsonl.gz", "manifest.jsonl.zst", "manifest.parquet"])
def test_what_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS[0]))
    with pytest.raises(ManifestError, match="manifest"):
        read(path)


def test_bytes_that_unpack_to_far_more(tmp_path: Path) -> None:
    """A line of 256 MiB in a few kilobytes costs neither memory nor the rows behind it."""
    line = json.dumps(ROWS[0]).encode() + b"\n"
    bomb = zstandard.ZstdCompressor().compressobj()
    data = (
        bomb.compress(line)
        + b"".join(bomb.compress(b"x" * (1 << 20)) for _ in range(256))
        + bomb.compress(b"\n" + line)
    )
    path = tmp_path / "manifest.jsonl.zst"
    path.write_bytes(data + bomb.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = read(path)
    assert [type(row) for row in rows] == [ManifestRow, BadRow, ManifestRow]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120 << 10


class TestNames:
    def write(self, path: Path, uid: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        form = path.name.split(".")[1]
        path.write_bytes(encoded([ROWS[0] | {"uid": uid}], form))
        return path

    def uids(self, rows: list[ManifestRow | BadRow]) -> list[str | None]:
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
        return [row.uid for row in rows]

    def test_a_directory(self, tmp_path: Path) -> None:
        for at, name in enumerate(["b/2.jsonl", "b/1.csv", "a.parquet", "c/d/e.json"]):
            self.write(tmp_path / name, str(at))
        (tmp_path / "_SUCCESS").touch()
        (tmp_path / "b" / "readme.txt").write_text("no manifest")
        assert self.uids(read(tmp_path)) == ["2", "1", "0", "3"]

    def test_a_directory_without_manifests(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no manifest below"):
            read(tmp_path)

    def test_a_pattern(self, tmp_path: Path) -> None:
        for name in ["2.jsonl", "1.jsonl", "3.csv", "deep/4.jsonl"]:
            self.write(tmp_path / name, name)
        assert self.uids(read(tmp_path / "*.jsonl")) == ["1.jsonl", "2.jsonl"]
        assert self.uids(read(tmp_path / "**" / "*.jsonl")) == ["1.jsonl", "2.jsonl", "deep/4.jsonl"]
        with pytest.raises(ManifestError, match="no manifest matches"):
            read(tmp_path / "*.parquet")

    def test_a_name_that_only_looks_like_a_pattern(self, tmp_path: Path) -> None:
        assert self.uids(read(self.write(tmp_path / "a[1].jsonl", "it"))) == ["it"]

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="No such file"):
            read(tmp_path / "missing.json")

    def test_standard_input_that_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(ManifestError, match="standard input is closed"):
            read(Manifests("-"))
