"""Running maintenance over the shards of a store: several at once, and one that cannot be maintained does not stop the others."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from des.errors import DESError, InvalidRequestError, SettingsError, StorageError
from des.routing import parse_day
from des.storage.descriptor import DESCRIPTOR_KEY, require_descriptor
from des.storage.opening import opened_storage
from des.store.listing import days_of
from des.store.shards import find_shards, identity_at
from des.store.whole_objects import WholeObjects
from des.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from des.errors import Status
    from des.settings import Settings
    from des.shard.layout import Identity
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import Storage

SHARDS_AT_ONCE = 4

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Place:
    """A store that is to be maintained."""

    storage: Storage
    descriptor: Descriptor


@asynccontextmanager
async def open_place(settings: Settings, *, for_writing: bool = True) -> AsyncIterator[Place]:
    """Open a store for maintenance.

    Args:
        settings: name the store.
        for_writing: prove first that two writers cannot both win there.

    Raises:
        SettingsError: there is no store, or its storage cannot do conditional writes.
        StorageError: the storage is unwell.
    """
    async with opened_storage(settings, WholeObjects()) as storage:
        descriptor = await require_descriptor(storage)
        descriptor.check_n_bits(settings.n_bits)
        if for_writing and not settings.single_writer:
            await storage.check_conditional_writes(DESCRIPTOR_KEY)
        yield Place(storage, descriptor)


async def chosen_shards(place: Place, names: Sequence[str]) -> list[Identity]:
    """Return shards by their names.

    Args:
        place: the store.
        names: days (`20240131`, `2024-01-31`), or shards (`20240131/C1`); none means all that are there.

    Raises:
        InvalidRequestError: a name is neither.
        StorageError: the storage is unwell.
    """
    chosen: dict[Identity, None] = {}
    for name in names or await days_of(place.storage):
        day, slash, digits = name.strip("/").partition("/")
        date = parse_day(day)
        if slash:
            identity = identity_at(place.descriptor, date, digits.removesuffix(".des").upper())
            if identity is None:
                n_bits = place.descriptor.n_bits_on(date)
                raise InvalidRequestError(
                    f"{name!r} is no shard of a day with n_bits {n_bits}; write it like 20240131/C1."
                )
            chosen[identity] = None
        else:
            chosen |= dict.fromkeys(
                found.identity for found in (await find_shards(place.storage, place.descriptor, date)).shards
            )
    return list(chosen)


@dataclass(frozen=True, slots=True)
class Failed:
    """A shard that could not be maintained, and why, in one sentence."""

    shard: str
    status: Status
    error: str


@dataclass(slots=True)
class Outcome(Generic[Result]):
    """What became of each shard."""

    results: list[Result] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)


async def maintain(
    shards: Iterable[Identity],
    work: Callable[[Identity], Awaitable[Result]],
    done: Callable[[], object] = lambda: None,
    *,
    at_once: int = SHARDS_AT_ONCE,
) -> Outcome[Result]:
    """Do something to each shard.

    Args:
        shards: which.
        work: what.
        done: told after each.
        at_once: how many at a time.

    Raises:
        StorageError: the storage is unwell: that would hit every shard. What is done stays done.
        SettingsError: the store does not fit the settings.
    """
    outcome: Outcome[Result] = Outcome()

    async def one(identity: Identity) -> None:
        try:
            outcome.results.append(await work(identity))
        except (StorageError, SettingsError):
            raise
        except DESError as error:
            outcome.failed.append(Failed(identity.shard_name, error.status, str(error)))
        done()

    await run_all(one, shards, at_once)
    outcome.failed.sort(key=lambda failed: failed.shard)
    return outcome
