"""Bringing the copies of a store in zones up to their primaries: whatever they missed, computed by comparing what is there.

Rules, beside those of `des.storage.zone_copying`, which brings up one shard of one copy:

1. Nothing is remembered between runs: a run that was killed, or a place that was away, is made good by running again, and a second run finds nothing
   to do.
2. Each copy is worked on by itself. Where one cannot be reached the others go on; a shard that cannot be brought up does not stop its neighbours.
3. What a head names is there afterwards, at the copy and at the primary, in the size that the head says; a segment that only the copy still has goes back
   to the primary.
4. What the copy has and the primary has not is removed only under a head that both have now: at once what the copy's former head named, for it was
   collected at the primary, and what the head condemns; anything else when it is old, for it may be on its way to both. What the head needs stays.
5. A shard of which the primary has no head, but a copy has, was lost at the primary: that is told, and nothing is touched. Segments without any head may
   be the only ones: they stay, and are told.
6. A copy gets its descriptor last, when all else was brought up: from then on its word on what is not there counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from des.errors import CorruptShardError, LostHeadError, ObjectNotFoundError, StorageError
from des.lifecycle.running import Failed, maintain
from des.routing import is_day
from des.storage.zone_copying import Primary, bring_up, copy_segment
from des.store.heads import load_head
from des.store.listing import days_of
from des.store.shards import identity_at
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from des.shard.layout import Identity
    from des.shard.tables import HeadTables
    from des.storage.descriptor import Descriptor
    from des.storage.place import Place
    from des.storage.protocol import ObjectInfo, Storage
    from des.storage.zone import Zone
    from des.storage.zones import ZonedStorage

    Keys = Mapping[str, ObjectInfo]

COPIES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class SyncedShard:
    """What it took to bring one shard of one copy up.

    Attributes:
        head: whether its head was put.
        segments: how many were copied, to the copy or back to the primary.
        segment_bytes: their bytes.
        deleted: keys that were removed from the copy.
        kept: keys that the copy has and the primary has not, which may not go yet.
    """

    head: bool = False
    segments: int = 0
    segment_bytes: int = 0
    deleted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnreachedPlace:
    """A copy that was given up, because it or its primary is in trouble; `error` is one sentence."""

    zone: str
    place: str
    error: str


@dataclass(slots=True)
class SyncReport:
    """What a run came to.

    Attributes:
        copies: how many were looked at to the end.
        shards: how many were compared, once for each copy.
        brought_up: how many heads were put.
        segments: how many were copied.
        segment_bytes: their bytes.
        deleted: keys that were removed, with their places in front.
        kept: likewise, what may not go yet.
        failed: shards that could not be brought up.
        unreached: copies that were given up.
    """

    copies: int = 0
    shards: int = 0
    brought_up: int = 0
    segments: int = 0
    segment_bytes: int = 0
    deleted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    unreached: list[UnreachedPlace] = field(default_factory=list)

    def add(self, place: Place, one: SyncedShard) -> None:
        """Count a shard."""
        self.shards += 1
        self.brought_up += one.head
        self.segments += one.segments
        self.segment_bytes += one.segment_bytes
        self.deleted += [f"{place.address}/{key}" for key in one.deleted]
        self.kept += [f"{place.address}/{key}" for key in one.kept]


class Progress:
    """Is told how far a run is; this one does not care."""

    def days_found(self, count: int) -> None:
        """There are so many more days to compare."""

    def day_done(self) -> None:
        """A day of a copy is done."""


async def sync_zones(storage: ZonedStorage, older_than: timedelta, progress: Progress | None = None) -> SyncReport:
    """Bring all copies of a store up.

    Args:
        storage: the store.
        older_than: what no head knows is removed when it is older, by its place's clock.
        progress: told how far it is.

    Raises:
        SettingsError: there is no store, or a place does not fit the zones file.
        StorageError: a primary's descriptor cannot be read.
    """
    descriptor = await storage.descriptors.complete()
    report = SyncReport()

    async def one(pair: tuple[Zone, Place]) -> None:
        zone, copy = pair
        try:
            await storage.descriptors.check(zone, copy, descriptor.store_id)
            is_brought_up = await _Copy(storage, zone, copy, descriptor, report).sync(
                older_than, progress or Progress()
            )
            if is_brought_up:
                await storage.descriptors.make(zone, copy, descriptor.store_id, is_brought_up=True)
        except StorageError as error:
            report.unreached.append(UnreachedPlace(zone.name, copy.address, str(error)))
        else:
            report.copies += 1

    await run_all(one, [(zone, copy) for zone in storage.zones for copy in zone.copies], COPIES_AT_ONCE)
    for listed in (report.deleted, report.kept):
        listed.sort()
    report.failed.sort(key=lambda failed: failed.shard)
    report.unreached.sort(key=lambda one: (one.zone, one.place))
    return report


class _Copy:
    """One copy, and the primary that it is brought up to."""

    def __init__(
        self, storage: ZonedStorage, zone: Zone, copy: Place, descriptor: Descriptor, report: SyncReport
    ) -> None:
        self._zone, self._copy, self._primary = zone, copy, zone.primary
        self._verifier = storage.verifier
        self._descriptor = descriptor
        self._report = report

    async def sync(self, older_than: timedelta, progress: Progress) -> bool:
        """Bring the copy up; tell whether all of it was."""
        limit = await self._copy.now() - older_than
        days = sorted({*await days_of(self._copy), *await days_of(self._primary)})
        progress.days_found(len(days))
        are_failed = False
        for day in days:
            are_failed |= await self._sync_day(day, limit)
            progress.day_done()
        return not are_failed

    async def _sync_day(self, day: str, limit: datetime) -> bool:
        # The copy's first: what is written to both meanwhile is then never taken for something that only the copy has.
        there = await self._listed(self._copy, day)
        here = await self._listed(self._primary, day)
        shards = [
            identity for identity in {**there, **here} if self._zone.start <= identity.shard_index <= self._zone.end
        ]
        work = partial(self._sync_shard, there=there, here=here, limit=limit)
        outcome = await maintain(sorted(shards, key=lambda one: one.shard_index), work)
        for one in outcome.results:
            self._report.add(self._copy, one)
        for failed in outcome.failed:
            shard = f"{failed.shard} at {self._copy.address}"
            self._report.failed.append(Failed(shard, failed.status, failed.error))
        return bool(outcome.failed)

    async def _listed(self, place: Storage, day: str) -> dict[Identity, dict[str, ObjectInfo]]:
        """Return what a place has of the shards of a day."""
        found: dict[Identity, dict[str, ObjectInfo]] = {}
        async for info in place.list(f"{day}/"):
            digits = info.key.removeprefix(f"{day}/").partition("/")[0].removesuffix(".des")
            identity = identity_at(self._descriptor, day, digits) if is_day(day) else None
            if identity is not None and info.key.endswith(".des"):
                found.setdefault(identity, {})[info.key] = info
        return found

    async def _sync_shard(
        self, identity: Identity, there: Mapping[Identity, Keys], here: Mapping[Identity, Keys], limit: datetime
    ) -> SyncedShard:
        ours, theirs = here.get(identity, {}), there.get(identity, {})
        former = await self._tables(identity)
        try:
            brought = await bring_up(Primary(self._zone, identity.head_key, self._verifier), self._copy)
        except ObjectNotFoundError as error:
            if ours or identity.head_key in theirs:
                raise LostHeadError(
                    f"{self._primary} has no head of it; put {identity.head_key} back there from a copy that has it, or run"
                    f" `des repair {identity.shard_name}`."
                ) from error
            return SyncedShard(kept=tuple(sorted(theirs)))
        tables = await self._tables(identity) if brought.head else former
        if tables is None:
            raise CorruptShardError(f"{self._copy} has lost its head again.")
        # `bring_up` trusts what the copy's former head named, and copies the rest: that is not in a listing from before.
        trusted = tables if not brought.head else former
        back = [
            *await self._fill(self._copy, _sizes(tables, identity, trusted), theirs),
            *await self._fill(self._primary, _sizes(tables, identity, tables), ours),
        ]
        deleted, kept = await self._clear(identity, tables, former, set(theirs.keys() - ours.keys()), theirs, limit)
        return SyncedShard(
            brought.head, brought.segments + len(back), brought.segment_bytes + sum(back), tuple(deleted), tuple(kept)
        )

    async def _fill(self, place: Place, sizes: Mapping[str, int], listed: Keys) -> list[int]:
        """Copy the segments that a place was found without, and return their sizes."""
        copied = []
        for key, size in sizes.items():
            if (key not in listed or listed[key].size != size) and await self._lacks(place, key, size):
                copied.append(await copy_segment(self._zone, place, key, self._verifier))
        return copied

    async def _clear(
        self,
        identity: Identity,
        tables: HeadTables,
        former: HeadTables | None,
        surplus: set[str],
        theirs: Keys,
        limit: datetime,
    ) -> tuple[list[str], list[str]]:
        """Remove what the copy has and the primary has not, as far as that may go; return the keys removed, and the others."""
        needed = {
            identity.head_key,
            *_keys(identity, [ref.name for ref in tables.segments]),
            *_keys(identity, tables.page_objects),
        }
        collected = set(_keys(identity, [one.name for one in tables.condemned]))
        if former is not None:
            names = [
                *(ref.name for ref in former.segments),
                *former.page_objects,
                *(one.name for one in former.condemned),
            ]
            collected.update(_keys(identity, names))
        surplus -= needed
        deleted = sorted(key for key in surplus if key in collected or theirs[key].modified < limit)
        for key in deleted:
            await self._copy.delete(key)
        return deleted, sorted(surplus.difference(deleted))

    async def _lacks(self, place: Place, key: str, size: int) -> bool:
        try:
            return (await place.probe(key)).size != size
        except ObjectNotFoundError:
            return True

    async def _tables(self, identity: Identity) -> HeadTables | None:
        """Return what the copy's head says; None where it has none that can be read."""
        try:
            return (await load_head(self._copy, identity)).head.tables
        except (ObjectNotFoundError, CorruptShardError):
            return None


def _sizes(tables: HeadTables, identity: Identity, named_by: HeadTables | None) -> dict[str, int]:
    """Return the keys and sizes of the segments of a head that another one names as well."""
    names = {ref.name for ref in named_by.segments} if named_by is not None else set()
    return {identity.segment_key(ref.name): ref.size for ref in tables.segments if ref.name in names}


def _keys(identity: Identity, names: Iterable[bytes]) -> list[str]:
    return [identity.segment_key(name) for name in names]
