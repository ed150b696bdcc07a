from __future__ import annotations

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from des.pack import encoding
from des.pack.decisions import Candidate
from des.pack.encoding import (
    Anew,
    Base,
    EncodedRun,
    Existing,
    Large,
    Unusable,
    candidate_for,
    encode_anew,
    encode_batch,
    large_encoder_for,
    record_for,
)
from des.pack.plan import PlannedRow
from des.routing import file_id
from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES, decode_large
from des.shard.codecs import Compression, decode
from des.shard.layout import Codec, Entry, checksum32, decode_entry

if TYPE_CHECKING:
    from pathlib import Path

    from des.pack.encoding import Item

TEXT = b"compressible text " * 100
ZSTD = Compression()


EMPTY = Base(None, 7)


def entry_of(identifier: bytes) -> Entry:
    return Entry(identifier, b"h" * 16, 1, 0, 0, Codec.NONE, 0, 42, 5, 5, 0)


class Rows:
    """Makes sources and rows for them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 0

    def row(
        self, content: bytes, uid: str | None = None, name: str = "source", content_type: str | None = None
    ) -> PlannedRow:
        self.number += 1
        path = self.directory / str(self.number) / name
        path.parent.mkdir()
        path.write_bytes(content)
        uid = uid or f"file-{self.number}"
        return PlannedRow(self.number, file_id(uid), uid, 5_000_000, str(path), None, content_type, b"{}")


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path)


def encoded(row: PlannedRow, compression: Compression = ZSTD) -> EncodedRun:
    (item,), left = encode_batch([row], EMPTY, compression)
    assert not left
    assert isinstance(item, EncodedRun)
    assert item.numbers == [row.number]
    return item


def entries_of(run: EncodedRun) -> list[Entry]:
    """Return the entries of a run's files, each at offset 0."""
    return [decode_entry(draft) for draft in run.drafts]


def entry_in(run: EncodedRun) -> Entry:
    (entry,) = entries_of(run)
    return entry


@pytest.mark.parametrize(
    ("compression", "codec"),
    [(ZSTD, Codec.ZSTD), (Compression("lz4"), Codec.LZ4), (Compression("none"), Codec.NONE)],
)
def test_payload(rows: Rows, compression: Compression, codec: Codec) -> None:
    item = encoded(rows.row(TEXT), compression)
    entry = entry_in(item)
    assert entry.content_hash == hashlib.sha256(TEXT).digest()[:16]
    assert (entry.codec, entry.raw_size, entry.stored_size) == (codec, len(TEXT), len(item.stored))
    assert entry.checksum == checksum32(item.stored)
    assert (item.raw_sizes, item.stored_sizes) == ([len(TEXT)], [len(item.stored)])
    assert decode(codec, item.stored, len(TEXT)) == TEXT


def test_with_a_dictionary(rows: Rows) -> None:
    dictionary = TEXT[:500]
    item = encoded(rows.row(TEXT), Compression("zstd", dictionary=dictionary))
    assert entry_in(item).codec is Codec.ZSTD_DICT
    assert decode(Codec.ZSTD_DICT, item.stored, len(TEXT), dictionary) == TEXT


def test_what_does_not_shrink_is_stored_raw(rows: Rows) -> None:
    noise = os.urandom(5000)
    assert encoded(rows.row(noise)).stored == noise
    assert encoded(rows.row(b"")).stored == b""


@pytest.mark.parametrize(
    ("uid", "name", "content_type", "tried"),
    [
        ("plain", "source", None, True),
        ("picture.PNG", "source", None, False),
        ("plain", "source.jpg", None, False),
        ("plain", "source", "image/webp", False),
        ("plain", "source", "Video/MP4; x=y", False),
        ("plain", "source", "audio/wav", True),
        ("plain", "source.txt", "text/plain", True),
    ],
)
def test_what_is_known_to_be_compressed_is_not_tried(
    rows: Rows, uid: str, name: str, content_type: str | None, tried: bool
) -> None:
    item = encoded(rows.row(TEXT, uid, name, content_type))
    assert entry_in(item).codec is (Codec.ZSTD if tried else Codec.NONE)
    encoder = large_encoder_for(ZSTD, rows.row(TEXT, uid, name, content_type))
    encoder.add(TEXT)
    assert encoder.finish()[1].codec is (Codec.ZSTD if tried else Codec.NONE)


def test_the_run_decides_anew_per_run(rows: Rows) -> None:
    assert entry_in(encoded(rows.row(TEXT), Compression("zstd"))).codec is Codec.ZSTD
    assert entry_in(encoded(rows.row(TEXT), Compression("lz4"))).codec is Codec.LZ4


@pytest.mark.parametrize(
    ("uid", "name", "content_type", "kept"),
    [
        ("page.html", "source.txt", "text/x-own", "text/x-own"),
        ("page.html", "source.txt", None, None),  # the uid says it
        ("page", "source.txt", None, "text/plain"),
        ("page", "source", None, None),
    ],
)
def test_content_type_to_keep(rows: Rows, uid: str, name: str, content_type: str | None, kept: str | None) -> None:
    row = rows.row(b"x", uid, name, content_type)
    assert encoded(row).content_types == [kept]
    assert candidate_for(row, b"h" * 16, 1) == Candidate(b"h" * 16, 1, kept, 5)
    record = record_for(row, 2)
    assert (record.content_type, record.flags, record.created_at) == (kept, 2, 5_000_000)
    assert (record.uid, record.file_id, record.metadata) == (uid, row.file_id, b"{}")


def test_all_kinds_in_order(rows: Rows) -> None:
    small, known, large, gone = (rows.row(content) for content in (TEXT, b"known", bytes(LARGE_BYTES + 1), b""))
    gone = gone._replace(source_path="/nowhere")
    entry = entry_of(known.file_id)
    found = {known.file_id: entry, large.file_id: entry_of(large.file_id), gone.file_id: entry_of(gone.file_id)}
    items, left = encode_batch([gone, large, known, small], Base(found.get, 7), ZSTD)
    assert not left
    assert isinstance(items[0], Unusable)
    assert items[0].row == gone
    assert items[1] == Large(large, LARGE_BYTES + 1)
    assert items[2] == Existing(known, 5, Candidate(hashlib.sha256(b"known").digest()[:16], 5, None, 5), entry)
    assert items[3] == encoded(small)


def numbers_of(items: list[Item]) -> list[int]:
    return [
        number for item in items for number in (item.numbers if isinstance(item, EncodedRun) else [item.row.number])
    ]


def test_a_batch_ends_early_once_it_is_big(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    given = [rows.row(os.urandom(60)) for _ in range(5)]
    items, left = encode_batch(given, EMPTY, ZSTD)
    assert numbers_of(items) == [1, 2]
    assert [row.number for row in left] == [3, 4, 5]
    items, left = encode_batch(left, EMPTY, ZSTD)
    assert [row.number for row in left] == [5]
    items, left = encode_batch(left, EMPTY, ZSTD)
    assert numbers_of(items) == [5]
    assert not left


def test_what_holds_no_bytes_does_not_fill_a_batch(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BATCH_BYTES", 10)
    given = [rows.row(bytes(LARGE_BYTES + 1)), *(rows.row(os.urandom(60)) for _ in range(3))]
    items, left = encode_batch(given, Base(entry_of, 7), ZSTD)
    assert len(items) == 4
    assert not left


def test_runs_are_short_and_split_between_files(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [rows.row(b"%d " % at * at, name="a.txt" if at % 2 else "a.jpg") for at in range(0, 400, 20)]
    (whole,), _ = encode_batch(given, EMPTY, ZSTD)
    assert isinstance(whole, EncodedRun)
    monkeypatch.setattr(encoding, "RUN_BYTES", 3000)
    several, _ = encode_batch(given, EMPTY, ZSTD)
    runs = [item for item in several if isinstance(item, EncodedRun)]
    assert 1 < len(runs) == len(several)
    assert b"".join(run.stored for run in runs) == whole.stored
    assert [draft for run in runs for draft in run.drafts] == whole.drafts
    for count in (1, 7, 19):
        first, others = whole.split(count)
        assert first.stored + others.stored == whole.stored
        assert [*first.drafts, *others.drafts] == whole.drafts
        assert [*first.content_types, *others.content_types] == whole.content_types
        assert [*first.raw_sizes, *others.raw_sizes] == whole.raw_sizes
        assert numbers_of([first, others]) == list(range(1, 21))
        assert len(first.stored) == sum(entry.stored_size for entry in entries_of(first))


class TestAnew:
    def anew(self, row: PlannedRow, content: bytes, flags: int = 0) -> Anew:
        candidate = candidate_for(row, hashlib.sha256(content).digest()[:16], len(content))
        return Anew(Existing(row, len(content), candidate, entry_of(row.file_id)), flags)

    def test_the_same_content(self, rows: Rows) -> None:
        row = rows.row(TEXT)
        assert encode_anew([self.anew(row, TEXT)], 7, ZSTD) == [encoded(row)]
        (replacing,) = encode_anew([self.anew(row, TEXT, 2)], 7, ZSTD)
        assert isinstance(replacing, EncodedRun)
        assert entry_in(replacing) == entry_in(encoded(row))._replace(flags=2)

    @pytest.mark.parametrize("content", [b"other", bytes(LARGE_BYTES + 1)])
    def test_other_content(self, rows: Rows, content: bytes) -> None:
        row = rows.row(content)
        assert encode_anew([self.anew(row, TEXT)], 7, ZSTD) == [Unusable(row, "the source changed while it was read.")]

    def test_gone(self, rows: Rows) -> None:
        row = rows.row(TEXT)._replace(source_path="/nowhere")
        (item,) = encode_anew([self.anew(row, TEXT)], 7, ZSTD)
        assert isinstance(item, Unusable)
        assert "No such file" in item.error

    def test_as_many_as_fit(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "ANEW_BYTES", 100)
        contents = [os.urandom(size) for size in (60, 60, 60, 500, 60)]
        given = [self.anew(rows.row(content), content) for content in contents]
        sizes = []
        while given:
            items = encode_anew(given, 7, ZSTD)
            sizes.append(len(items))
            assert numbers_of(list(items)) == [anew.item.row.number for anew in given[: len(items)]]
            given = given[len(items) :]
        assert sizes == [2, 2, 1]


def test_large_files_are_encoded_beside_each_other(rows: Rows) -> None:
    """Each has a context of its own: two threads in one crash the interpreter or mix up their bytes."""
    chance = random.Random(5)
    words = [chance.randbytes(6) for _ in range(1000)]
    contents = [b"".join(chance.choices(words, k=8 * CHUNK_BYTES // 6)) for _ in range(4)]
    encoders = [large_encoder_for(ZSTD, rows.row(b"")) for _ in contents]

    def encode(number: int) -> None:
        content, encoder = contents[number], encoders[number]
        stored = b"".join(encoder.add(content[at : at + CHUNK_BYTES]) for at in range(0, len(content), CHUNK_BYTES))
        table, payload = encoder.finish()
        sizes = (payload.codec, 0, 0, payload.stored_size, payload.raw_size, 0)
        entry = Entry(bytes(16), payload.content_hash, payload.checksum, 0, 0, *sizes)
        assert decode_large(entry, stored + table) == content

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(encode, range(4)))
