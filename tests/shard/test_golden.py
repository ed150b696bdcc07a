"""What an old release wrote stays readable, and two readers that share no code agree on it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from des.routing import file_id, locate_shard
from des.shard.layout import ENTRY_BYTES, Codec, Entry, Identity, decode_entry, from_microseconds
from tests import independent_reader
from tests.shard.samples import (
    Answers,
    check_head_fully,
    check_segment_fully,
    lookup,
    open_head,
    open_segment,
    read_everything,
)

GOLDEN = Path(__file__).parents[1] / "golden"
N_BITS = {"v1": {"20240131": 1, "20240201": 12}}
VERSIONS = sorted(N_BITS)


@dataclass(frozen=True)
class GoldenStore:
    """A store, and what it must say of each file, by shard."""

    path: Path
    expected: dict[Identity, list[dict[str, Any]]]

    def head(self, identity: Identity) -> bytes:
        return (self.path / identity.head_key).read_bytes()

    def segments(self, identity: Identity) -> dict[bytes, bytes]:
        paths = (self.path / identity.segment_prefix).glob("*.des")
        return {bytes.fromhex(path.stem): path.read_bytes() for path in paths}

    def read(self, identity: Identity) -> Answers:
        wanted = [file_id(line["uid"]) for line in self.expected[identity]]
        return read_everything(self.head(identity), self.segments(identity), wanted, identity)


def load(version: str) -> GoldenStore:
    store_id = bytes.fromhex(json.loads((GOLDEN / version / "des.json").read_text())["store_id"])
    expected: dict[Identity, list[dict[str, Any]]] = {}
    for text in (GOLDEN / f"{version}_expected.ndjson").read_text().splitlines():
        line = json.loads(text)
        n_bits = N_BITS[version][locate_shard(line["uid"], line["created_at"]).date_dir]
        location = locate_shard(line["uid"], line["created_at"], n_bits)
        expected.setdefault(Identity.of(location, store_id, n_bits), []).append(line)
    return GoldenStore(GOLDEN / version, expected)


@pytest.fixture(params=sorted(N_BITS))
def golden(request: pytest.FixtureRequest) -> GoldenStore:
    return load(request.param)


def test_every_file_comes_back(golden: GoldenStore) -> None:
    for identity, lines in golden.expected.items():
        contents = golden.read(identity).contents
        assert len(contents) == len(lines)
        for line in lines:
            content = contents[file_id(line["uid"])]
            assert (None if content is None else len(content)) == line["size"]
            assert content is None or hashlib.sha256(content).hexdigest() == line["sha256"]


def test_every_catalog_row_of_a_live_file(golden: GoldenStore) -> None:
    for identity, lines in golden.expected.items():
        data, rows = golden.head(identity), golden.read(identity).rows
        head = open_head(data, identity)
        for line in lines:
            entry = lookup(head, data, file_id(line["uid"]))
            assert entry is not None
            assert entry.deleted == (line["size"] is None)
            if not entry.deleted:
                row = rows[head.tables.segments[entry.segment].name, entry.file_id]
                assert row.uid == line["uid"]
                assert from_microseconds(row.created_at).isoformat() == line["created_at"]
                assert row.content_type == line.get("content_type")
                assert row.metadata_object() == line.get("metadata", {})


def test_no_byte_is_uncovered_and_nothing_is_left_over(golden: GoldenStore) -> None:
    objects = {"des.json"}
    for identity in golden.expected:
        check_head_fully(golden.head(identity), identity)
        names = {ref.name for ref in open_head(golden.head(identity), identity).tables.segments}
        assert names == set(golden.segments(identity))
        objects |= {identity.head_key, *map(identity.segment_key, names)}
        for data in golden.segments(identity).values():
            check_segment_fully(data, identity)
    assert objects == {str(path.relative_to(golden.path)) for path in golden.path.rglob("*") if path.is_file()}


def test_golden_v1_holds_everything_v1_knows() -> None:
    store = load("v1")
    entries: list[Entry] = []
    for identity in store.expected:
        pages = check_head_fully(store.head(identity), identity)
        entries += [decode_entry(pages, at) for at in range(0, len(pages), ENTRY_BYTES)]
    heads = [open_head(store.head(identity), identity) for identity in store.expected]
    segments = [open_segment(data, i) for i in store.expected for data in store.segments(i).values()]
    assert {entry.codec for entry in entries} == set(Codec)
    assert {entry.flags for entry in entries} == {0, 1, 2}
    assert {entry.codec for entry in entries if entry.raw_size > 1 << 20} == {Codec.ZSTD, Codec.LZ4}
    assert {0, 1, 1 << 20} <= {entry.raw_size for entry in entries}
    assert max(head.directory.count for head in heads) > 1
    assert max(segment.directory.count for segment in segments) > 1
    assert max(head.tables.generation for head in heads) == 4
    assert any(head.tables.condemned for head in heads)
    assert any(segment.tables.superseded for segment in segments)
    assert any(segment.tables.dictionary for segment in segments)
    assert any(segment.tables.tombstones for segment in segments)
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*.*") if path.suffix in {".des", ".ndjson"}) < 200_000


def test_the_independent_reader_reads_every_file(golden: GoldenStore) -> None:
    for line in chain(*golden.expected.values()):
        created_at = datetime.fromisoformat(line["created_at"])
        if line["size"] is None:
            with pytest.raises(KeyError):
                independent_reader.read_file(golden.path, line["uid"], created_at)
        else:
            content = independent_reader.read_file(golden.path, line["uid"], created_at)
            assert hashlib.sha256(content).hexdigest() == line["sha256"]


def test_the_independent_reader_lists_every_day(golden: GoldenStore) -> None:
    live = [line for line in chain(*golden.expected.values()) if line["size"] is not None]
    for day in {identity.date for identity in golden.expected}:
        listed = independent_reader.list_day(golden.path, day)
        said = {
            uid: (from_microseconds(created_at).isoformat(), content_type or None, json.loads(metadata or b"{}"))
            for uid, (created_at, content_type, metadata) in listed.items()
        }
        assert said == {
            line["uid"]: (line["created_at"], line.get("content_type"), line.get("metadata", {}))
            for line in live
            if locate_shard(line["uid"], line["created_at"]).date_dir == day
        }


def test_the_independent_reader_says_what_is_not_there(golden: GoldenStore) -> None:
    with pytest.raises(KeyError):
        independent_reader.read_file(golden.path, "no such file", datetime.fromisoformat("2024-01-31T00:00:00Z"))
    with pytest.raises(FileNotFoundError):
        independent_reader.read_file(golden.path, "no such day", datetime.fromisoformat("1999-01-31T00:00:00Z"))
    assert independent_reader.list_day(golden.path, "19990131") == {}


def test_the_independent_reader_notices_damage(tmp_path: Path, golden: GoldenStore) -> None:
    identity, lines = next(iter(golden.expected.items()))
    line = lines[0]
    shutil.copytree(golden.path, tmp_path, dirs_exist_ok=True)
    created_at = datetime.fromisoformat(line["created_at"])
    assert len(independent_reader.read_file(tmp_path, line["uid"], created_at)) == line["size"]
    head = tmp_path / identity.head_key
    intact = head.read_bytes()
    for position in (0, 50, len(intact) // 2, len(intact) - 100, len(intact) - 1):
        head.write_bytes(intact[:position] + bytes([intact[position] ^ 1]) + intact[position + 1 :])
        with pytest.raises(ValueError, match=r"bad|damaged"):
            independent_reader.read_file(tmp_path, line["uid"], created_at)


def test_the_independent_reader_is_short_and_independent() -> None:
    source = Path(independent_reader.__file__).read_text()
    assert len(source.splitlines()) <= 120
    program = "import sys; import tests.independent_reader; print([m for m in sys.modules if m.split('.')[0] == 'des'])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_golden_files_are_never_rewritten() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.golden.make_v1"], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "never rewritten" in run.stderr
