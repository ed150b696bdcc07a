"""Deciding what becomes of a file: a pure function of what the head knows and what the manifest brings.

- *Same file*: same content hash, size, content type and created_at in whole seconds. It is there already.
- Metadata alone is no conflict. Anything else under the uid follows `--on-conflict`.
- A tombstone wins, unless the run replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from des.shard.layout import Entry
    from des.shard.tables import HeadTables

OnConflict = Literal["error", "skip", "replace"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What makes two files the same.

    Attributes:
        content_hash: SHA-256[:16] of the content.
        raw_size: bytes.
        content_type: as it would be stored; None where nothing is.
        second: of the UTC day.
    """

    content_hash: bytes
    raw_size: int
    content_type: str | None
    second: int


class Verdict(Enum):
    """What becomes of a file."""

    PACK = "pack"  # nothing is there
    REPLACE = "replace"  # something else is there, and the run replaces it
    SAME = "same"  # it is there already
    KEPT = "kept"  # something else is there and stays, as asked
    CONFLICT = "conflict"  # something else is there, which is an error
    DELETED = "deleted"  # it was deleted and stays so, which is an error


def candidate_of(entry: Entry, tables: HeadTables) -> Candidate:
    """Return what makes an entry's file the same as another."""
    content_type = tables.content_types[entry.content_type - 1] if entry.content_type else None
    return Candidate(entry.content_hash, entry.raw_size, content_type, entry.second)


def decide(candidate: Candidate, entry: Entry | None, tables: HeadTables, on_conflict: OnConflict) -> Verdict:
    """Decide on one file.

    Args:
        candidate: the file to be packed.
        entry: what the head has under its file_id.
        tables: of that head.
        on_conflict: what the run does about conflicts.
    """
    if entry is None:
        return Verdict.PACK
    if not entry.deleted and candidate_of(entry, tables) == candidate:
        return Verdict.SAME
    if on_conflict == "replace":
        return Verdict.REPLACE
    if on_conflict == "skip":
        return Verdict.KEPT
    return Verdict.DELETED if entry.deleted else Verdict.CONFLICT
