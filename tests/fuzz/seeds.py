"""The first inputs of each target, made by the format's own writers.

    python -m tests.fuzz.seeds

writes them to `corpus/<target>/seed-<n>`. What is there beside them was found by running: `found-…` once failed, the others reach more of the code.
"""

from __future__ import annotations

import gzip
import struct
from itertools import islice
from typing import TYPE_CHECKING

import lz4.block
import zstandard

from des.routing import file_id, shard_index
from des.shard.chunking import CHUNK_BYTES
from tests.fuzz import shards
from tests.fuzz.parts import DICTIONARY
from tests.fuzz.shards import SHARD
from tests.fuzz.targets import CORPUS, TARGETS
from tests.shard.samples import MIDNIGHT, WORDS, Sample, build_head, build_segment, open_segment, read_tail
from tests.shard.test_damage import BUILT, HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROW = b'{"uid":"a","created_at":"2024-01-31T12:00:00.5+01:00","source_path":"/a","size_bytes":5,"content_type":"a/b; c=d","metadata":{"n":1e3}}'
_OTHER = b'{"uid":18446744073709551616,"created_at":"2024-01-31","source_path":"\\u00e9\\ud83d\\ude00"}'
_CSV = b'\xef\xbb\xbfuid,created_at,source_path,size_bytes,content_type,metadata\na,2024-01-31,/a,5,a/b,"{""n"":[1]}"\n"b\nc",2024-01-31T00:00:00Z,/b,,,\n'
_ZONES = b"""n_bits: 4
zones:
  - name: a
    range: { start: 0, end: 7 }
    s3: { bucket: one, prefix: p/, region_name: us-east-1, endpoint_url: "https://s3.example.com", profile: q }
    copies:
      - { bucket: two }
  - name: b
    range: { start: 8, end: 15 }
    s3: &place { bucket: three }
    write_quorum: majority
write_quorum: all
allow_gaps: false
read_repair: true
hedge: 0.05
place_timeout: 2.0
"""
_ZONES_JSON = b'\t{"n_bits":1,"zones":[{"name":"a","range":{"start":0,"end":0},"s3":{"bucket":"one"}}],"allow_gaps":true,"write_quorum":1}'


def _samples(count: int) -> list[Sample]:
    names = (f"file {n}" for n in range(1 << 10))
    ours = (name for name in names if shard_index(file_id(name), SHARD.n_bits) == SHARD.shard_index)
    return [Sample(name, name.encode(), MIDNIGHT) for name in islice(ours, count)]


def _heads() -> Iterator[bytes]:
    yield shards.base()[1]
    yield build_head([], identity=SHARD)
    yield build_head([build_segment(_samples(3), identity=SHARD)], identity=SHARD)
    yield build_head([build_segment(_samples(70), identity=SHARD)], identity=SHARD)


def _segments() -> Iterator[bytes]:
    yield from shards.base()[2:]
    yield build_segment([], identity=SHARD).data
    yield build_segment(_samples(9), identity=SHARD).data


def _tables() -> Iterator[bytes]:
    for kind, data in ((b"h", HEAD), *((b"s", segment.data) for segment in BUILT)):
        yield kind + bytes(read_tail(data).tables)


def _rows() -> Iterator[bytes]:
    for segment in BUILT:
        for ref in open_segment(segment.data).directory.refs():
            raw = zstandard.decompress(segment.data[ref.offset : ref.end])
            yield b"\0" + raw
            yield b"\1" + raw


def _seek_tables() -> Iterator[bytes]:
    zeros, last = bytes(CHUNK_BYTES), bytes(5)
    chunks = [zstandard.compress(zeros)] * 4 + [last]
    for codec, packed in ((1, chunks), (2, [lz4.block.compress(zeros, store_size=False)] * 4 + [last])):
        data = b"".join(struct.pack("<H", len(one)) + one for one in packed)
        yield struct.pack("<IBB", 4 * CHUNK_BYTES + 5, codec, 0) + data
        yield struct.pack("<IBB", 4 * CHUNK_BYTES + 5, codec | 64, 8) + data


def _frames() -> Iterator[bytes]:
    text = WORDS * 3
    with_dictionary = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(DICTIONARY)).compress(text)
    unsized = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(text)
    stored = (text, zstandard.compress(text), lz4.block.compress(text, store_size=False), with_dictionary)
    for codec, one in enumerate(stored):
        yield bytes([codec]) + len(text).to_bytes(4, "little") + one
    for one in (unsized, zstandard.compress(bytes(1 << 21)), b"\x50\x2a\x4d\x18\x04\0\0\0four" + stored[1]):
        yield b"\1" + b"\xff" * 4 + one


def _descriptors() -> Iterator[bytes]:
    yield shards.base()[0]
    yield (
        b'{"format":"des","version":1,"store_id":"' + b"ab" * 16 + b'","n_bits":[{"from":"00010101","n_bits":4},'
        b'{"from":"20240131","n_bits":8}],"index_range":{"n_bits":4,"start":2,"end":3},"revision":"00"}'
    )
    yield b'{"format":"des","version":2}'


def _zones() -> Iterator[bytes]:
    yield _ZONES
    yield _ZONES_JSON
    yield _ZONES.replace(b"{ bucket: two }", b"*place").replace(b"end: 7", b"end: 9")


def _manifests(plain: bytes) -> Iterator[bytes]:
    yield b"\0" + plain
    yield b"\1" + gzip.compress(plain, mtime=0)
    yield b"\2" + zstandard.compress(plain[:9]) + zstandard.compress(plain[9:])


def seeds() -> dict[str, list[bytes]]:
    """Return the inputs by target."""
    made = {
        "head": _heads(),
        "segment": _segments(),
        "shard": shards.seeds(),
        "tables": _tables(),
        "rows": _rows(),
        "seek_table": _seek_tables(),
        "frame": _frames(),
        "descriptor": _descriptors(),
        "zones": _zones(),
        "json": _manifests(b"[" + _ROW + b",\n" + _OTHER + b"]"),
        "jsonl": _manifests(_ROW + b"\n\n" + _OTHER + b"\nnull\n"),
        "csv": _manifests(_CSV),
    }
    return {name: list(made[name]) for name in TARGETS}


def main() -> None:
    """Write them."""
    for name, made in seeds().items():
        directory = CORPUS / name
        directory.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(made):
            (directory / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
