"""Small containers that declare or unfold to far more than they are. Run as a program, under a limit of memory that they must not reach.

    python -m tests.shard.bombs

prints the name of each bomb that was refused with a typed error.
"""

from __future__ import annotations

import resource
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.block
import zstandard

from des.errors import CorruptShardError
from des.shard.catalog import decode_chunk
from des.shard.chunking import CHUNK_BYTES, SeekTable, decode_large
from des.shard.codecs import decode, frame_content_size
from des.shard.layout import DIRECTORY_ITEM, MAX_FILE_BYTES, MAX_TAIL_BYTES, Codec, Entry, Kind, checksum32, checksum64
from des.shard.reading import Head, PageRef, Segment, parse_tail
from des.shard.tables import HeadTables, SegmentTables
from des.shard.writing import encode_tail
from tests.shard.samples import IDENTITY, LINEAGE

if TYPE_CHECKING:
    from collections.abc import Callable

HEADROOM = 96 << 20
BOMB = 256 << 20
MIB = 1 << 20


def zstd_bomb(*, sized: bool) -> bytes:
    """One frame of 256 MiB of zeros, about 8 KiB long."""
    compressor = zstandard.ZstdCompressor(write_content_size=sized).compressobj(size=BOMB if sized else -1)
    zeros = bytes(MIB)
    return b"".join([*(compressor.compress(zeros) for _ in range(BOMB // MIB)), compressor.flush()])


def window_bomb() -> bytes:
    """A frame of 300 bytes that asks for a window of 2 GiB (RFC 8878 section 3.1.1.1.2)."""
    window = (31 - 10) << 3
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes([0x40, window])
        + struct.pack("<H", 44)
        + (1 | 300 << 3).to_bytes(3, "little")
        + bytes(300)
    )


def decode_window_bomb() -> None:
    """Small windows are a promise to HTTP clients; reading such a frame must only not cost more than its content."""
    if decode(Codec.ZSTD, window_bomb(), 300) != bytes(300):
        raise AssertionError("wrong bytes")
    raise CorruptShardError("decoded within its content size")


def large_entry(table: bytes, raw_size: int, stored_size: int) -> Entry:
    return Entry(bytes(16), bytes(16), checksum32(table), 0, 0, Codec.ZSTD, 0, 42, stored_size, raw_size, 0)


def chunk_bomb(bomb: bytes) -> None:
    """Chunks that unfold to more than 256 KiB each."""
    table = struct.pack("<II", len(bomb), checksum32(bomb)) * 8
    stored = bomb * 8 + table
    decode_large(large_entry(table, 8 * CHUNK_BYTES, len(stored)), stored)


def catalog(data: bytes) -> None:
    decode_chunk(data, PageRef(bytes(16), checksum64(data), 42, len(data), 0xFFFF, 0), ())


def longest_tail(kind: Kind) -> bytes:
    """A tail of 16 MiB, all directory, in an object that is nothing else."""
    tables = (HeadTables(1, LINEAGE) if kind is Kind.HEAD else SegmentTables(1, 0, 0, 42)).encode()
    count = (MAX_TAIL_BYTES - 42 - 64 - len(tables)) // DIRECTORY_ITEM.size
    items = [DIRECTORY_ITEM.pack(n.to_bytes(16, "big"), 0, 42, 0, 1, 0) for n in range(count)]
    return encode_tail(IDENTITY, kind, tables, items, 42, bytes(16))


def open_longest_head(tail: bytes) -> None:
    Head(parse_tail(tail, len(tail) + 42), IDENTITY).check_structure()


def open_longest_segment(tail: bytes) -> None:
    Segment(parse_tail(tail, len(tail) + 42), IDENTITY)


def bombs() -> dict[str, Callable[[], object]]:
    """Build the bombs; calling one sets it off."""
    sized, unsized = zstd_bomb(sized=True), zstd_bomb(sized=False)
    zeros = lz4.block.compress(bytes(64 * MIB), store_size=False)
    tiny = zstandard.compress(b"tiny")
    huge_skippable = b"\x50\x2a\x4d\x18\xff\xff\xff\xff"
    zero_table = bytes(8 * 8)
    return {
        "zstd payload that declares 256 MiB": partial(decode, Codec.ZSTD, sized, MIB),
        "zstd payload without a size": partial(decode, Codec.ZSTD, unsized, MIB),
        "zstd payload of an index that declares 1 TiB": partial(decode, Codec.ZSTD, tiny, MAX_FILE_BYTES),
        "zstd payload with another payload behind it": partial(decode, Codec.ZSTD, tiny + sized, 4),
        "zstd payload that is to be skipped": partial(decode, Codec.ZSTD, huge_skippable, MIB),
        "zstd window of 2 GiB": decode_window_bomb,
        "zstd with dictionary": partial(decode, Codec.ZSTD_DICT, sized, MIB, b"dictionary"),
        "lz4 payload of 64 MiB": partial(decode, Codec.LZ4, zeros, MIB),
        "raw payload of another size": partial(decode, Codec.NONE, b"", MAX_FILE_BYTES),
        "catalog chunk of 256 MiB": partial(catalog, sized),
        "catalog chunk without a size": partial(catalog, unsized),
        "catalog chunk that is to be skipped": partial(catalog, huge_skippable),
        "catalog chunk of more than a chunk has": partial(catalog, zstandard.compress(bytes(MIB + 1))),
        "chunks of 64 MiB": partial(chunk_bomb, zstandard.compress(bytes(64 * MIB))),
        "seek table of 32 MiB that is not there": partial(
            SeekTable, large_entry(b"", MAX_FILE_BYTES, MAX_FILE_BYTES), b""
        ),
        "large payload of 1 TiB in 64 bytes": partial(
            decode_large, large_entry(zero_table, MAX_FILE_BYTES, 64), zero_table
        ),
        "chunks without bytes": partial(decode_large, large_entry(zero_table, 2 * MIB, 64), zero_table),
        "tables that announce lists": partial(
            HeadTables.decode, HeadTables(1, LINEAGE).encode()[:48] + b"\xd0\x07" * 5
        ),
        "the longest tail of a head": partial(open_longest_head, longest_tail(Kind.HEAD)),
        "the longest tail of a segment": partial(open_longest_segment, longest_tail(Kind.SEGMENT)),
        "frame size of noise": partial(frame_content_size, b"\x28\xb5\x2f\xfd"),
    }


def main() -> None:
    """Set off every bomb with no more memory than there is now, and a little."""
    built = bombs()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + HEADROOM, in_use + HEADROOM))
    for name, bomb in built.items():
        try:
            bomb()
        except CorruptShardError:
            print(name)  # noqa: T201 - this is a program, and its output its result


if __name__ == "__main__":
    main()
