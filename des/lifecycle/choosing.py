"""Which segments a compaction rewrites: pure rules over what a head says of its segments.

A segment is *empty* when no entry points into it, *sparse* when a good part of it is garbage, *small* when it is far below what a segment may
have. Empty and sparse ones are rewritten; small ones when there are several, so that a shard that is packed every hour does not end with a
thousand segments, and is not rewritten every hour either: a segment doubles in size many times before it is no longer small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from des.shard.tables import HeadTables, SegmentRef

# What an entry's catalog row and a segment's frame take, about: they are no garbage.
_ROW_BYTES = 128
_FRAME_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class Rules:
    """When a segment is rewritten.

    Attributes:
        garbage_share: from this share of its bytes on, a segment is sparse.
        small_bytes: below this size, a segment is small.
        small_segments: from this many on, small ones are joined.
    """

    garbage_share: float = 0.3
    small_bytes: int = 64 << 20
    small_segments: int = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """What a compaction would do with a shard.

    Attributes:
        names: of the segments to be rewritten, in the order of the head.
        garbage_bytes: of those, about.
        live_bytes: stored bytes to be moved.
        reason: in words.
        old_tombstones: how many tombstones may be forgotten on the way.
    """

    names: tuple[bytes, ...] = ()
    garbage_bytes: int = 0
    live_bytes: int = 0
    reason: str = "nothing to do"
    old_tombstones: int = 0


def garbage_of(ref: SegmentRef) -> int:
    """Return how many bytes of a segment nobody needs, about: the head does not know how many rows its catalog has."""
    return max(0, ref.size - ref.stored_bytes - ref.entries * _ROW_BYTES - _FRAME_BYTES)


def choose(tables: HeadTables, rules: Rules) -> Choice:
    """Choose the segments of a shard that are worth rewriting."""
    empty = [ref for ref in tables.segments if not ref.entries]
    sparse = [ref for ref in tables.segments if ref.entries and garbage_of(ref) >= rules.garbage_share * ref.size]
    small = [ref for ref in tables.segments if ref.entries and ref.size < rules.small_bytes]
    if len(small) < rules.small_segments:
        small = []
    names = {ref.name for ref in (*empty, *sparse, *small)}
    chosen = [ref for ref in tables.segments if ref.name in names]
    parts = [(empty, "empty"), (sparse, "sparse"), (small, "small")]
    reason = ", ".join(f"{len(refs)} {word}" for refs, word in parts if refs)
    return choice_of(tables, names, f"{reason} of {len(tables.segments)} segments") if chosen else Choice()


def choice_of(tables: HeadTables, names: set[bytes], reason: str) -> Choice:
    """Return the choice of exactly these segments."""
    chosen = [ref for ref in tables.segments if ref.name in names]
    return Choice(
        tuple(ref.name for ref in chosen),
        sum(garbage_of(ref) for ref in chosen),
        sum(ref.stored_bytes for ref in chosen),
        reason,
    )
