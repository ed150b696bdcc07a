"""Several places that hold the same objects: damage in one and the same object whole in another, and what only one of them has left.

Only the reader can tell that bytes are damaged, so it is the reader that asks the other places. Rules:

1. A good checksum over something newer (`UnsupportedFormatError`) is no damage: no other place would say otherwise.
2. What another place says is checked like what the first one said. A place that lacks the object, or has it at another version, is of no help.
3. Where no place has it whole, the first finding stands; where one of them could not be asked, nothing is proven: that is the storage's trouble.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from des.errors import (
    CorruptShardError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
    StorageUnavailableError,
    UnsupportedFormatError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from des.shard.layout import Identity
    from des.storage.protocol import ObjectInfo, Storage

Result = TypeVar("Result")


async def first_good(storage: Storage, key: str, read: Callable[[Storage], Awaitable[Result]]) -> Result:
    """Return what `read` makes of an object, from another place where it is damaged in the first.

    Args:
        storage: what is read from first.
        key: the object that is read.
        read: reads from a storage, checks, and may be called again on another one.

    Raises:
        CorruptShardError: it is damaged in every place.
        StorageUnavailableError: it is damaged, and another place could not be asked.
        What `read` raises otherwise.
    """
    try:
        return await read(storage)
    except CorruptShardError as damage:
        return await elsewhere(storage, key, damage, read)


async def elsewhere(
    storage: Storage, key: str, damage: CorruptShardError, read: Callable[[Storage], Awaitable[Result]]
) -> Result:
    """Do as `first_good` does when the first reading has failed with `damage`; errors as there."""
    return (await _good(storage, key, damage, read, is_one_enough=True))[0]


async def everywhere(
    storage: Storage, key: str, damage: CorruptShardError, read: Callable[[Storage], Awaitable[Result]]
) -> list[Result]:
    """Do as `elsewhere`, but return what each of the places says that has it whole: at least one."""
    return await _good(storage, key, damage, read, is_one_enough=False)


async def _good(
    storage: Storage,
    key: str,
    damage: CorruptShardError,
    read: Callable[[Storage], Awaitable[Result]],
    *,
    is_one_enough: bool,
) -> list[Result]:
    if isinstance(damage, UnsupportedFormatError):
        raise damage
    found: list[Result] = []
    trouble: StorageError | None = None
    for place in storage.alternatives(key):
        try:
            found.append(await read(place))
        except UnsupportedFormatError:
            raise
        except (CorruptShardError, ObjectNotFoundError, PreconditionFailedError):
            continue
        except StorageError as error:
            trouble = error
        if found and is_one_enough:
            break
    if found:
        storage.mend(key)
        return found
    if trouble is not None:
        raise StorageUnavailableError(
            f"{key} is damaged where it was read, and another place that may have it whole cannot be asked: {trouble}"
        ) from damage
    raise damage


async def list_everywhere(storage: Storage, identity: Identity) -> list[ObjectInfo]:
    """List a shard's segments, in any place of a storage, in order of their keys.

    A plain listing is the primary's: enough for what heads point at. Whoever has to reach the last copy of something, or to miss none, asks all.

    Raises:
        StorageError: the storage, or one of its places, is unwell.
    """
    found: dict[str, ObjectInfo] = {}
    for place in storage.alternatives(identity.head_key) or [storage]:
        async for info in place.list(identity.segment_prefix):
            found.setdefault(info.key, info)
    return [found[key] for key in sorted(found)]
