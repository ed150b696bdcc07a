"""What a verification finds, and how it says how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from des.storage.protocol import ObjectInfo


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is wrong.

    Attributes:
        key: the object.
        uid: the file it concerns; None: no single one, or its name is what is damaged.
        sentence: what is wrong.
        place: the address of the place where it is; None where the store has only one.
    """

    key: str
    uid: str | None
    sentence: str
    place: str | None = None


@dataclass(frozen=True, slots=True)
class CondemnedSegment:
    """A segment that its head lists as about to be deleted, and since when (microseconds since 1970)."""

    key: str
    since: int


@dataclass(slots=True)
class VerifyReport:
    """What a verification found, of one shard or of all. Where a store has several places, what each of them holds counts.

    Attributes:
        days: how many were looked at.
        shards: heads and lost heads.
        segments: segments that were read.
        files: live files, as the heads count them.
        payloads: payloads that were read and checked, garbage included.
        bytes_read: from the storage, in all.
        damage: what makes, or may make, a live file unreadable or wrong; see `des.store.verifying`.
        garbage: damaged payloads that no head points at any more.
        orphans: segments that no head lists.
        condemned: segments about to be deleted.
        leftovers: objects that are no part of a shard.
    """

    days: int = 0
    shards: int = 0
    segments: int = 0
    files: int = 0
    payloads: int = 0
    bytes_read: int = 0
    damage: list[Damage] = field(default_factory=list)
    garbage: list[Damage] = field(default_factory=list)
    orphans: list[ObjectInfo] = field(default_factory=list)
    condemned: list[CondemnedSegment] = field(default_factory=list)
    leftovers: list[ObjectInfo] = field(default_factory=list)

    def add(self, other: VerifyReport) -> None:
        """Add another report."""
        self.days += other.days
        self.shards += other.shards
        self.segments += other.segments
        self.files += other.files
        self.payloads += other.payloads
        self.bytes_read += other.bytes_read
        self.damage += other.damage
        self.garbage += other.garbage
        self.orphans += other.orphans
        self.condemned += other.condemned
        self.leftovers += other.leftovers


class Progress:
    """Is told how far a verification is; this one does not care."""

    def found(self, shards: int) -> None:
        """There are this many shards to verify."""

    def read(self, count: int) -> None:
        """So many more bytes were read."""

    def verified(self, report: VerifyReport) -> None:
        """A shard is done."""
