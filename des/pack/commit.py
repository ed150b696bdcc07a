"""The commit protocol: the only module that writes heads.

Rules, each of which stops a concrete loss:

1. *Head first.* A segment never exists before its head. Whoever finds no head but segments faces a *lost head*, says so and writes nothing; the
   head is looked for once more after the listing, because another writer may just have made it.
2. A head is a base for writing only as a whole: header, tail, structure and every page verified.
3. A head is replaced only by compare-and-swap on the version it was read at, and every commit leaves its id in the head's log.
4. *Any* failure of the conditional put means **unknown**: a refusal may be the echo of a retry that succeeded, a timeout may have been applied.
   The head is read again; one of our ids in its log means done. If the log may have forgotten us (more than 64 commits since), or the
   head is of another lineage, the answer is "run again": a rerun is idempotent.
5. What is swapped in is decided anew on the head it is swapped onto.
6. A writer never deletes its own segments: after an unknown outcome they may be in use. `des gc` collects what nobody lists.
7. What a head holds is acknowledged once as many places hold it as must (`settle`): what was written, and what turned out to be there already.
   Where they are too few, the commit stands, and the same call again finishes it.
8. No head is a base on the word of a copy that may lag behind: a skip decided on it would acknowledge what is deleted since.
"""

from __future__ import annotations

import random
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from des.errors import (
    ConflictError,
    LostHeadError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
)
from des.shard.layout import COMMIT_LOG_LENGTH, NAME_BYTES, Identity
from des.shard.tables import Condemned, HeadTables
from des.shard.writing import encode_head
from des.storage.descriptor import require_descriptor
from des.storage.protocol import IfAbsent, IfVersion
from des.store.heads import WholeHead, load_head, read_whole_head, whole_head

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from des.storage.protocol import PutMode, Storage

# How often others may win, and how often the storage may fail otherwise: the storage has tried again by itself before it says so.
MAX_ATTEMPTS = 40
MAX_TROUBLES = 5
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 2.0


Change = tuple[HeadTables, bytes]


@dataclass(frozen=True, slots=True)
class Swapped:
    """The outcome of a swap: the tables of the head that holds it, and whether anything had to be written."""

    tables: HeadTables
    written: bool


class NotSettledError(StorageUnavailableError):
    """A head holds a commit, but too few places hold that head: nothing of it is acknowledged. The same call again finishes it."""


def new_name() -> bytes:
    """Return a fresh random name: of a segment, a lineage or a commit."""
    return secrets.token_bytes(NAME_BYTES)


def now_microseconds() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000


async def open_shard(storage: Storage, identity: Identity) -> WholeHead:
    """Read a shard's head, or make an empty one: step one of every write.

    Raises:
        LostHeadError: there are segments but no head.
        SettingsError: n_bits of the day changed meanwhile.
        CorruptShardError: the head is damaged; a damaged head is never a base.
        StorageError: the storage is unwell.
    """
    found = await find_shard(storage, identity)
    if found is not None:
        return found
    head = await _make_head(storage, identity)
    descriptor = await require_descriptor(storage)
    if descriptor.n_bits_on(identity.date) != identity.n_bits:
        raise SettingsError(f"n_bits of {identity.date} has just been changed; run again.")
    return head


async def find_shard(storage: Storage, identity: Identity) -> WholeHead | None:
    """Read a shard's head as a base for writing; None: there is no such shard.

    Raises:
        LostHeadError: there are segments but no head.
        ConflictError: the shard is being removed.
        CorruptShardError: the head is damaged; a damaged head is never a base.
        StorageError: the storage is unwell.
    """
    try:
        return await read_whole_head(storage, identity)
    except ObjectNotFoundError:
        pass
    if (await storage.list_level(identity.segment_prefix)).objects:
        return await require_shard(storage, identity)
    return None


async def _make_head(storage: Storage, identity: Identity) -> WholeHead:
    empty = encode_head(identity, HeadTables(generation=1, lineage=new_name()), b"")
    try:
        version = await storage.put(identity.head_key, empty, IfAbsent())
    except StorageDeniedError:
        raise
    except StorageError as failure:
        # Another writer was first, or the outcome is unknown: what is there now decides.
        try:
            return await read_whole_head(storage, identity)
        except ObjectNotFoundError:
            raise failure from failure.__cause__
    return whole_head(identity, empty, version)


async def require_shard(storage: Storage, identity: Identity) -> WholeHead:
    """Read the head of a shard that is there. Errors as for `find_shard`; LostHeadError also where the shard is gone."""
    try:
        return await read_whole_head(storage, identity)
    except ObjectNotFoundError as error:
        raise lost_head(identity) from error


def lost_head(identity: Identity) -> LostHeadError:
    """Return the error that names a lost head and its cure."""
    shard = identity.shard_name
    return LostHeadError(
        f"shard {shard} has segments, but its head {identity.head_key} is gone; run `des repair {shard}` before writing to it."
    )


async def are_usable(storage: Storage, head: WholeHead, names: Iterable[bytes]) -> bool:
    """Tell whether uploaded segments may be swapped into a head: each is still there, and none is condemned.

    Raises:
        StorageError: the storage is unwell.
    """
    condemned = {item.name for item in head.tables.condemned}
    for name in names:
        if name in condemned:
            return False
        try:
            await storage.head(head.identity.segment_key(name))
        except ObjectNotFoundError:
            return False
    return True


async def settle(storage: Storage, identity: Identity) -> None:
    """Bring as many places as must hold it up to the shard's head: before anything in it is acknowledged.

    Raises:
        NotSettledError: too few places hold it.
        StorageError: the storage is unwell.
    """
    try:
        await storage.settle(identity.head_key)
    except StorageUnavailableError as error:
        raise NotSettledError(str(error)) from error


async def swap(
    storage: Storage,
    base: WholeHead,
    change: Callable[[WholeHead], Awaitable[Change | None]],
    *,
    pause: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> Swapped:
    """Replace a head by compare-and-swap until it holds a change, and settle it.

    Args:
        storage: the store's place.
        base: the head the change was prepared on.
        change: makes the new tables and entries from a head, deciding anew; None: that head needs no change. It may raise.
        pause: waits between attempts.

    Returns:
        The tables of the head that holds the change.

    Raises:
        ConflictError: other writers kept winning, or the outcome cannot be told any more: run again.
        LostHeadError: the head is gone.
        NotSettledError: the head holds the change, but too few places hold that head.
        StorageError: the storage is unwell, and the head was without the change when it was last read.
        Whatever `change` raises, and CorruptShardError as for `read_whole_head`.
    """
    swapped = await _swap(storage, base, change, pause)
    await settle(storage, base.identity)
    return swapped


async def _swap(
    storage: Storage,
    base: WholeHead,
    change: Callable[[WholeHead], Awaitable[Change | None]],
    pause: Callable[[float], Awaitable[None]],
) -> Swapped:
    tried: set[bytes] = set()
    troubles = 0
    failure: StorageError | None = None
    head = base
    while True:
        if failure is not None:
            longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** len(tried))
            await pause(random.uniform(0, longest))  # noqa: S311 - jitter
            head = await require_shard(storage, base.identity)
            if tried.intersection(head.tables.commit_log):
                return Swapped(head.tables, written=True)
            _check_history(head, base)
            if troubles == MAX_TROUBLES:
                raise failure
            if len(tried) == MAX_ATTEMPTS:
                raise ConflictError(
                    f"{base.identity.head_key} was replaced by others {MAX_ATTEMPTS} times in a row; run again."
                )
        changed = await change(head)
        if changed is None:
            return Swapped(head.tables, written=False)
        commit_id = new_name()
        tables, entries = changed
        tables = tables.committed(commit_id)
        tried.add(commit_id)
        try:
            await storage.put(
                base.identity.head_key, encode_head(base.identity, tables, entries), IfVersion(head.version)
            )
        except StorageDeniedError:
            raise
        except StorageError as error:
            failure = error  # unknown: the log of the next read decides
            troubles += not isinstance(error, PreconditionFailedError)
        else:
            return Swapped(tables, written=True)


async def close_shard(storage: Storage, identity: Identity, since: int) -> str:
    """Swap in an empty head that condemns all segments and that no writer may change any more, and settle it: the beginning of a shard's removal.

    Args:
        storage: the store's place.
        identity: the shard. Where it has no head, a closed one is made, so that nobody makes another kind meanwhile.
        since: microseconds since 1970.

    Returns:
        The version of the closed head.

    Raises:
        CorruptShardError: the head is damaged.
        ConflictError: others kept changing the head; run again.
        NotSettledError: the head is closed, but too few places hold that head.
        StorageError: the storage is unwell.
    """
    version = await _close(storage, identity, since)
    await settle(storage, identity)
    return version


async def _close(storage: Storage, identity: Identity, since: int) -> str:
    for _ in range(MAX_ATTEMPTS):
        tables = HeadTables(generation=0, lineage=new_name())
        mode: PutMode = IfAbsent()
        with suppress(ObjectNotFoundError):
            loaded = await load_head(storage, identity)
            loaded.require_proof()
            if loaded.head.is_closed:
                return loaded.version
            tables, mode = loaded.head.tables, IfVersion(loaded.version)
        going = [Condemned(ref.name, since) for ref in tables.segments]
        empty = HeadTables(tables.generation, tables.lineage, commit_log=tables.commit_log)
        closed = replace(empty, condemned=(*tables.condemned, *going)).committed(new_name())
        with suppress(PreconditionFailedError):  # read again: who was first, or whether this was the echo of a success
            await storage.put(identity.head_key, encode_head(identity, closed, b"", closed=True), mode)
    raise ConflictError(f"{identity.head_key} was replaced by others {MAX_ATTEMPTS} times in a row; run again.")


def _check_history(head: WholeHead, base: WholeHead) -> None:
    """Refuse a head that cannot tell whether it holds a commit first tried on `base`."""
    if head.tables.lineage != base.tables.lineage:
        raise ConflictError(f"{base.identity.head_key} was repaired or made anew meanwhile; run again.")
    if head.tables.generation > base.tables.generation + COMMIT_LOG_LENGTH:
        raise ConflictError(
            f"{base.identity.head_key} moved on too far to tell whether this commit is in it; run again."
        )
