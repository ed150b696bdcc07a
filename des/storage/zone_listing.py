"""Listing one zone: as its primary does; where that cannot be read, the union of what all copies list, and nothing less.

An object that a copy lacks may be one that was committed at the primary alone. So copies stand in only if they hold every acknowledged commit between
them (`write_quorum` is not 1), and each of them was brought up as a whole once.
"""

from __future__ import annotations

from contextlib import aclosing
from heapq import merge
from typing import TYPE_CHECKING, TypeVar

import anyio

from des.errors import StorageError, StorageTimeoutError, StorageUnavailableError
from des.storage.protocol import Level
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from des.storage.place import Place
    from des.storage.protocol import ObjectInfo
    from des.storage.zone import Zone

T = TypeVar("T")


async def list_level(zone: Zone, prefix: str) -> Level:
    """List one level of a zone; see `Storage.list_level`.

    Raises:
        StorageError: neither the primary nor all copies can be asked.
    """
    failure: StorageError | None = None
    if zone.primary.breaker.allows() or not zone.copies:
        with anyio.move_on_after(zone.place_timeout if zone.copies else None):
            try:
                return await zone.primary.list_level(prefix)
            except StorageError as error:
                failure = error
        failure = failure or _late(zone)
    levels = await _ask_all_copies(zone, lambda copy: copy.list_level(prefix), failure)
    objects = {info.key: info for level in levels for info in level.objects}
    prefixes = {below for level in levels for below in level.prefixes}
    return Level(tuple(objects[key] for key in sorted(objects)), tuple(sorted(prefixes)))


async def list_zone(zone: Zone, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
    """List a zone; see `Storage.list`. Where the primary fails midway, the copies go on from there. Errors as for `list_level`."""
    reached = ""
    failure: StorageError | None = None
    if zone.primary.breaker.allows() or not zone.copies:
        async with aclosing(zone.primary.list(prefix)) as infos:  # type: ignore[type-var]  # it is a generator
            while failure is None:
                try:
                    with anyio.fail_after(zone.place_timeout if zone.copies else None):
                        info = await anext(infos, None)
                except TimeoutError:
                    failure = _late(zone)
                except StorageError as error:
                    failure = error
                else:
                    if info is None:
                        return
                    reached = info.key
                    yield info

    async def rest_of(copy: Place) -> list[ObjectInfo]:
        return [info async for info in copy.list(prefix) if info.key > reached]

    for info in merge(*await _ask_all_copies(zone, rest_of, failure), key=lambda info: info.key):
        if info.key > reached:
            reached = info.key
            yield info


def _late(zone: Zone) -> StorageError:
    zone.primary.was_late()
    return StorageTimeoutError(f"no answer within {zone.place_timeout} s.")


async def _ask_all_copies(zone: Zone, ask: Callable[[Place], Awaitable[T]], failure: StorageError | None) -> list[T]:
    if not zone.copies and failure is not None:
        raise failure
    answers: dict[Place, T] = {}

    async def take(copy: Place) -> None:
        answers[copy] = await ask(copy)

    said = f"the primary {zone.primary} cannot be listed ({failure or 'it is left alone after failures'})"
    if not zone.heads.copies_prove or not all(copy.holds_store for copy in zone.copies):
        raise StorageUnavailableError(
            f"{said}, and its copies need not have all that it has; try again later."
        ) from failure
    try:
        await run_all(take, zone.copies, len(zone.copies))
    except StorageError as error:
        raise StorageUnavailableError(f"{said}, and not all of its copies can ({error}); try again later.") from failure
    return [answers[copy] for copy in zone.copies]
