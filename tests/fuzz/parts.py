"""The targets that look at one part of the format: bytes in, and only the errors that the part documents may come out.

Where a part lies behind a checksum or a compression, the input is what is behind it: the target seals it itself, so that every input gets through.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from datetime import UTC, datetime
from io import BufferedReader, BytesIO
from pathlib import Path

import zstandard

from des.errors import CorruptShardError, ManifestError, SettingsError, ShardFullError
from des.pack.manifest import RowChecker
from des.pack.manifest_json import json_array, json_lines
from des.pack.manifest_streams import reading, unpacked
from des.pack.manifest_tables import csv_rows
from des.routing import file_id
from des.settings import Settings
from des.shard.catalog import decode_chunk
from des.shard.chunking import CHUNK_BYTES, SeekTable, decode_large, is_large, seek_table_bytes
from des.shard.codecs import decode, decompress_frame, frame_content_size
from des.shard.layout import ROW, Codec, Entry, checksum32, checksum64, from_microseconds, second_of_day
from des.shard.reading import PageRef, check_sizes
from des.shard.tables import HeadTables, SegmentTables
from des.storage.descriptor import Descriptor
from des.storage.zones_config import load_zones

_CODECS = tuple(Codec)
_TYPES = ("text/plain", "a/b")
DICTIONARY = b"the quick brown fox jumps over the lazy dog and looks back at it; " * 4
_MOST_RAW = 1 << 21
_MANIFESTS = {"json": json_array, "jsonl": json_lines, "csv": csv_rows}
_PACKED = (None, "gz", "zst")
_DESCRIPTOR = Descriptor.new(4)


class WrongAnswerError(Exception):
    """What was read contradicts itself, or what is known to be right."""


def check(good: bool, what: str) -> None:
    """Fail the input where something does not hold."""
    if not good:
        raise WrongAnswerError(what)


def read_tables(data: bytes) -> None:
    """Read the tables of a head or a segment; what was read and written again must read the same."""
    kind: type[HeadTables | SegmentTables] = HeadTables if data[:1] == b"h" else SegmentTables
    try:
        tables = kind.decode(data[1:])
    except CorruptShardError:
        return
    try:
        again = kind.decode(tables.encode())
    except ShardFullError:
        return
    check(again == tables, "tables that were written again read differently")


def read_rows(data: bytes) -> None:
    """Read the rows of a catalog chunk: the input is what its frame holds. A first byte that is odd: keys are made to fit the uids."""
    rows = _split(data[1:])
    if data[:1] and data[0] & 1:
        rows = sorted(_keyed(row) for row in rows)
    raw = b"".join(rows)
    stored = zstandard.compress(raw)
    ref = PageRef(raw[:16].ljust(16, b"\0"), checksum64(stored), 42, len(stored), len(rows) & 0xFFFF, 0)
    try:
        found = decode_chunk(stored, ref, _TYPES)
    except CorruptShardError:
        return
    for row in found:
        check(not row.uid or file_id(row.uid) == row.entry.file_id, "a uid of another file")
        with contextlib.suppress(CorruptShardError):
            from_microseconds(row.created_at)
        with contextlib.suppress(CorruptShardError):
            check(isinstance(row.metadata_object(), dict), "metadata that is no object")
        with contextlib.suppress(CorruptShardError):
            check_sizes(row.entry)


def _split(raw: bytes) -> list[bytes]:
    rows = []
    while raw:
        end = len(raw)
        if end >= ROW.size:
            uid, metadata = struct.unpack_from("<HI", raw, 82)
            end = ROW.size + uid + metadata
        rows.append(raw[:end])
        raw = raw[end:]
    return rows


def _keyed(row: bytes) -> bytes:
    if len(row) < ROW.size:
        return row
    created_at, length = struct.unpack_from("<q2xH", row, 72)
    uid = row[ROW.size : ROW.size + length]
    second = second_of_day(created_at).to_bytes(4, "little")
    with contextlib.suppress(UnicodeDecodeError):
        return file_id(uid.decode()) + row[16:60] + second + row[64:]
    return row


def read_seek_table(data: bytes) -> None:
    """Read a large payload: raw size (4 bytes), codec (1), how much of the stored size to leave out (1), then chunks, each behind its length (2)."""
    if len(data) < 6:
        return
    raw_size, codec, missing = struct.unpack_from("<IBB", data)
    raw_size %= 1 << 24
    chunks, table, position = [], b"", 6
    while position + 2 <= len(data):
        (length,) = struct.unpack_from("<H", data, position)
        chunk = data[position + 2 : position + 2 + length]
        said = length if codec & 128 else len(chunk)
        table += struct.pack("<II", said, checksum32(chunk))
        chunks.append(chunk)
        position += 2 + length
    table = table[: seek_table_bytes(raw_size)] if codec & 64 else table
    stored = b"".join(chunks) + table
    size = max(0, len(stored) - missing)
    entry = Entry(bytes(16), bytes(16), checksum32(table), 0, 0, _CODECS[codec % 4], 0, 42, size, raw_size, 0)
    try:
        check_sizes(entry)
        whole = decode_large(entry, stored[:size])
        seek_table = SeekTable(entry, table)
    except CorruptShardError:
        return
    check(len(whole) == raw_size, "a content of another size")
    if not is_large(raw_size):
        return
    for start, end in ((0, 1), (raw_size - 1, raw_size), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (0, raw_size)):
        span = seek_table.span(start, end)
        position, raw = span.start, b""
        for index in range(span.first, span.last):
            length = seek_table.stored_length(index)
            raw += seek_table.decode_chunk(index, stored[position : position + length])
            position += length
        check(position == span.end, "chunks that do not fill their span")
        skipped = start - span.first * CHUNK_BYTES
        check(raw[skipped : skipped + end - start] == whole[start:end], "a range of other bytes than the whole")


def read_frame(data: bytes) -> None:
    """Decode a payload: codec (1 byte), raw size (4), then the stored bytes. A raw size of all ones: what the frame says itself."""
    if len(data) < 5:
        return
    codec, raw_size, stored = _CODECS[data[0] % 4], int.from_bytes(data[1:5], "little"), data[5:]
    with contextlib.suppress(CorruptShardError):
        said = frame_content_size(stored)
        raw_size = said if raw_size == 0xFFFF_FFFF and 0 <= said <= _MOST_RAW else raw_size
    dictionary = DICTIONARY if codec is Codec.ZSTD_DICT else None
    # A payload is small or a chunk: no caller decodes more at once.
    raw_size %= _MOST_RAW
    with contextlib.suppress(CorruptShardError):
        check(len(decode(codec, stored, raw_size, dictionary)) == raw_size, "a content of another size")
    with contextlib.suppress(CorruptShardError):
        check(len(decompress_frame(stored, raw_size)) == raw_size, "a frame of another size")


def read_descriptor(data: bytes) -> None:
    """Read a descriptor."""
    try:
        descriptor = Descriptor.decode(data)
    except SettingsError:
        return
    check(Descriptor.decode(descriptor.encode()) == descriptor, "a descriptor that was written again reads differently")
    for day in ("00010101", "20240131", "99991231"):
        n_bits = descriptor.n_bits_on(day)
        check(1 <= n_bits <= 16, "an impossible n_bits")
        descriptor.index_range.owns(0, n_bits)
    with contextlib.suppress(SettingsError):
        descriptor.check_n_bits(8)


def read_zones(data: bytes) -> None:
    """Read a zones file: one that begins with a tab is named as JSON."""
    with tempfile.TemporaryDirectory(prefix="des-fuzz-", dir=_memory()) as directory:
        path = Path(directory, "zones.json" if data[:1] == b"\t" else "zones.yaml")
        path.write_bytes(data)
        with contextlib.suppress(SettingsError):
            config = load_zones(path)
            check(bool(config.zones), "no zones")
            for zone in config.zones:
                check(0 <= zone.start <= zone.end < 1 << config.n_bits, "a zone outside the store")
                check(1 <= zone.quorum <= len(zone.places), "a quorum that cannot be reached")
            config.check_apart(Settings())


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def read_manifest(form: str, data: bytes) -> None:
    """Read a manifest and check its rows; the first byte says whether it is packed, and how."""
    packing = _PACKED[data[0] % 3] if data else None
    checker = RowChecker(_DESCRIPTOR)
    count = 0
    with contextlib.suppress(ManifestError), reading("fuzz"):
        stream = unpacked(BufferedReader(BytesIO(data[1:])), packing, sniff=False)  # type: ignore[arg-type]  # one of the packings
        for piece in _MANIFESTS[form](stream, "fuzz"):
            values = piece()
            rows = checker.check_all(count + 1, values)
            check(len(rows.good) + len(rows.bad) == len(values), "rows got lost")
            count += len(values)
            for row in rows.good:
                check(0 < len(row.uid.encode()) <= 1024, "an impossible uid")
                check(datetime.min.replace(tzinfo=UTC) <= from_microseconds(row.created_at), "an impossible time")
                row.source_path.encode()
            for bad in rows.bad:
                check(bool(bad.error) and "\n" not in bad.error, "an error that is no sentence on a line")
