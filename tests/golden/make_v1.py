"""Wrote `v1/`, a small store with everything that format v1 knows, and `v1_expected.ndjson`, what it must give back.

Run once, when v1 was made, and never again: golden files prove that what an old release wrote stays readable, so they are
not rewritten. The script is kept to show what is in them. `python -m tests.golden.make_v1` refuses where `v1/` exists.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import zstandard

from des.routing import file_id, locate_shard
from des.shard.catalog import encode_metadata
from des.shard.chunking import CHUNK_BYTES, LargeEncoder, is_large
from des.shard.codecs import Compression, Encoder
from des.shard.layout import Flag, Identity, from_microseconds, to_microseconds
from des.shard.merging import Addition, merge
from des.shard.tables import Condemned, HeadTables
from des.shard.writing import FileRecord, SegmentWriter, content_hash, encode_head
from tests.payloads import encode_payload

HERE = Path(__file__).parent
STORE_ID = hashlib.sha256(b"golden store of format v1").digest()[:16]
N_BITS = {"20240131": 1, "20240201": 12}
COMMITTED = to_microseconds(datetime.fromisoformat("2024-02-03T04:05:06.789+00:00"))
GONE = hashlib.sha256(b"a segment that was compacted away").digest()[:16]
TEXT = b"All happy families are alike; each unhappy family is unhappy in its own way. "
NOISE = hashlib.shake_256(b"noise").digest(400)

ZSTD, ZSTD_19, LZ4, LZ4_HC, NONE = (
    Compression("zstd"),
    Compression("zstd", 19),
    Compression("lz4"),
    Compression("lz4", 9),
    Compression("none"),
)


@dataclass(frozen=True)
class File:
    """A file: its content is `unit`, repeated and cut to `size`."""

    uid: str
    created_at: str
    unit: bytes
    size: int
    compression: Compression = ZSTD
    content_type: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    flags: int = 0

    @property
    def raw(self) -> bytes:
        return (self.unit * (self.size // len(self.unit) + 1))[: self.size]


def trained_dictionary() -> bytes:
    samples: list[bytes | bytearray | memoryview] = [
        b'{"sensor": "s-%03d", "unit": "celsius", "value": %d.%d, "ok": true}' % (n % 17, n % 40, n % 10)
        for n in range(3000)
    ]
    return zstandard.train_dictionary(1024, samples).as_bytes()


def many() -> list[File]:
    """Enough files in one shard for two pages and several catalog chunks."""
    day = "2024-01-31T00:00:00Z"
    uids = [uid for uid in (f"many/{n:04}.txt" for n in range(2000)) if not locate_shard(uid, day, 1).shard_index]
    return [File(uid, f"2024-01-31T06:{n // 60:02}:{n % 60:02}Z", uid.encode(), 20) for n, uid in enumerate(uids[:555])]


def commits() -> list[list[File]]:
    """The files of each run of the packer, in order. A file of size -1 is a deletion."""
    trained, raw_content = Compression("zstd", dictionary=trained_dictionary()), Compression("zstd", dictionary=TEXT * 3)
    reading = b'{"sensor": "s-003", "unit": "celsius", "value": 21.5, "ok": true}'
    first = [
        File("plain text", "2024-01-31T00:00:00Z", TEXT, 3000, content_type="text/plain"),
        File("a/b//../c", "2024-01-31T23:59:59.999999Z", TEXT, 1500, ZSTD_19, "text/markdown"),
        File("ünïcode/日本語/🙂", "2024-01-31T12:00:00+02:00", TEXT, 5000, LZ4, metadata={"größe": [1, 2.5, None]}),
        File("lz4 high compression", "2024-01-31T01:02:03.5Z", TEXT, 5000, LZ4_HC),
        File("noise", "2024-01-31T02:00:00Z", NOISE, 400, content_type="application/octet-stream"),
        File("stored raw", "2024-01-31T02:00:01Z", TEXT, 700, NONE),
        File("empty", "2024-01-31T03:00:00Z", b"-", 0, content_type="text/plain"),
        File("one byte", "2024-01-31T03:00:01Z", b"x", 1),
        File("1048576", "2024-01-31T04:00:00Z", TEXT, 1 << 20),
        File("u" * 1023 + "b", "2024-01-31T05:00:00Z", TEXT, 100, metadata={"long": "m" * 8181}),
        File("replaced", "2024-01-31T08:00:00Z", b"the old content ", 160),
        File("replaced twice", "2024-01-31T08:00:00Z", b"one ", 40),
        File("deleted", "2024-01-31T09:00:00Z", b"to be deleted ", 140),
        File("deleted and back", "2024-01-31T09:00:00Z", b"to be deleted ", 140),
        *many(),
    ]
    second = [
        File("sensor/1.json", "2024-01-31T10:00:00Z", reading, 65, trained, "application/json"),
        File("sensor/2.json", "2024-01-31T10:00:01Z", reading, 130, trained, "application/json"),
        File("prose/1", "2024-02-01T10:00:01Z", TEXT, 200, raw_content),
        File("replaced", "2024-01-31T08:30:00Z", b"the new content ", 80, content_type="text/plain", flags=Flag.REPLACED),
        File("replaced twice", "2024-01-31T08:00:00Z", b"two ", 40, flags=Flag.REPLACED),
        File("large zstd", "2024-01-31T11:00:00Z", TEXT, (1 << 20) + 1, ZSTD, "text/plain", {"chunks": 5}),
        File("large lz4", "2024-01-31T11:00:01Z", b"0123456789abcdef", 5 << 18, LZ4),
        File("deleted", "2024-01-31T20:00:00Z", b"to be deleted ", -1),
        File("deleted and back", "2024-01-31T20:00:00Z", b"to be deleted ", -1),
    ]
    third = [
        File("replaced twice", "2024-01-31T08:00:00Z", b"three ", 60, LZ4, flags=Flag.REPLACED),
        File("deleted and back", "2024-01-31T09:00:00Z", b"back again ", 110, flags=Flag.REPLACED),
        File("the next day", "2024-01-31T23:30:00-01:00", TEXT, 77 * 4, content_type="text/plain"),
    ]
    return [first, second, third]


def build_segment(identity: Identity, generation: int, files: list[File]) -> tuple[bytes, Addition]:
    """Pack the files of one shard and run. Its name follows from its place, so that the store is the same wherever it is made."""
    dictionary = next((file.compression.dictionary for file in files if file.compression.dictionary), None)
    superseded = [GONE] if identity.date == "20240201" else []
    writer = SegmentWriter(identity, generation, dictionary, superseded)
    pieces = [writer.opening]
    for file in files:
        instant = to_microseconds(datetime.fromisoformat(file.created_at))
        if file.size < 0:
            writer.add_tombstone(file_id(file.uid), content_hash((file.unit * 10)[:140]), instant)
            continue
        metadata = encode_metadata(file.metadata)
        record = FileRecord(file_id(file.uid), file.uid, instant, file.content_type, metadata, file.flags)
        encoder = Encoder(file.compression)
        stored, payload = encode_payload(encoder, file.raw)
        pieces.append(stored)
        writer.add(record, payload)
    rest, built = writer.finish()
    name = hashlib.sha256(f"{identity.head_key} {generation}".encode()).digest()[:16]
    return b"".join([*pieces, *rest]), Addition(name, built)


def main() -> None:
    """Write the store."""
    target = HERE / "v1"
    if target.exists():
        sys.exit(f"{target} exists, and golden files are never rewritten.")
    heads: dict[Identity, tuple[HeadTables, bytes]] = {}
    expected: dict[tuple[str, str], File] = {}
    for run in commits():
        shards = defaultdict(list)
        for file in run:
            day = locate_shard(file.uid, file.created_at).date_dir
            location = locate_shard(file.uid, file.created_at, N_BITS[day])
            shards[Identity.of(location, STORE_ID, N_BITS[day])].append(file)
            expected[file.uid, day] = file
        for identity, files in shards.items():
            lineage = hashlib.sha256(f"lineage of {identity.head_key}".encode()).digest()[:16]
            tables, entries = heads.get(identity, (HeadTables(1, lineage), b""))
            data, addition = build_segment(identity, tables.generation, files)
            path = target / identity.segment_key(addition.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            tables, entries = merge(tables, entries, [addition], COMMITTED)
            heads[identity] = (tables.committed(hashlib.sha256(addition.name).digest()[:16]), entries)
    for identity, (tables, entries) in heads.items():
        if identity.date == "20240201":
            tables = replace(tables, condemned=(Condemned(GONE, COMMITTED),))
        (target / identity.head_key).write_bytes(encode_head(identity, tables, entries))
    descriptor = {
        "format": "des",
        "version": 1,
        "store_id": STORE_ID.hex(),
        "n_bits": [{"from": "00010101", "n_bits": 1}, {"from": "20240201", "n_bits": 12}],
        "index_range": {"n_bits": 1, "start": 0, "end": 1},
    }
    (target / "des.json").write_text(json.dumps(descriptor, indent=1) + "\n")
    with (HERE / "v1_expected.ndjson").open("w") as out:
        for file in expected.values():
            print(json.dumps(line_of(file), ensure_ascii=False), file=out)


def line_of(file: File) -> dict[str, object]:
    """Return what the store must say of a file; a size of null means deleted."""
    created_at = from_microseconds(to_microseconds(datetime.fromisoformat(file.created_at))).isoformat()
    if file.size < 0:
        return {"uid": file.uid, "created_at": created_at, "size": None}
    line: dict[str, object] = {"uid": file.uid, "created_at": created_at, "size": file.size}
    line["sha256"] = hashlib.sha256(file.raw).hexdigest()
    if file.content_type:
        line["content_type"] = file.content_type
    return line | ({"metadata": file.metadata} if file.metadata else {})


if __name__ == "__main__":
    main()
