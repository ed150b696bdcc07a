"""Mutations that get past the checksums: take a container apart, let one part of it lie, put it together again and sign it."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from des.shard.chunking import is_large, seek_table_bytes
from des.shard.layout import DIRECTORY_ITEM, ENTRY_BYTES, Kind, checksum32, checksum64
from des.shard.reading import PageRef
from tests.shard.forging import Parts, changed, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

_ENTRY_FIELDS = (
    (0, 16), (16, 16), (32, 4), (36, 2), (38, 2), (40, 1), (41, 1), (42, 6), (48, 6), (54, 6), (60, 4),
)  # fmt: skip
_ROW_FIELDS = (*_ENTRY_FIELDS, (64, 8), (72, 8), (80, 2), (82, 2), (84, 4))
_ITEM_FIELDS = ((0, 16), (16, 8), (24, 8), (32, 4), (36, 2), (38, 2))
_HEADER_FIELDS = ((0, 8), (8, 2), (10, 1), (11, 1), (12, 2), (14, 4), (18, 16))
_FOOTER_FIELDS = {"incompat": 4, "ro_compat": 4, "count": 4, "tables_length": 4, "length": 4, "size": 8, "version": 2, "kind": 2}  # fmt: skip
_SIGNS = (-1, 0, 1)
_MOST_RAW = 1 << 20
_ROW_BYTES = 88


@dataclass(frozen=True, slots=True)
class Mutator:
    """Where mutations come from.

    Attributes:
        rng: decides what is changed.
        mutate: changes bytes, to at most so many.
    """

    rng: Random
    mutate: Callable[[bytes, int], bytes]

    def same_size(self, data: bytes) -> bytes:
        """Return other bytes of the same length."""
        new = self.mutate(data, len(data)) if data else data
        return new[: len(data)] + data[len(new) :]

    def number(self, width: int) -> bytes:
        """Return a number that is likely to be at a limit."""
        rng = self.rng
        bits = rng.choice((0, 1, 4, 8, 16, 20, 24, 31, 32, 40, 47, 48, 63, 64))
        value = rng.choice((rng.getrandbits(8 * width), rng.randrange(200), (1 << bits) + rng.choice(_SIGNS)))
        return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")

    def field(self, data: bytes, start: int, fields: tuple[tuple[int, int], ...]) -> bytes:
        """Return bytes with one field changed of a record that begins at `start`."""
        at, width = self.rng.choice(fields)
        old = data[start + at : start + at + width]
        if len(old) < width:
            return data
        choice = self.rng.randrange(4)
        if choice == 0:
            new = self.same_size(old)
        elif choice == 1:
            step = self.rng.randrange(-4, 5)
            new = ((int.from_bytes(old, "little") + step) % (1 << 8 * width)).to_bytes(width, "little")
        else:
            new = self.number(width)
        return changed(data, start + at, new)


def mutated_container(data: bytes, max_size: int, mutator: Mutator) -> bytes:
    """Return a container that lies somewhere, mostly with good checksums."""
    rng = mutator.rng
    try:
        parts = Parts.of(data)
    except Exception:  # noqa: BLE001 - what the reader raises by mistake is to be found by reading, not to end the batch here
        return _resigned(mutator.mutate(data, max_size), rng)
    if rng.random() < 0.1:
        return _resigned(mutator.mutate(data, max_size), rng)
    footer: dict[str, int | bytes] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _lie(parts, mutator, footer, max_size)
    with suppress(struct.error):  # a place that no longer fits its field
        built = parts.build(**footer)
        if len(built) <= max_size:
            return built
    return _resigned(mutator.mutate(data, max_size), rng)


def _resigned(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.5:
        with suppress(struct.error):
            return signed(data)
    return data


def _lie(parts: Parts, mutator: Mutator, footer: dict[str, int | bytes], max_size: int) -> None:
    rng = mutator.rng
    part = rng.choices(("footer", "header", "tables", "directory", "pages", "data"), (1, 1, 3, 2, 6, 3))[0]
    if part == "footer":
        name = rng.choice(tuple(_FOOTER_FIELDS))
        footer[name] = int.from_bytes(mutator.number(_FOOTER_FIELDS[name]), "little")
    elif part == "header":
        unsigned = mutator.field(parts.header, 0, _HEADER_FIELDS)[:34]
        parts.header = unsigned + checksum64(unsigned).to_bytes(8, "little")
    elif part == "tables":
        if rng.random() < 0.5 and parts.tables:
            at = rng.randrange(len(parts.tables))
            new = mutator.number(rng.choice((1, 2, 4, 8)))
            parts.tables = changed(parts.tables, at, new)[: len(parts.tables)]
        else:
            parts.tables = mutator.mutate(parts.tables, len(parts.tables) + 128)
    elif not parts.directory or part == "data":
        end = parts.directory[0].offset if parts.directory else len(parts.body)
        at = min(42, end)
        if rng.random() < 0.5:
            _put(parts, at, end, mutator.same_size(parts.body[at:end]))
        else:
            _put(parts, at, end, mutator.mutate(parts.body[at:end], max(1, max_size - len(parts.body))))
    elif part == "directory":
        _lie_in_directory(parts, mutator)
    else:
        _lie_in_page(parts, mutator)


def _lie_in_directory(parts: Parts, mutator: Mutator) -> None:
    rng = mutator.rng
    index = rng.randrange(len(parts.directory))
    choice = rng.randrange(5)
    if choice == 0:
        parts.directory.insert(rng.randrange(len(parts.directory) + 1), parts.directory[index])
    elif choice == 1:
        del parts.directory[index]
    elif choice == 2:  # as it should be
        ref = parts.directory[index]
        page = parts.body[ref.offset : ref.end]
        parts.directory[index] = ref._replace(checksum=checksum64(page))
    else:
        item = mutator.field(DIRECTORY_ITEM.pack(*parts.directory[index]), 0, _ITEM_FIELDS)
        parts.directory[index] = PageRef(*DIRECTORY_ITEM.unpack(item))


def _lie_in_page(parts: Parts, mutator: Mutator) -> None:
    index = mutator.rng.randrange(len(parts.directory))
    ref = parts.directory[index]
    page = parts.body[ref.offset : ref.end]
    if parts.footer["kind"] == Kind.HEAD:
        raw = _changed_records(page, list(range(0, len(page), ENTRY_BYTES)), _ENTRY_FIELDS, mutator)
        stored, first, items = raw, raw[:16], len(raw) // ENTRY_BYTES
    else:
        try:
            raw = zstandard.decompress(page, max_output_size=_MOST_RAW)
        except zstandard.ZstdError:
            raw = page
        raw = _changed_records(raw, list(row_starts(raw)), _ROW_FIELDS, mutator)
        stored, first, items = zstandard.compress(raw), raw[:16], len(list(row_starts(raw)))
    if mutator.rng.random() < 0.2:
        first, items = ref.first_key, ref.items
    _put(parts, ref.offset, ref.end, stored)
    new = ref._replace(length=len(stored), checksum=checksum64(stored), first_key=first.ljust(16, b"\0"))
    parts.directory[index] = new._replace(items=items & 0xFFFF)


def _changed_records(raw: bytes, starts: list[int], fields: tuple[tuple[int, int], ...], mutator: Mutator) -> bytes:
    rng = mutator.rng
    if not starts or rng.random() < 0.25:
        return mutator.mutate(raw, len(raw) + 512)
    at = rng.choice(starts)
    choice = rng.randrange(8)
    end = starts[starts.index(at) + 1] if at != starts[-1] else len(raw)
    if choice == 0:
        return raw[:at] + raw[end:]
    if choice == 1:
        other = rng.choice(starts)
        return raw[:other] + raw[at:end] + raw[other:]
    if choice == 2 and end - at > _ROW_BYTES:  # uid and metadata
        return raw[: at + _ROW_BYTES] + mutator.same_size(raw[at + _ROW_BYTES : end]) + raw[end:]
    for _ in range(rng.choice((1, 1, 2, 4))):
        raw = mutator.field(raw, at, fields)
    return raw


def row_starts(raw: bytes) -> Iterator[int]:
    """Yield where each row of a chunk begins."""
    at = 0
    while at + _ROW_BYTES <= len(raw):
        yield at
        uid, metadata = struct.unpack_from("<HI", raw, at + 82)
        at += _ROW_BYTES + uid + metadata


def _put(parts: Parts, start: int, end: int, new: bytes) -> None:
    """Put other bytes in the place of some of the body, and move what is behind them."""
    shift = len(new) - (end - start)
    parts.body = parts.body[:start] + new + parts.body[end:]
    if shift:
        parts.directory = [
            ref._replace(offset=ref.offset + shift) if ref.offset >= end and ref.offset + shift >= 0 else ref
            for ref in parts.directory
        ]


def resealed_payload(entry: bytes, segment: bytes) -> tuple[bytes, bytes]:
    """Return an entry and its segment, the checksums of the payload made good; the lengths in a seek table stay as they are."""
    offset, stored_size, raw_size = (int.from_bytes(entry[at : at + 6], "little") for at in (42, 48, 54))
    end = offset + stored_size
    if entry[41] & 1 or end > len(segment):
        return entry, segment
    covered = segment[offset:end]
    if is_large(raw_size):
        start = end - seek_table_bytes(raw_size)
        if start < offset:
            return entry, segment
        position, table = offset, b""
        for (length,) in struct.iter_unpack("<I4x", segment[start:end]):
            chunk = segment[position : min(position + length, start)]
            table += struct.pack("<II", length, checksum32(chunk))
            position += length
        segment = segment[:start] + table + segment[end:]
        covered = table
    return changed(entry, 32, checksum32(covered).to_bytes(4, "little")), segment
