"""Listing a day: heads say what lives, catalogs say what it is called.

The shards of a day in the order of their indices, and within a shard the pages in the order of their keys, give all files in file_id order, page
by page in bounded memory. A head that is replaced or a segment that is compacted away meanwhile is read again from the last file on.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from des.errors import (
    CorruptShardError,
    InvalidRequestError,
    LostHeadError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageUnavailableError,
)
from des.routing import FILE_ID_BYTES, file_id, is_day, parse_day
from des.shard.codecs import guess_content_type
from des.shard.layout import ENTRY_BYTES, Entry, Identity, decode_entry, from_microseconds
from des.shard.reading import check_page_order
from des.store.fileinfo import FileInfo
from des.store.found import DEFAULT_CONTENT_TYPE
from des.store.heads import named, page_of
from des.store.shards import identity_at

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from des.shard.catalog import CatalogRow
    from des.shard.reading import Head, PageRef
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import Storage
    from des.store.catalogs import CatalogReader
    from des.store.heads import LoadedHead
    from des.store.store import Store

_ATTEMPTS_WITHOUT_PROGRESS = 5


def cursor_of(info: FileInfo) -> str:
    """Return the cursor after which a listing goes on behind this file."""
    return file_id(info.uid).hex()


def parse_cursor(after: str | None) -> bytes:
    """Return the file_id a cursor stands for, b"" for none.

    Raises:
        InvalidRequestError: it is no cursor.
    """
    try:
        cursor = bytes.fromhex(after or "")
    except ValueError:
        cursor = b"?"
    if len(cursor) not in (0, FILE_ID_BYTES):
        raise InvalidRequestError(f"{(after or '')[:64]!r} is no cursor; pass on what the last page gave.")
    return cursor


async def days_of(storage: Storage) -> list[str]:
    """Return the days (YYYYMMDD) that have shards, in order."""
    level = await storage.list_level("")
    return [day for day in (prefix.rstrip("/") for prefix in level.prefixes) if is_day(day)]


async def shards_of(storage: Storage, descriptor: Descriptor, day: str) -> list[Identity]:
    """Return the shards of a day in the order of their indices. Objects that do not end in `.des` are none of ours and passed over.

    Raises:
        LostHeadError: there are segments of a shard, but no head.
        CorruptShardError: a head's key does not fit the store's n_bits.
        StorageError: the storage is unwell.
    """
    n_bits = descriptor.n_bits_on(day)
    level = await storage.list_level(f"{day}/")
    keys = {info.key for info in level.objects if info.key.endswith(".des")}
    for prefix in level.prefixes:
        key = f"{prefix.removesuffix('/')}.des"
        if key not in keys:
            keys |= await _late_head(storage, prefix, key)
    shards = []
    for key in sorted(keys):
        identity = identity_at(descriptor, day, key.removeprefix(f"{day}/").removesuffix(".des"))
        if identity is None or identity.head_key != key:
            raise CorruptShardError(f"{key}: no shard of a day with n_bits {n_bits} has this key.")
        shards.append(identity)
    return shards


async def _late_head(storage: Storage, prefix: str, key: str) -> set[str]:
    """Return the key of a head that a listing lacks although it has segments: a listing of many pages can miss a shard's beginning.

    Some stores list a prefix for a while when the last object below it has gone; then there is no such shard, and no key.

    Raises:
        LostHeadError: the head is not there.
    """
    try:
        return {(await storage.head(key)).key}
    except ObjectNotFoundError as error:
        if not (await storage.list_level(prefix)).objects:
            return set()
        raise _lost_head(prefix) from error


def _lost_head(prefix: str) -> LostHeadError:
    return LostHeadError(f"{prefix} holds segments but its head is gone; run `des repair {prefix.rstrip('/')}`.")


async def list_day(
    store: Store, catalogs: CatalogReader, day: str, after: str | None
) -> AsyncGenerator[FileInfo, None]:
    """Carry out `Store.list`."""
    date = parse_day(day)
    cursor = parse_cursor(after)
    listed_at = time.monotonic()
    descriptor = await store.in_time(store.index.descriptor())
    shards = await store.in_time(shards_of(store.storage, descriptor, date))
    for identity in shards:
        last = int.from_bytes(cursor[:2], "big") >> (16 - identity.n_bits) if cursor else -1
        if identity.shard_index < last:
            continue
        async with aclosing(_list_shard(store, catalogs, identity, cursor, listed_at)) as infos:
            async for info in infos:
                yield info


async def _list_shard(
    store: Store, catalogs: CatalogReader, identity: Identity, cursor: bytes, listed_at: float
) -> AsyncGenerator[FileInfo, None]:
    """List a shard whose head was listed at `listed_at` or later."""
    attempts = 0
    not_before = listed_at - store.settings.negative_ttl
    while True:
        looked = await store.in_time(store.index.look_for_all(identity, not_before))
        if looked.loaded is None:
            looked = await store.in_time(store.index.look_for_all(identity, listed_at))
        loaded = looked.loaded
        if loaded is None:
            await store.in_time(require_no_segments(store.storage, identity))
            return
        try:
            for index in range(loaded.head.directory.count):
                for info in await _list_page(store, catalogs, loaded, index, cursor):
                    attempts = 0
                    cursor = file_id(info.uid)
                    yield info
        except (PreconditionFailedError, ObjectNotFoundError) as error:
            attempts += 1
            if attempts == _ATTEMPTS_WITHOUT_PROGRESS:
                raise StorageUnavailableError(
                    f"{identity.head_key} changes faster than it can be listed; try again."
                ) from error
            not_before = time.monotonic()
            if isinstance(error, ObjectNotFoundError):
                await store.in_time(store.index.require_newer(loaded, not_before, error))
        else:
            return


async def require_no_segments(storage: Storage, identity: Identity) -> None:
    """Make sure that a shard whose head has gone since it was listed is gone as a whole."""
    if (await storage.list_level(identity.segment_prefix)).objects:
        raise _lost_head(identity.segment_prefix)


async def _list_page(
    store: Store, catalogs: CatalogReader, loaded: LoadedHead, index: int, cursor: bytes
) -> list[FileInfo]:
    head = loaded.head
    if index + 1 < head.directory.count and head.directory.ref(index + 1).first_key <= cursor:
        return []
    try:
        ref = head.page(index)
    except CorruptShardError as error:
        raise named(error, head.identity.head_key) from error
    page = await store.in_time(page_of(store.storage, loaded, ref))
    try:
        live = _live_entries(head, ref, page, cursor)
    except CorruptShardError as error:
        raise named(error, head.identity.head_key) from error
    rows: dict[bytes, CatalogRow] = {}
    for segment in sorted({entry.segment for entry in live}):
        ids = [entry.file_id for entry in live if entry.segment == segment]
        finding = catalogs.find(head.identity, head.tables.segments[segment].name, ids)
        rows |= await store.in_time(finding)
    return [_info(head.identity, loaded, entry, rows) for entry in live]


def _live_entries(head: Head, ref: PageRef, page: memoryview | bytes, cursor: bytes) -> list[Entry]:
    """Return the live entries behind a cursor on a page whose checksum is good, checked otherwise too."""
    check_page_order(page, ref)
    entries = [decode_entry(page, at) for at in range(0, len(page), ENTRY_BYTES)]
    live = [entry for entry in entries if not entry.deleted and entry.file_id > cursor]
    for entry in live:
        head.check_entry(entry)
    return live


def _info(identity: Identity, loaded: LoadedHead, entry: Entry, rows: dict[bytes, CatalogRow]) -> FileInfo:
    key = identity.segment_key(loaded.head.tables.segments[entry.segment].name)
    row = rows.get(entry.file_id)
    if row is None:
        raise CorruptShardError(f"{key}: its catalog lacks a file of the head.")
    return FileInfo(
        uid=row.uid,
        created_at=from_microseconds(row.created_at),
        raw_size=entry.raw_size,
        stored_size=entry.stored_size,
        codec=entry.codec.wire_name,
        content_type=row.content_type or guess_content_type(row.uid) or DEFAULT_CONTENT_TYPE,
        metadata=row.metadata_object(),
        etag=f'"{entry.content_hash.hex()}"',
        content_hash=entry.content_hash.hex(),
        shard=identity.head_key,
        segment=key,
        offset=entry.offset,
    )
