"""Small real stores for tests, written through the format's own writers and the commit protocol, on any storage."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from des.errors import DeletedError, NotFoundError
from des.pack.commit import Change, new_name, now_microseconds, open_shard, swap
from des.routing import file_id, shard_index
from des.settings import Settings
from des.shard.catalog import encode_metadata
from des.shard.codecs import Compression, Encoder
from des.shard.layout import Flag, Identity, to_microseconds
from des.shard.merging import Addition, merge
from des.shard.tables import HeadTables
from des.shard.writing import FileRecord, SegmentWriter
from des.storage.descriptor import Descriptor, ensure_descriptor
from des.store import Store
from des.tasks import open_tasks
from tests.payloads import encode_payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from des.storage.protocol import Storage
    from des.store.heads import WholeHead

DAY = "20240131"
WHEN = date(2024, 1, 31)


@dataclass(frozen=True, slots=True)
class File:
    """A file to be packed; `time` is the time of its day."""

    content: bytes
    content_type: str | None = None
    metadata: Mapping[str, object] | None = None
    time: timedelta = timedelta()


@dataclass(slots=True)
class Maker:
    """Writes into one store.

    Attributes:
        storage: the place.
        descriptor: the store's.
        files: what the store should hold, by day and uid: the model.
    """

    storage: Storage
    descriptor: Descriptor
    files: dict[str, dict[str, File]] = field(default_factory=dict)

    def identity(self, uid: str, day: str = DAY) -> Identity:
        """Return the shard of a file."""
        n_bits = self.descriptor.n_bits_on(day)
        return Identity(self.descriptor.store_id, day, n_bits, shard_index(file_id(uid), n_bits))

    def uids_of_one_shard(self, count: int, day: str = DAY, stem: str = "file") -> list[str]:
        """Return names that all lie in the shard of the first of them."""
        names = (f"{stem}-{number}" for number in range(1 << 20))
        first = next(names)
        uids = [first]
        while len(uids) < count:
            uid = next(names)
            if self.identity(uid, day) == self.identity(first, day):
                uids.append(uid)
        return uids

    async def add(
        self, files: Mapping[str, bytes | File], day: str = DAY, compression: Compression | None = None
    ) -> list[str]:
        """Add files, or replace them: one new segment in every shard concerned. Returns the keys of those segments."""
        given = {uid: value if isinstance(value, File) else File(value) for uid, value in files.items()}
        keys = [
            await self._add(identity, {uid: given[uid] for uid in uids}, compression or Compression())
            for identity, uids in self._by_shard(given, day).items()
        ]
        self.files.setdefault(day, {}).update(given)
        return keys

    async def delete(self, uids: Iterable[str], day: str = DAY) -> None:
        """Delete files: a segment of tombstones in every shard concerned."""
        for identity, names in self._by_shard(uids, day).items():
            base = await open_shard(self.storage, identity)
            writer = SegmentWriter(identity, base.tables.generation)
            for uid in names:
                entry = base.find(file_id(uid))
                if entry is not None:
                    writer.add_tombstone(file_id(uid), entry.content_hash, now_microseconds())
                    del self.files[day][uid]
            await self._commit(base, writer, b"")

    async def compact(self, day: str = DAY, compression: Compression | None = None, *, collect: bool = True) -> None:
        """Write every shard of a day anew as one segment, and delete the old ones unless told to leave them."""
        for identity, uids in self._by_shard(self.files[day], day).items():
            base = await open_shard(self.storage, identity)
            files = {uid: self.files[day][uid] for uid in uids}
            await self._add(identity, files, compression or Compression(), afresh=True)
            if collect:
                for ref in base.tables.segments:
                    await self.storage.delete(identity.segment_key(ref.name))

    async def make_shard(self, day: str, uid: str) -> Identity:
        """Make sure that the shard of a file has a head, if only an empty one."""
        identity = self.identity(uid, day)
        await open_shard(self.storage, identity)
        return identity

    def _by_shard(self, uids: Iterable[str], day: str) -> dict[Identity, list[str]]:
        shards: dict[Identity, list[str]] = {}
        for uid in uids:
            shards.setdefault(self.identity(uid, day), []).append(uid)
        return shards

    async def _add(
        self, identity: Identity, files: Mapping[str, File], compression: Compression, *, afresh: bool = False
    ) -> str:
        base = await open_shard(self.storage, identity)
        encoder = Encoder(compression)
        writer = SegmentWriter(identity, base.tables.generation, compression.dictionary)
        data = bytearray()
        midnight = datetime.strptime(identity.date, "%Y%m%d").replace(tzinfo=UTC)
        for uid, file in files.items():
            old = base.find(file_id(uid))
            replaces = old is not None and (old.replaced if afresh else not old.deleted)
            record = FileRecord(
                file_id(uid),
                uid,
                to_microseconds(midnight + file.time),
                file.content_type,
                encode_metadata(file.metadata),
                Flag.REPLACED if replaces else 0,
            )
            stored, payload = encode_payload(encoder, file.content)
            data += stored
            writer.add(record, payload)
        return await self._commit(base, writer, bytes(data), afresh=afresh)

    async def _commit(self, base: WholeHead, writer: SegmentWriter, data: bytes, *, afresh: bool = False) -> str:
        pieces, summary = writer.finish()
        name = new_name()
        key = base.identity.segment_key(name)
        opening = writer.opening
        async with self.storage.open_writer(key) as out:
            await out.write(b"".join([opening, data, *pieces]))

        async def change(head: WholeHead) -> Change:
            tables, entries = head.tables, bytes(head.entries)
            if afresh:
                tables = HeadTables(tables.generation, tables.lineage, commit_log=tables.commit_log)
                entries = b""
            return merge(tables, entries, [Addition(name, summary)], now_microseconds())

        await swap(self.storage, base, change)
        return key


@asynccontextmanager
async def reading(storage: Storage, **settings: object) -> AsyncIterator[Store]:
    """Open a store on a storage that the test made."""
    async with open_tasks() as tasks:
        yield Store(storage, Settings(**settings), tasks)


async def make_store(
    storage: Storage, files: Mapping[str, bytes | File] | None = None, *, n_bits: int = 1, day: str = DAY
) -> Maker:
    """Make a store with some files."""
    maker = Maker(storage, await ensure_descriptor(storage, n_bits))
    if files:
        await maker.add(files, day)
    return maker


async def told_of(store: Store, uids: Iterable[str]) -> dict[str, bytes | str]:
    """Return what a reader is told of files of `WHEN`: the content, or `deleted`, or `not found`."""
    found: dict[str, bytes | str] = {}
    for uid in uids:
        try:
            found[uid] = await store.get(uid, WHEN)
        except DeletedError:
            found[uid] = "deleted"
        except NotFoundError:
            found[uid] = "not found"
    return found
