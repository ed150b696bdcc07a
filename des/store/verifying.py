"""Verification: reads a store and finds all damage.

Rules:

1. *Damage* is whatever makes, or may make, a live file unreadable or wrong, or would mislead `des repair`: a head, tail, catalog, dictionary or live
   payload that is not what its checksums and its counterpart say, a segment that is missing, a head that is lost. What nobody needs is listed apart:
   damaged payloads that no head points at any more, orphans (segments no head lists), condemned segments, leftovers (objects that are no part of a shard).
2. Verification reads on after damage, so that one run names all of it. Where a head is damaged or lost, its segments are checked all the same, for they
   are what it is repaired from; every row of them counts as live then.
3. Writers may go on meanwhile. A head is read before its segments are listed, so a segment that comes later is an orphan at most; where one turns out
   missing and the head was replaced since, the shard is verified again.
4. Trouble of the storage is not damage: it ends the verification.
5. Where a store has several places, each is verified by itself, one after the other: no place answers for another, and damage names its place. What a
   copy lacks because it lags behind is no damage; it is found, and mended, by comparing heads.
6. Memory is bounded: shards, segments and requests at once are limited, payloads go through in pieces, and of big heads only one is held at a time.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from des.errors import CorruptShardError, ObjectNotFoundError, StorageUnavailableError, UnsupportedFormatError
from des.routing import parse_day
from des.storage.descriptor import DESCRIPTOR_KEY
from des.storage.wrapper import StorageWrapper
from des.store.checking import Flaw, Sampling, check_head
from des.store.findings import CondemnedSegment, Damage, Progress, VerifyReport
from des.store.heads import read_whole_head
from des.store.listing import days_of
from des.store.segment_check import READS_AT_ONCE, Listing, SegmentCheck, Tools, sentence_of
from des.store.shards import find_shards, segment_name
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from des.shard.layout import Identity
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import ObjectInfo, Storage
    from des.storage.wrapper import Call, Tally
    from des.store.heads import WholeHead
    from des.store.shards import FoundShard
    from des.store.store import Store

__all__ = ["CondemnedSegment", "Damage", "Progress", "Sampling", "VerifyReport", "verify"]

SHARDS_AT_ONCE = 4
SEGMENTS_AT_ONCE = 4
BIG_HEAD_BYTES = 16 << 20
_ATTEMPTS = 5


async def verify(
    store: Store,
    days: Iterable[str] | None = None,
    *,
    since: str | None = None,
    sampling: Sampling | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Read days of a store and check everything in them.

    Args:
        store: the store.
        days: YYYYMMDD or YYYY-MM-DD; None: all that have shards.
        since: with `days` None, only from this day on.
        sampling: which payloads to read; all where None.
        progress: is told how far it is.

    Returns:
        What was found, in the order of the keys.

    Raises:
        InvalidRequestError: an impossible day.
        SettingsError: there is no store, or it contradicts the settings.
        UnsupportedFormatError: a part of it is of a newer format: nothing can be said of that.
        StorageError: the storage is unwell.
    """
    descriptor = await store.index.descriptor()
    progress = progress or Progress()
    first = "" if since is None else parse_day(since)
    given = None if days is None else sorted({parse_day(day) for day in days})
    places = _places_of(store.storage, progress)
    total = VerifyReport()
    looked_at: set[str] = set()
    work: list[tuple[_Place, FoundShard]] = []
    for place in places:
        chosen = [day for day in await days_of(place) if day >= first] if given is None else given
        looked_at.update(chosen)
        for day in chosen:
            work += [(place, shard) for shard in await _survey(place, descriptor, day, total)]
    total.days = len(looked_at)
    progress.found(len(work))
    verifier = _Verifier(sampling or Sampling())

    async def verify_one(one: tuple[_Place, FoundShard]) -> None:
        report = await verifier.verify_shard(*one)
        progress.verified(report)
        total.add(report)

    await run_all(verify_one, work, SHARDS_AT_ONCE)
    total.bytes_read = sum(place.bytes_read for place in places)
    total.damage.sort(key=_order)
    total.garbage.sort(key=_order)
    for listed in (total.orphans, total.condemned, total.leftovers):
        listed.sort(key=lambda one: one.key)
    return total


def _order(damage: Damage) -> tuple[str, str, str, str]:
    return damage.key, damage.place or "", damage.uid or "", damage.sentence


class _Place(StorageWrapper):
    """One place, that no other one answers for. Counts the bytes read.

    Attributes:
        name: its address; None where there is no other.
        follows: what a copy follows: the storage that asks its primary; None for a primary.
        bytes_read: in all.
    """

    def __init__(
        self, inner: Storage, progress: Progress, name: str | None = None, follows: Storage | None = None
    ) -> None:
        super().__init__(inner)
        self.name = name
        self.follows = follows
        self.bytes_read = 0
        self._progress = progress

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        async with super().around(call) as tally:
            yield tally
        self.bytes_read += tally.size
        self._progress.read(tally.size)

    def alternatives(self, key: str) -> Sequence[Storage]:
        """Return none: what is damaged here shall show."""
        del key
        return ()


def _places_of(storage: Storage, progress: Progress) -> list[_Place]:
    several = storage.alternatives(DESCRIPTOR_KEY)
    if not several:
        return [_Place(storage, progress)]
    copies = {state.place for state in storage.states() if not state.is_primary}
    return [_Place(place, progress, place.address, storage if place.address in copies else None) for place in several]


async def _survey(place: _Place, descriptor: Descriptor, day: str, report: VerifyReport) -> Sequence[FoundShard]:
    found = await find_shards(place, descriptor, day)
    for info in found.strangers:
        sentence = f"no shard of a day with n_bits {descriptor.n_bits_on(day)} has this key."
        report.damage.append(Damage(info.key, None, sentence, place.name))
    report.leftovers += found.leftovers
    return found.shards


class _Verifier:
    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._reads = anyio.Semaphore(READS_AT_ONCE)
        self._big_heads = anyio.Lock()

    async def verify_shard(self, place: _Place, shard: FoundShard) -> VerifyReport:
        if shard.head_bytes <= BIG_HEAD_BYTES:
            return await self._verify_shard(place, shard.identity)
        async with self._big_heads:
            return await self._verify_shard(place, shard.identity)

    async def _verify_shard(self, place: _Place, identity: Identity) -> VerifyReport:
        tools = Tools(place, self._reads, self._sampling)
        for _ in range(_ATTEMPTS):
            check = _ShardCheck(tools, place, identity)
            await check.run()
            if not await check.is_outdated():
                return check.report
        raise StorageUnavailableError(f"{identity.head_key} changes faster than it can be verified; try again.")


class _ShardCheck:
    """One attempt at one shard."""

    def __init__(self, tools: Tools, place: _Place, identity: Identity) -> None:
        self.report = VerifyReport(shards=1)
        self._tools = tools
        self._storage = place
        self._identity = identity
        self._listed: dict[bytes, ObjectInfo] = {}
        self._whole: WholeHead | None = None
        self._misses_something = False

    async def run(self) -> None:
        is_there = await self._check_head()
        async for info in self._storage.list(self._identity.segment_prefix):
            name = segment_name(self._identity, info.key)
            if name is None:
                self.report.leftovers.append(info)
            else:
                self._listed[name] = info
        if not is_there and not self._listed:
            self.report.shards = 0
            return
        if not is_there and self._storage.follows is not None:
            self.report.orphans = list(self._listed.values())  # a head comes behind its segments
            return
        if not is_there:
            self._note(self._identity.head_key, Flaw("the head is lost; `des repair` rebuilds it from the segments."))
        if self._whole is None:
            await run_all(self._check_unlisted, sorted(self._listed), SEGMENTS_AT_ONCE)
            return
        listings = [Listing(self._whole, number) for number in range(len(self._whole.tables.segments))]
        await run_all(self._check_listed, listings, SEGMENTS_AT_ONCE)
        condemned = self._whole.tables.condemned
        known = {listing.ref.name for listing in listings} | {one.name for one in condemned}
        self.report.files = self._whole.tables.files
        self.report.orphans = [info for name, info in self._listed.items() if name not in known]
        self.report.condemned = [CondemnedSegment(self._key(one.name), one.since) for one in condemned]

    async def is_outdated(self) -> bool:
        """Tell whether something was missing only because the head was replaced meanwhile."""
        if not self._misses_something or self._whole is None:
            return False
        try:
            suffix = await self._storage.read_suffix(self._identity.head_key, 1, unless=self._whole.version)
        except ObjectNotFoundError:
            return True
        return suffix is not None

    async def _check_head(self) -> bool:
        """Read and check the head, keep it if it is good, and tell whether there is one."""
        key = self._identity.head_key
        try:
            whole = await read_whole_head(self._storage, self._identity, for_writing=False)
        except ObjectNotFoundError:
            return False
        except UnsupportedFormatError:
            raise
        except CorruptShardError as error:
            self._note(key, Flaw(sentence_of(error, key)))
            return True
        flaws = await anyio.to_thread.run_sync(check_head, whole)
        for flaw in flaws:
            self._note(key, flaw)
        if not flaws:
            self._whole = whole
        return True

    async def _check_listed(self, listing: Listing) -> None:
        ref = listing.ref
        if ref.name in self._listed:
            try:
                await self._check_segment(ref.name, listing)
            except ObjectNotFoundError:
                pass  # gone since it was listed
            else:
                return
        if await self._lags_behind():
            return
        self._misses_something = True
        self._note(
            self._key(ref.name), Flaw(f"the segment is missing; {ref.entries:,} entries of the head point into it.")
        )

    async def _lags_behind(self) -> bool:
        """Tell whether this is a copy whose head is not the primary's: what it points at may have been deleted with good reason."""
        follows = self._storage.follows
        if follows is None or self._whole is None:
            return False
        try:
            return await follows.read_suffix(self._identity.head_key, 1, unless=self._whole.version) is not None
        except ObjectNotFoundError:
            return True

    async def _check_unlisted(self, name: bytes) -> None:
        with suppress(ObjectNotFoundError):  # collected since it was listed
            await self._check_segment(name, None)

    async def _check_segment(self, name: bytes, listing: Listing | None) -> None:
        checked = await SegmentCheck(self._tools, self._identity, name, listing).run()
        self.report.segments += 1
        self.report.payloads += checked.payloads
        for flaw in checked.flaws:
            self._note(self._key(name), flaw, checked.names.get(flaw.file_id or b""))

    def _note(self, key: str, flaw: Flaw, uid: str | None = None) -> None:
        sentence = flaw.sentence
        if flaw.file_id is not None and uid is None:
            sentence = f"{sentence} (file_id {flaw.file_id.hex()})"
        (self.report.damage if flaw.live else self.report.garbage).append(
            Damage(key, uid, sentence, self._storage.name)
        )

    def _key(self, name: bytes) -> str:
        return self._identity.segment_key(name)
