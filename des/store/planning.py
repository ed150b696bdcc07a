"""Planning reads: pure functions from "these ranges are wanted" to "these requests are made"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# A request costs about as much as transferring this many bytes: a gap below it is cheaper to read than to skip.
MAX_GAP_BYTES = 16 << 10
MAX_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Want:
    """A wanted range `[start, end)` of an object, and the caller's number for it."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Read:
    """One request for `[start, end)`, and the wants it serves."""

    start: int
    end: int
    wants: tuple[Want, ...]


def coalesce(wants: Iterable[Want], max_gap: int = MAX_GAP_BYTES, max_read: int = MAX_READ_BYTES) -> list[Read]:
    """Merge neighbouring ranges of one object into fewer requests.

    Args:
        wants: ranges, in any order; they may touch, overlap or repeat.
        max_gap: bytes between two ranges that may be read for nothing.
        max_read: bytes of one request; a single range longer than that is a request of its own.

    Returns:
        Requests in order of their start. Over-reading is at most `max_gap` a merge.
    """
    reads: list[Read] = []
    group: list[Want] = []
    group_end = 0
    for want in sorted(wants, key=lambda w: (w.start, w.end, w.number)):
        end = max(group_end, want.end)
        if group and (want.start > group_end + max_gap or end - group[0].start > max_read):
            reads.append(Read(group[0].start, group_end, tuple(group)))
            group, end = [], want.end
        group.append(want)
        group_end = end
    if group:
        reads.append(Read(group[0].start, group_end, tuple(group)))
    return reads
