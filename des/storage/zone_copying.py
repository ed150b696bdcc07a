"""Bringing one copy of one shard up to the primary's head: what `settle` does at every commit, and `des zones sync` for all that was missed.

Rules:

1. Segments first, then the head: a head at a copy names nothing that the copy lacks.
2. A head at a copy is put only in place of what was read there, and only if that raises the generation, or takes the place of damage. A new lineage does so,
   too: `des repair` begins it above all that is known, and where a shard is begun anew no place has a head any more.
3. A copy that is ahead of the primary, or has other content at the same generation, means that the primary has lost commits, or a whole shard. Nothing is
   written then.
4. What the copy's own head names, and what it has in the right size, counts as there. What is copied is verified at the copy, content hashes included,
   before it counts.
5. Anything may change meanwhile: primary, copy, and segments that are gone. Then it begins anew, a bounded number of times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from des.errors import (
    CorruptShardError,
    LostHeadError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
    UnsupportedFormatError,
)
from des.shard.reading import parse_tail
from des.shard.tables import HeadTables
from des.storage.protocol import IfAbsent, IfVersion
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Collection

    from des.shard.layout import Identity
    from des.storage.place import Place
    from des.storage.protocol import PutMode, Storage
    from des.storage.zone import Zone
    from des.storage.zone_heads import Look

MAX_HEAD_BYTES = 512 << 20
_ATTEMPTS = 8
_SEGMENTS_AT_ONCE = 4


class Verifier(Protocol):
    """Verifies whole objects; handed in, because what it takes stands above the storage."""

    def check_head(self, key: str, data: bytes) -> None:
        """Verify all of a head. Blocks: for a worker thread.

        Raises:
            CorruptShardError: it is damaged, or not the head that belongs there.
        """

    async def check_segment(self, storage: Storage, key: str) -> None:
        """Read all of a segment and verify it, content hashes included.

        Raises:
            ObjectNotFoundError: it is not there.
            CorruptShardError: it is damaged, or not the segment that belongs there.
            StorageError: the storage is unwell.
        """


@dataclass(frozen=True, slots=True)
class BroughtUp:
    """What it took to bring a copy up: segments and bytes of segments copied, and whether the head was put."""

    segments: int = 0
    segment_bytes: int = 0
    head: bool = False


@dataclass(frozen=True, slots=True)
class PrimaryHead:
    """All of a verified head as the primary has it."""

    identity: Identity
    tables: HeadTables
    version: str
    data: bytes

    @property
    def sizes(self) -> dict[bytes, int | None]:
        """Names of the objects it needs, with their sizes where it says them."""
        return {ref.name: ref.size for ref in self.tables.segments} | dict.fromkeys(self.tables.page_objects)


class Primary:
    """A shard's head at the primary, read once for all copies that are brought up to it."""

    def __init__(self, zone: Zone, key: str, verifier: Verifier) -> None:
        """Read nothing yet."""
        self.zone = zone
        self.key = key
        self.verifier = verifier
        self._look: Look | None = None
        self._whole: PrimaryHead | None = None
        self._turn = anyio.Lock()

    async def look(self, *, other_than: Look | None = None) -> Look:
        """Return what the primary has: looked at again where all that is known is `other_than`.

        Raises:
            ObjectNotFoundError: it has no such head.
            CorruptShardError: its head is damaged.
            LostHeadError: it is behind what this process has seen.
            StorageError: the primary is unwell.
        """
        async with self._turn:
            if self._look is None or self._look is other_than:
                self._look = await self._look_again()
            return self._look

    async def _look_again(self) -> Look:
        heads, primary = self.zone.heads, self.zone.primary
        look = await heads.look(self.key, None, primary)
        if heads.is_behind(self.key, look.history):
            look = await heads.look(self.key, None, primary)  # it may just have been replaced
        if look.state == "absent":
            raise ObjectNotFoundError(f"there is no object {self.key} at {primary}.")
        if look.state == "newer":
            raise UnsupportedFormatError(f"{self.key} at {primary} is of a newer format; upgrade DES.")
        if look.state == "damaged":
            self.zone.damaged(self.key)
            raise CorruptShardError(f"{self.key} is damaged at {primary}; nothing can be copied from there.")
        if heads.is_behind(self.key, look.history):
            raise lost_commits(self.zone, self.key)
        return look

    async def whole(self, look: Look) -> PrimaryHead | None:
        """Return all of the head that was looked at; None where it was replaced meanwhile. Errors as for `look`."""
        async with self._turn:
            if self._whole is None or self._whole.version != look.version:
                suffix = await self.zone.primary.read_suffix(self.key, MAX_HEAD_BYTES)
                if suffix is None or suffix.version != look.version:
                    return None
                await anyio.to_thread.run_sync(self.verifier.check_head, self.key, suffix.data)
                tail = parse_tail(suffix.data, len(suffix.data))
                self._whole = PrimaryHead(tail.identity, HeadTables.decode(tail.tables), suffix.version, suffix.data)
            return self._whole


def lost_commits(zone: Zone, key: str) -> LostHeadError:
    """Return the error that says that a primary is behind."""
    shard = key.removesuffix(".des")
    return LostHeadError(
        f"the primary {zone.primary} has lost commits of shard {shard} that were there before; look at what happened to it, put its head {key} back"
        f" from a copy that has them, or remove it and run `des repair {shard}`."
    )


async def bring_up(primary: Primary, copy: Place) -> BroughtUp:
    """Bring a copy up to the primary's head.

    Args:
        primary: the head; may be shared by all copies of the zone.
        copy: another place of the zone.

    Raises:
        ObjectNotFoundError: the primary has no such head.
        LostHeadError: the primary has lost commits.
        CorruptShardError: head or segments are damaged at every place they can be copied from.
        StorageError: a place is unwell.
    """
    zone, key = primary.zone, primary.key
    total = BroughtUp()
    look = await primary.look()
    for _ in range(_ATTEMPTS):
        there = await zone.heads.look(key, None, copy)
        if there.version == look.version and there.history == look.history:
            return total
        _check_store(there, look)
        if _is_ahead(there, look):
            fresh = await primary.look(other_than=look)
            if fresh.version == look.version:
                raise lost_commits(zone, key)
            look = fresh
            continue
        head = await primary.whole(look)
        if head is None:
            look = await primary.look(other_than=look)
            continue
        known = _names_at(there)
        try:
            total = await _bring_segments(primary, copy, head, known, total)
        except ObjectNotFoundError as error:
            fresh = await primary.look(other_than=look)
            if fresh.version == look.version:
                raise CorruptShardError(
                    f"{key} names a segment that no place of zone {zone.name} has: {error}"
                ) from error
            look = fresh
            continue
        mode: PutMode = IfVersion(there.version) if there.version else IfAbsent()
        try:
            await copy.put(key, head.data, mode)
        except PreconditionFailedError:
            continue  # another writer, or the echo of a retry: what is there now decides
        return BroughtUp(total.segments, total.segment_bytes, head=True)
    raise StorageUnavailableError(f"{key} changes faster than it can be copied to {copy}; try again.")


def _check_store(there: Look, look: Look) -> None:
    if there.state == "newer":
        raise UnsupportedFormatError(f"{there.place} has a head of a newer format; upgrade DES.")
    if there.store_id and look.store_id and there.store_id != look.store_id:
        raise SettingsError(
            f"{there.place} has shards of another store (store id {there.store_id.hex()}); give the copy an empty bucket or prefix of its own."
        )


def _is_ahead(there: Look, look: Look) -> bool:
    ours, theirs = look.history, there.history
    return ours is not None and theirs is not None and theirs.generation >= ours.generation


def _names_at(there: Look) -> frozenset[bytes]:
    """Return the names of the segments that the copy's own head needs; none where it has no good one."""
    if there.suffix is None or there.history is None:
        return frozenset()
    try:
        tail = parse_tail(there.suffix.data, there.suffix.total_size)
    except CorruptShardError:
        return frozenset()  # longer than what was read: each segment is asked for
    tables = HeadTables.decode(tail.tables)
    return frozenset({*(ref.name for ref in tables.segments), *tables.page_objects})


async def _bring_segments(
    primary: Primary, copy: Place, head: PrimaryHead, known: Collection[bytes], total: BroughtUp
) -> BroughtUp:
    sizes = head.sizes
    copied: list[int] = []

    async def bring(name: bytes) -> None:
        key, size = head.identity.segment_key(name), sizes[name]
        try:
            found = (await copy.probe(key)).size
        except ObjectNotFoundError:
            found = -1
        if found < 0 or size not in {None, found}:
            copied.append(await copy_segment(primary.zone, copy, key, primary.verifier))

    await run_all(bring, [name for name in sizes if name not in known], _SEGMENTS_AT_ONCE)
    return BroughtUp(total.segments + len(copied), total.segment_bytes + sum(copied))


async def copy_segment(zone: Zone, target: Place, key: str, verifier: Verifier) -> int:
    """Copy a segment to a place from whichever other one has it whole, and verify it there.

    Returns:
        Its size in bytes.

    Raises:
        ObjectNotFoundError: no other place has it.
        CorruptShardError: it is damaged wherever it is; the target is left without it.
        StorageError: a place is unwell.
    """
    errors: list[CorruptShardError | StorageError] = []
    missing = ObjectNotFoundError(f"there is no {key} at any other place of zone {zone.name}.")
    for source in zone.places:
        if source is target:
            continue
        try:
            size = (await source.probe(key)).size
            await _copy(source, target, key, size)
            await verifier.check_segment(target, key)
        except ObjectNotFoundError as error:
            missing = error
        except (CorruptShardError, StorageError) as error:
            errors.append(error)
        else:
            return size
    if not errors:
        raise missing
    damage = next((error for error in errors if isinstance(error, CorruptShardError)), None)
    if damage is None:
        raise errors[0]
    await target.delete(key)
    raise next((error for error in errors if isinstance(error, StorageError)), damage)


async def _copy(source: Place, target: Place, key: str, size: int) -> None:
    async with target.open_writer(key) as writer, source.stream_range(key, 0, max(1, size)) as pieces:
        copied = 0
        async for piece in pieces:
            await writer.write(piece)
            copied += len(piece)
        if copied != size:
            raise CorruptShardError(f"{key} at {source} has {copied} bytes instead of {size}.")
