"""Growth: more shards a day from some coming day on; and the restoring of a lost descriptor from the headers of what is there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from des.errors import (
    ConflictError,
    CorruptShardError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageError,
)
from des.routing import MAX_N_BITS, parse_day
from des.shard.layout import HEADER, decode_header
from des.storage.descriptor import (
    DESCRIPTOR_KEY,
    Descriptor,
    Epoch,
    IndexRange,
    NewerDescriptorError,
    read_descriptor,
    require_descriptor,
)
from des.storage.protocol import IfAbsent, IfVersion
from des.store.listing import days_of

if TYPE_CHECKING:
    from des.shard.layout import Identity
    from des.storage.protocol import PutMode, Storage
    from des.storage.zones import ZonedStorage

_FIRST_DAY = "00010101"


async def grow(storage: Storage, first_day: str, n_bits: int) -> Descriptor:
    """Let `n_bits` bits select the shard from a day on; days that have shards are never touched.

    Args:
        storage: the store's place.
        first_day: YYYYMMDD or YYYY-MM-DD, after all days that have shards.
        n_bits: 1 to 16.

    Returns:
        The store's descriptor, which says so; it may have said so already.

    Raises:
        InvalidRequestError: an impossible day.
        SettingsError: there is no store, or days from then on have shards or an n_bits of their own already.
        ConflictError: another change of the descriptor was first; run again.
        StorageError: the storage is unwell; run again.
    """
    day = parse_day(first_day)
    before = await require_descriptor(storage)
    if before.epochs[-1] == Epoch(day, n_bits):
        return before
    if before.epochs[-1].first_day >= day:
        last = before.epochs[-1]
        raise SettingsError(
            f"n_bits is {last.n_bits} from {last.first_day} on already; it can be changed for days after that one."
        )
    if n_bits < before.index_range.n_bits and before.index_range != _whole(before.index_range.n_bits):
        raise SettingsError(f"this place is a zone cut at n_bits {before.index_range.n_bits}; n_bits cannot be less.")
    after = replace(before, epochs=(*before.epochs, Epoch(day, n_bits)))
    await _refuse_days_with_shards(storage, day)
    await _swap(storage, before, after)
    # Only now is it certain that no packer that read the descriptor before begins a shard of such a day: who began one meanwhile is found here.
    try:
        await _refuse_days_with_shards(storage, day)
    except SettingsError:
        await _swap(storage, after, before)
        raise
    return after


def _whole(n_bits: int) -> IndexRange:
    return IndexRange(n_bits, 0, (1 << n_bits) - 1)


async def _refuse_days_with_shards(storage: Storage, first_day: str) -> None:
    taken = [day for day in await days_of(storage) if day >= first_day]
    if taken:
        raise SettingsError(f"{taken[0]} has shards already, so its n_bits stays; choose a day after {taken[-1]}.")


async def _swap(storage: Storage, before: Descriptor, after: Descriptor) -> None:
    suffix = await storage.read_suffix(DESCRIPTOR_KEY, 1 << 20)
    if suffix is None or Descriptor.decode(suffix.data) != before:
        raise ConflictError("the descriptor was changed by somebody else meanwhile; run again.")
    try:
        await storage.put(DESCRIPTOR_KEY, after.encode(), IfVersion(suffix.version))
    except StorageDeniedError:
        raise
    except StorageError as error:
        # Unknown: what is there now decides.
        if await require_descriptor(storage) != after:
            raise ConflictError("the descriptor was changed by somebody else meanwhile; run again.") from error


async def adopt_zones(storage: ZonedStorage) -> tuple[Descriptor, list[str]]:
    """Restore what is lost or damaged of the primaries' descriptors of a store in zones, each with its zone's range.

    A copy without one may be on its way to having everything: it gets its own from `des zones sync`, last.

    Returns:
        The descriptor of the whole store, and the addresses of the primaries whose descriptors had to be restored.

    Raises:
        SettingsError, CorruptShardError: as for `adopt`; or a place does not fit the zones file.
        StorageError: a place is unwell.
    """
    restored = []
    for zone in storage.zones:
        if await days_of(zone.primary):
            _, is_new = await adopt(zone.primary, IndexRange(storage.n_bits, zone.start, zone.end))
            restored += [zone.primary.address] if is_new else []
    return await storage.descriptors.complete(), restored


async def adopt(storage: Storage, held: IndexRange | None = None) -> tuple[Descriptor, bool]:
    """Restore a lost or damaged descriptor from the headers of the objects that are there.

    What no object tells is gone: an n_bits that was planned for days without shards, and that the place was one zone of several.

    Args:
        storage: the place.
        held: the range of shard indices that it holds, as a zones file says; None: all of them.

    Returns:
        The descriptor, and whether it had to be restored.

    Raises:
        SettingsError: the descriptor is of a newer format; or there is nothing to restore it from; or objects of several stores, or of another n_bits
            than the zones file's, lie here.
        CorruptShardError: no object of some day can be read.
        StorageError: the storage is unwell.
    """
    mode: PutMode = IfAbsent()
    try:
        descriptor = await read_descriptor(storage)
    except NewerDescriptorError:
        raise
    except SettingsError:
        suffix = await storage.read_suffix(DESCRIPTOR_KEY, 1)
        descriptor = None
        if suffix is not None:
            mode = IfVersion(suffix.version)
    if descriptor is not None:
        return descriptor, False
    store_ids, epochs = await _told_by_headers(storage)
    if not store_ids:
        first = "" if isinstance(mode, IfAbsent) else f"delete its {DESCRIPTOR_KEY} and "
        raise SettingsError(
            f"there is nothing at {storage.address} to restore a descriptor from; {first}make a store with `des init`."
        )
    if len(store_ids) > 1:
        raise SettingsError(f"the objects at {storage.address} belong to {len(store_ids)} stores; part them first.")
    if held is not None and epochs != [Epoch(_FIRST_DAY, held.n_bits)]:
        there = ", ".join(str(epoch.n_bits) for epoch in epochs)
        raise SettingsError(
            f"the objects at {storage.address} have n_bits {there}, but the zones file says {held.n_bits}."
        )
    held = held or _whole(min(max(e.n_bits for e in epochs), MAX_N_BITS))
    restored = Descriptor(store_ids.pop(), tuple(epochs), held)
    await storage.put(DESCRIPTOR_KEY, restored.encode(), mode)
    return await require_descriptor(storage), True


async def _told_by_headers(storage: Storage) -> tuple[set[bytes], list[Epoch]]:
    """Return the ids of the stores that objects belong to, and n_bits by date as they say it."""
    epochs: list[Epoch] = []
    store_ids: set[bytes] = set()
    for day in await days_of(storage):
        identity = await _identity_in(storage, day)
        if identity is None:
            continue
        store_ids.add(identity.store_id)
        if not epochs or epochs[-1].n_bits != identity.n_bits:
            epochs.append(Epoch(day if epochs else _FIRST_DAY, identity.n_bits))
    return store_ids, epochs


async def _identity_in(storage: Storage, day: str) -> Identity | None:
    """Return what the first readable header of a day says; None where an expired day left nothing but directories, as some S3 servers do for a while."""
    failure: CorruptShardError | None = None
    async for info in storage.list(f"{day}/"):
        if not info.key.endswith(".des"):
            continue
        failure = failure or CorruptShardError(f"no object of {day} can be read.")
        try:
            version = (await storage.head(info.key)).version
            data = await storage.read_range(info.key, 0, HEADER.size, version=version, purpose="index")
            identity, _ = decode_header(data)
        except (ObjectNotFoundError, PreconditionFailedError):
            continue  # replaced or collected meanwhile
        except CorruptShardError as error:
            failure = CorruptShardError(f"{info.key}: {error}")
            continue
        if identity.date == day:
            return identity
    if failure is not None:
        raise failure
    return None
