"""Deleting files: a tombstone for each, in a segment without data, and a swap. The bytes stay until the shard is compacted.

A deletion is of what the head has when the swap succeeds: where another writer replaced a file meanwhile, it is decided anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from des.errors import ConflictError
from des.lifecycle.clock import microseconds_now
from des.lifecycle.condemned import remove_unlisted
from des.pack.commit import are_usable, find_shard, new_name, settle, swap
from des.pack.owners import Owner, Owners
from des.routing import date_dir, file_id, normalize_uid, parse_created_at, shard_index
from des.shard.layout import Identity
from des.shard.merging import Addition, merge
from des.shard.writing import SegmentWriter
from des.storage.descriptor import require_descriptor
from des.store.cache import ByteLRU
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from des.pack.commit import Change
    from des.routing import CreatedAt
    from des.shard.layout import Entry
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import Storage
    from des.store.heads import WholeHead

Outcome = Literal["deleted", "already_deleted", "not_found"]

_ATTEMPTS = 10
_TAILS_BYTES = 8 << 20
_SHARDS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of one file that was to be deleted.

    Attributes:
        uid: its name.
        day: YYYYMMDD.
        shard: its shard, `YYYYMMDD/HH`.
        outcome: `deleted` now, `already_deleted` before, or `not_found`.
    """

    uid: str
    day: str
    shard: str
    outcome: Outcome


async def delete_files(storage: Storage, files: Iterable[tuple[str | int, CreatedAt]]) -> list[Deletion]:
    """Delete files, those of a shard in one commit.

    Args:
        storage: the store's place.
        files: uid and created_at of each; repeated ones count once.

    Returns:
        What became of each, in the order of the files.

    Raises:
        InvalidRequestError: a uid or time is unusable; nothing was deleted.
        SettingsError: there is no store.
        LostHeadError, CorruptShardError, ConflictError, StorageError: a shard could not be changed; others may have been.
    """
    wanted = list(dict.fromkeys((normalize_uid(uid), date_dir(parse_created_at(at))) for uid, at in files))
    descriptor = await require_descriptor(storage)
    shards: dict[Identity, list[str]] = {}
    for uid, day in wanted:
        shards.setdefault(_shard_of(descriptor, uid, day), []).append(uid)
    now = await microseconds_now(storage)
    deletions: dict[tuple[str, str], Deletion] = {}

    async def delete_one(identity: Identity) -> None:
        outcomes = await delete_in_shard(storage, identity, shards[identity], now)
        for uid, outcome in outcomes.items():
            deletions[uid, identity.date] = Deletion(uid, identity.date, identity.shard_name, outcome)

    await run_all(delete_one, shards, _SHARDS_AT_ONCE)
    return [deletions[one] for one in wanted]


def _shard_of(descriptor: Descriptor, uid: str, day: str) -> Identity:
    n_bits = descriptor.n_bits_on(day)
    index = shard_index(file_id(uid), n_bits)
    descriptor.check_owned(index, n_bits)
    return Identity(descriptor.store_id, day, n_bits, index)


async def delete_in_shard(
    storage: Storage, identity: Identity, uids: Sequence[str], deleted_at: int
) -> dict[str, Outcome]:
    """Delete files of one shard.

    Args:
        storage: the store's place.
        identity: the shard.
        uids: its files, each once.
        deleted_at: microseconds since 1970.

    Raises:
        LostHeadError: the shard's head is gone.
        ConflictError: others kept changing the same files.
        CorruptShardError: the head, or a catalog, is damaged.
        StorageError: the storage is unwell.
    """
    for _ in range(_ATTEMPTS):
        base = await find_shard(storage, identity)
        if base is None:
            return dict.fromkeys(uids, "not_found")
        outcomes, doomed = await _decide(storage, base, uids)
        if not doomed:
            await settle(storage, identity)  # an earlier deletion may not be everywhere yet
            return outcomes
        if await _commit(storage, base, doomed, deleted_at):
            return outcomes
    raise ConflictError(
        f"{identity.head_key}: other writers changed the same files {_ATTEMPTS} times in a row; run again."
    )


async def _decide(storage: Storage, base: WholeHead, uids: Sequence[str]) -> tuple[dict[str, Outcome], list[Entry]]:
    entries = {uid: base.find(file_id(uid)) for uid in uids}
    owners = Owners(storage, ByteLRU(_TAILS_BYTES), base)
    await owners.learn([entry for entry in entries.values() if entry is not None and not entry.deleted])
    outcomes: dict[str, Outcome] = {}
    doomed = []
    for uid, entry in entries.items():
        if entry is None:
            outcomes[uid] = "not_found"
        elif entry.deleted:
            outcomes[uid] = "already_deleted"
        elif owners.of(entry, uid) is Owner.OTHER:
            outcomes[uid] = "not_found"
        else:
            outcomes[uid] = "deleted"
            doomed.append(entry)
    return outcomes, doomed


async def _commit(storage: Storage, base: WholeHead, doomed: Sequence[Entry], deleted_at: int) -> bool:
    """Swap tombstones in; False: another writer changed one of the files, so decide anew."""
    writer = SegmentWriter(base.identity, base.tables.generation)
    for entry in doomed:
        writer.add_tombstone(entry.file_id, entry.content_hash, deleted_at)
    pieces, summary = writer.finish()
    name = new_name()
    async with storage.open_writer(base.identity.segment_key(name)) as out:
        await out.write(b"".join([writer.opening, *pieces]))
    addition = Addition(name, summary)

    async def change(head: WholeHead) -> Change:
        if head.version != base.version:
            moved = any(head.placed(entry.file_id) != base.placed(entry.file_id) for entry in doomed)
            if moved or not await are_usable(storage, head, [name]):
                raise _ChangedMeanwhileError
        return merge(head.tables, head.entries, [addition], deleted_at)

    try:
        await swap(storage, base, change)
    except _ChangedMeanwhileError:
        # Nothing may be left that says of a file that it was deleted, when it was not.
        await remove_unlisted(storage, base.identity, [name], deleted_at)
        return False
    return True


class _ChangedMeanwhileError(Exception):
    """Another writer changed a file that is being deleted, or collected the tombstones."""
