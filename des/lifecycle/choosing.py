"""Which segments a compaction rewrites: pure rules over what a head says of its segments.

A segment is *empty* when no entry points into it, *sparse* when a good part of it is garbage, *small* when it has few bytes and few files. Empty and
sparse ones are rewritten; small ones when there are several that can be joined, so that a shard that is packed every hour does not end with a
thousand segments, and is not rewritten every hour either.

A second run right after the first finds nothing: what was just rewritten has no garbage, and is one segment, or is not small, or cannot be joined with the
others because each has a dictionary of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from des.shard.layout import HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from des.shard.tables import HeadTables, SegmentRef


@dataclass(frozen=True, slots=True)
class Rules:
    """When a segment is rewritten.

    Attributes:
        garbage_share: from this share of its bytes on, a segment is sparse.
        small_bytes: below this size, and
        small_files: below this many files, a segment is small.
        small_segments: from this many on, small ones are joined.
    """

    garbage_share: float = 0.3
    small_bytes: int = 64 << 20
    small_files: int = 10_000
    small_segments: int = 4


@dataclass(frozen=True, slots=True)
class Choice:
    """What a compaction would do with a shard.

    Attributes:
        names: of the segments to be rewritten, in the order of the head.
        garbage_bytes: stored bytes in those that nobody needs, as far as they were counted.
        live_bytes: stored bytes to be moved.
        reason: in words.
        old_tombstones: how many tombstones may be forgotten on the way.
    """

    names: tuple[bytes, ...] = ()
    garbage_bytes: int = 0
    live_bytes: int = 0
    reason: str = "nothing to do"
    old_tombstones: int = 0


def maybe_sparse(tables: HeadTables, rules: Rules) -> list[SegmentRef]:
    """Return the segments that may be sparse: the head does not know how much of a segment its catalog takes."""
    return [ref for ref in tables.segments if ref.entries and _most_garbage(ref) >= rules.garbage_share * ref.size]


def choose(tables: HeadTables, rules: Rules, data_ends: Mapping[bytes, int]) -> Choice:
    """Choose the segments of a shard that are worth rewriting.

    Args:
        tables: of its head.
        rules: see there.
        data_ends: where the data of the segments ends that may be sparse, by their names.
    """
    garbage = {
        ref.name: max(0, data_ends[ref.name] - HEADER.size - _dictionary_bytes(ref) - ref.stored_bytes)
        for ref in tables.segments
        if ref.name in data_ends
    }
    empty = [ref for ref in tables.segments if not ref.entries]
    sparse = [ref for ref in tables.segments if garbage.get(ref.name, 0) >= rules.garbage_share * ref.size]
    small = _joinable([ref for ref in tables.segments if ref.entries and _is_small(ref, rules)], rules.small_segments)
    names = {ref.name for ref in (*empty, *sparse, *small)}
    if not names:
        return Choice()
    chosen = [ref for ref in tables.segments if ref.name in names]
    parts = [(empty, "empty"), (sparse, "sparse"), (small, "small")]
    reason = ", ".join(f"{len(refs)} {word}" for refs, word in parts if refs)
    return Choice(
        tuple(ref.name for ref in chosen),
        sum(garbage.get(ref.name, 0 if ref.entries else ref.size) for ref in chosen),
        sum(ref.stored_bytes for ref in chosen),
        f"{reason} of {len(tables.segments)} segments",
    )


def parted(refs: Sequence[SegmentRef]) -> list[list[SegmentRef]]:
    """Part segments into those that can be joined as they are: a segment has one dictionary; those without go with the only one there is."""
    by_dictionary: dict[bytes, list[SegmentRef]] = {}
    for ref in refs:
        by_dictionary.setdefault(ref.dictionary.content_hash if ref.dictionary else b"", []).append(ref)
    if len(by_dictionary) == 2 and b"" in by_dictionary:  # noqa: PLR2004 - none, and the only one
        return [list(refs)]
    return list(by_dictionary.values())


def _joinable(small: Sequence[SegmentRef], least: int) -> list[SegmentRef]:
    return [ref for group in parted(small) if len(group) >= least for ref in group]


def _is_small(ref: SegmentRef, rules: Rules) -> bool:
    return ref.size < rules.small_bytes and ref.entries < rules.small_files


def _most_garbage(ref: SegmentRef) -> int:
    return ref.size - ref.stored_bytes - _dictionary_bytes(ref)


def _dictionary_bytes(ref: SegmentRef) -> int:
    return ref.dictionary.length if ref.dictionary else 0
