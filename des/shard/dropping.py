"""Taking something out of a head: entries, and segments that no entry points into. Pure, as `merging` is."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from des.shard.layout import ENTRY_BYTES, KEY, Buffer, decode_entry
from des.shard.tables import Condemned, HeadTables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# Where an entry has its two numbers.
_SEGMENT_AT = 36
_CONTENT_TYPE_AT = 38


def drop_entries(tables: HeadTables, entries: Buffer, file_ids: Iterable[bytes]) -> tuple[HeadTables, bytes]:
    """Take the entries of some files out of a head.

    Args:
        tables: of the head as it is.
        entries: all its encoded entries, sorted.
        file_ids: whose entries go; what has none is passed over.

    Returns:
        The new tables, of the same generation, and the entries that are left.
    """
    view = memoryview(entries)
    starts = range(0, len(view), ENTRY_BYTES)
    segments = list(tables.segments)
    files, deleted = tables.files, tables.deleted
    raw_bytes, stored_bytes = tables.raw_bytes, tables.stored_bytes
    kept: list[Buffer] = []
    position = 0
    for file_id in sorted(set(file_ids)):
        at = bisect_left(starts, (file_id,), key=partial(KEY.unpack_from, view))
        if at == len(starts) or view[starts[at] : starts[at] + KEY.size] != file_id:
            continue
        entry = decode_entry(view, starts[at])
        ref = segments[entry.segment]
        segments[entry.segment] = replace(
            ref, entries=ref.entries - 1, stored_bytes=ref.stored_bytes - entry.stored_size
        )
        if entry.deleted:
            deleted -= 1
        else:
            files -= 1
            raw_bytes -= entry.raw_size
            stored_bytes -= entry.stored_size
        kept.append(view[position : starts[at]])
        position = starts[at] + ENTRY_BYTES
    kept.append(view[position:])
    changed = replace(
        tables,
        segments=tuple(segments),
        files=files,
        deleted=deleted,
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
    )
    return changed, b"".join(kept)


def drop_segments(
    tables: HeadTables, entries: Buffer, names: Collection[bytes], since: int
) -> tuple[HeadTables, bytes]:
    """Take those of some segments out of a head that no entry points into, and condemn them; unused content types go too.

    Args:
        tables: of the head as it is.
        entries: all its encoded entries, sorted.
        names: the segments that may go.
        since: when they are condemned, microseconds since 1970.

    Returns:
        The new tables, of the same generation, and the entries with their numbers put right.
    """
    going = [ref.name for ref in tables.segments if ref.name in names and not ref.entries]
    staying = [number for number, ref in enumerate(tables.segments) if ref.name not in going]
    renumbered = bytearray(entries)
    if len(staying) < len(tables.segments):
        _renumber(renumbered, _SEGMENT_AT, {old: new for new, old in enumerate(staying)})
    used = sorted(set(_numbers(renumbered, _CONTENT_TYPE_AT)) - {0})
    if len(used) < len(tables.content_types):
        _renumber(renumbered, _CONTENT_TYPE_AT, {0: 0} | {old: new for new, old in enumerate(used, start=1)})
    changed = replace(
        tables,
        segments=tuple(tables.segments[number] for number in staying),
        content_types=tuple(tables.content_types[number - 1] for number in used),
        condemned=(*tables.condemned, *(Condemned(name, since) for name in going)),
    )
    return changed, bytes(renumbered)


def _numbers(entries: bytearray, at: int) -> array[int]:
    """Return the two-byte numbers that stand at one place of every entry."""
    interleaved = bytearray(len(entries) // ENTRY_BYTES * 2)
    interleaved[0::2] = entries[at::ENTRY_BYTES]
    interleaved[1::2] = entries[at + 1 :: ENTRY_BYTES]
    numbers = array("H", bytes(interleaved))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _renumber(entries: bytearray, at: int, mapping: dict[int, int]) -> None:
    numbers = array("H", (mapping[number] for number in _numbers(entries, at)))
    if sys.byteorder == "big":
        numbers.byteswap()
    encoded = numbers.tobytes()
    entries[at::ENTRY_BYTES] = encoded[0::2]
    entries[at + 1 :: ENTRY_BYTES] = encoded[1::2]
