"""Asking each place of a store in zones how it is: whether it answers, belongs to the store, and can keep two writers apart. Nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from des.errors import DESError
from des.storage.descriptor import DESCRIPTOR_KEY, IndexRange, read_descriptor
from des.storage.opening import open_storage
from des.store.listing import days_of
from des.tasks import run_all

if TYPE_CHECKING:
    from des.errors import Status
    from des.settings import Settings
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import Storage
    from des.storage.zones_config import PlaceConfig, ZoneConfig, ZonesConfig

PLACES_AT_ONCE = 16
_ROUND_TRIPS = 3


@dataclass(frozen=True, slots=True)
class Probed:
    """What a place said.

    Attributes:
        zone: its zone's name.
        place: its address.
        endpoint_url: as the file or the settings say; None for AWS.
        is_primary: whether it is its zone's primary.
        status: `ok`; `invalid` where it does not fit the file, or cannot do conditional writes; otherwise the trouble it is in.
        round_trip: seconds that the fastest of a few small reads took; None where there was no answer.
        store_id: that of its descriptor; None where it has none, which is as it should be in a place that was never written to.
        conditional_writes: whether two writers there cannot both win; None where that was not found out.
        error: what is wrong, in one sentence; None where nothing is.
    """

    zone: str
    place: str
    endpoint_url: str | None
    is_primary: bool
    status: Status = "ok"
    round_trip: float | None = None
    store_id: str | None = None
    conditional_writes: bool | None = None
    error: str | None = None


async def probe_zones(config: ZonesConfig, settings: Settings) -> list[Probed]:
    """Ask all places of a zones file; a place in trouble is a result, no error.

    Args:
        config: the file.
        settings: what holds where it says nothing.
    """
    places = [(zone, place) for zone in config.zones for place in zone.places]
    found: dict[int, Probed] = {}

    async def one(number: int) -> None:
        zone, place = places[number]
        found[number] = await _probe(zone, place, settings, config.n_bits)

    await run_all(one, range(len(places)), PLACES_AT_ONCE)
    return of_one_store([found[number] for number in range(len(places))])


async def _probe(zone: ZoneConfig, place: PlaceConfig, settings: Settings, n_bits: int) -> Probed:
    alone = place.resolved(settings)
    s3 = place.s3_config(settings)
    asked = Probed(zone.name, s3.address, s3.endpoint_url, place is zone.primary)
    try:
        storage = await open_storage(alone)
    except DESError as error:
        return replace(asked, status=error.status, error=str(error))
    try:
        held = IndexRange(n_bits, zone.start, zone.end)
        return await probe_place(asked, storage, held, shares=not settings.single_writer)
    finally:
        with anyio.CancelScope(shield=True):
            await storage.aclose()


async def probe_place(asked: Probed, storage: Storage, held: IndexRange, *, shares: bool = True) -> Probed:
    """Ask one place.

    Args:
        asked: what is known of it.
        storage: it.
        held: the range that it should hold.
        shares: whether it must keep two writers apart.

    Returns:
        What is known now.
    """
    try:
        descriptor = await read_descriptor(storage)
        asked = replace(asked, round_trip=await _round_trip(storage))
        if descriptor is None:
            wrong = await _wrong_without_descriptor(storage, is_primary=asked.is_primary)
            return replace(asked, status="invalid", error=wrong) if wrong else asked
        asked = replace(asked, store_id=descriptor.store_id.hex())
        wrong = wrong_with_descriptor(descriptor, held)
        if wrong:
            return replace(asked, status="invalid", error=wrong)
        if shares:
            asked = replace(asked, conditional_writes=False)
            await storage.check_conditional_writes(DESCRIPTOR_KEY)
            asked = replace(asked, conditional_writes=True)
    except DESError as error:
        # Only a clear answer says that there are none.
        unclear = None if error.status != "invalid" else asked.conditional_writes
        return replace(asked, status=error.status, error=str(error), conditional_writes=unclear)
    return asked


async def _round_trip(storage: Storage) -> float:
    """Return the seconds that a small read takes on a connection that is there."""
    fastest = float("inf")
    for _ in range(_ROUND_TRIPS):
        began = time.monotonic()
        await read_descriptor(storage)
        fastest = min(fastest, time.monotonic() - began)
    return fastest


async def _wrong_without_descriptor(storage: Storage, *, is_primary: bool) -> str | None:
    days = await days_of(storage)
    if not days:
        return None
    cure = (
        "restore it with `des init --zones FILE --adopt`"
        if is_primary
        else "bring it up to the end with `des zones sync`"
    )
    return f"it has shards (of {days[0]}, for instance) but no {DESCRIPTOR_KEY}; {cure}."


def wrong_with_descriptor(descriptor: Descriptor, held: IndexRange) -> str | None:
    """Return what about a descriptor does not fit a place that should hold a range; None where it fits."""
    there = descriptor.index_range
    if len(descriptor.epochs) > 1:
        return f"it is a store with several n_bits ({DESCRIPTOR_KEY}); a store in zones has one for all days."
    if descriptor.epochs[0].n_bits != held.n_bits:
        return f"its n_bits is {descriptor.epochs[0].n_bits} ({DESCRIPTOR_KEY}), the file's is {held.n_bits}; mend the file."
    if there != held:
        return (
            f"it holds {there.start} to {there.end} ({DESCRIPTOR_KEY}), the file says {held.start} to {held.end}; mend the file, or give the zone"
            " places of its own."
        )
    return None


def of_one_store(places: list[Probed]) -> list[Probed]:
    """Return what places said, and whose store id is not that of the first that has one, found wrong."""
    first = next((one for one in places if one.store_id is not None), None)
    if first is None:
        return places
    return [
        one
        if one.store_id in {None, first.store_id} or one.error
        else replace(
            one,
            status="invalid",
            error=f"its store id is {one.store_id}, that of {first.place} is {first.store_id}: it is a place of another store; mend the file.",
        )
        for one in places
    ]
