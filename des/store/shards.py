"""Which shards a day has, told from the keys that are there: by their heads, and by their segments where a head is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from des.shard.layout import NAME_BYTES, Identity

if TYPE_CHECKING:
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import ObjectInfo, Storage


@dataclass(frozen=True, slots=True)
class FoundShard:
    """A shard of a day.

    Attributes:
        identity: which.
        head_bytes: size of its head; 0 where a listing shows none.
    """

    identity: Identity
    head_bytes: int


@dataclass(frozen=True, slots=True)
class FoundDay:
    """What lies under a day.

    Attributes:
        shards: in the order of their indices.
        strangers: containers whose key is no shard's on a day with this n_bits.
        leftovers: objects that are no part of a shard.
    """

    shards: tuple[FoundShard, ...]
    strangers: tuple[ObjectInfo, ...]
    leftovers: tuple[ObjectInfo, ...]


async def find_shards(storage: Storage, descriptor: Descriptor, day: str) -> FoundDay:
    """List a day.

    Args:
        storage: the store's place.
        descriptor: the store's.
        day: YYYYMMDD.

    Raises:
        StorageError: the storage is unwell.
    """
    level = await storage.list_level(f"{day}/")
    shards: dict[int, FoundShard] = {}
    strangers: list[ObjectInfo] = []
    leftovers: list[ObjectInfo] = []
    for info in level.objects:
        identity = identity_at(descriptor, day, info.key.removeprefix(f"{day}/").removesuffix(".des"))
        if identity is not None and identity.head_key == info.key:
            shards[identity.shard_index] = FoundShard(identity, info.size)
        else:
            (strangers if info.key.endswith(".des") else leftovers).append(info)
    for prefix in level.prefixes:
        identity = identity_at(descriptor, day, prefix.removeprefix(f"{day}/").rstrip("/"))
        if identity is not None:
            shards.setdefault(identity.shard_index, FoundShard(identity, 0))
        else:
            leftovers += [info async for info in storage.list(prefix)]
    return FoundDay(tuple(shards[index] for index in sorted(shards)), tuple(strangers), tuple(leftovers))


def identity_at(descriptor: Descriptor, day: str, digits: str) -> Identity | None:
    """Return the shard of a day whose index is written in these digits; None: no shard's is."""
    n_bits = descriptor.n_bits_on(day)
    try:
        index = int(digits, 16)
    except ValueError:
        return None
    if not 0 <= index < 1 << n_bits:
        return None
    identity = Identity(descriptor.store_id, day, n_bits, index)
    return identity if identity.shard_hex == digits else None


def segment_name(identity: Identity, key: str) -> bytes | None:
    """Return the name of the shard's segment that has a key; None: no segment has it."""
    digits = key.removeprefix(identity.segment_prefix).removesuffix(".des")
    try:
        name = bytes.fromhex(digits)
    except ValueError:
        return None
    return name if len(name) == NAME_BYTES and identity.segment_key(name) == key else None
