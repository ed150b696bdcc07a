"""`ZonedStorage`: many places as one store, for reading and writing, that one bad place cannot stop.

Each shard belongs to one zone, by its index; `zone` says how a zone is read and written, `zone_heads` which of its heads is to be believed,
`zone_copying` how its copies are brought up, `zone_descriptors` how the descriptors of all places are one.

Rules of this file:

1. A key belongs to the zone whose range holds the index in it. An index that no zone holds is an error of the zones file. What is no key of a store,
   and yet lies at a place and is listed, is looked for in the first zone.
2. A listing is that of the primary of each zone; where it cannot be read, the union of what all copies of the zone list, and nothing less. What lies in
   a zone that it does not belong to is not listed.
3. What a place knows by a token of its own (a leftover) carries the place in it.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from des.errors import SettingsError, StorageError, StorageTimeoutError
from des.storage.descriptor import DESCRIPTOR_KEY
from des.storage.protocol import Leftover, Level, ObjectInfo
from des.storage.zone_descriptors import Descriptors
from des.storage.zone_keys import index_of
from des.storage.zone_listing import list_level, list_zone
from des.storage.zone_mending import Mender
from des.storage.zone_settling import Settler
from des.tasks import run_all

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from des.storage.protocol import ObjectWriter, PlaceState, Purpose, PutMode, Storage, Suffix
    from des.storage.zone import Zone
    from des.storage.zone_copying import Verifier
    from des.storage.zone_observer import ZoneObserver


class ZonedStorage:
    """A store in zones, behind `des.storage.protocol.Storage`.

    Attributes:
        zones: in the order of their ranges.
        n_bits: of the store, for all days.
        descriptors: of all places.
        verifier: verifies what is copied.
    """

    backend = "multi_s3"

    def __init__(
        self,
        zones: Sequence[Zone],
        n_bits: int,
        verifier: Verifier,
        *,
        address: str = "zones",
        read_repair: bool = False,
        observer: ZoneObserver | None = None,
    ) -> None:
        """Take over zones with open places.

        Args:
            zones: none overlapping.
            n_bits: see the class.
            verifier: see there.
            address: the zones file, for people.
            read_repair: mend in the background what readers find damaged.
            observer: told of mending.
        """
        self.zones = tuple(sorted(zones, key=lambda zone: zone.start))
        self.n_bits = n_bits
        self.address = address
        self.verifier = verifier
        self.descriptors = Descriptors(self.zones, n_bits, address)
        self._settlers = {zone: Settler(zone, verifier) for zone in self.zones}
        self._mender = Mender(self.zone_of, verifier, observer) if read_repair else None
        for zone in self.zones:
            zone.when_damaged = self.mend

    def zone_of(self, key: str) -> Zone:
        """Return the zone that a key belongs to.

        Raises:
            SettingsError: no zone holds its index.
        """
        index = index_of(key, self.n_bits)
        if index is None:
            return self.zones[0]
        for zone in self.zones:
            if zone.start <= index <= zone.end:
                return zone
        raise SettingsError(
            f"shard index {index} (n_bits {self.n_bits}) lies in no zone of {self.address}; extend a range there."
        )

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        """See `Storage.read_suffix`."""
        if key == DESCRIPTOR_KEY:
            return await self.descriptors.read_suffix(length, unless)
        return await self.zone_of(key).read_suffix(key, length, unless, purpose)

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        """See `Storage.read_range`."""
        return await self.zone_of(key).read_range(key, start, end, version, purpose)

    def stream_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `Storage.stream_range`."""
        return self.zone_of(key).stream_range(key, start, end, version, purpose)

    async def head(self, key: str) -> ObjectInfo:
        """See `Storage.head`. The version of a segment is left out."""
        if key == DESCRIPTOR_KEY:
            return await self.zones[0].primary.head(key)
        return await self.zone_of(key).head(key)

    # ---- writing ------------------------------------------------------------------------------------------------------------

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """See `Storage.put`: at the primary, until `settle`."""
        if key == DESCRIPTOR_KEY:
            return await self.descriptors.put(data, mode)
        return await self.zone_of(key).put(key, data, mode)

    def open_writer(self, key: str) -> AbstractAsyncContextManager[ObjectWriter]:
        """See `Storage.open_writer`: at all places of the zone."""
        return self.zone_of(key).open_writer(key)

    async def delete(self, key: str) -> None:
        """See `Storage.delete`: at all places of the zone."""
        await self.zone_of(key).delete(key)

    async def settle(self, key: str) -> None:
        """See `Storage.settle`."""
        await self._settlers[self.zone_of(key)].settle(key)

    # ---- listing ------------------------------------------------------------------------------------------------------------

    async def list_level(self, prefix: str) -> Level:
        """See `Storage.list_level`."""
        levels: dict[int, Level] = {}
        zones = self._zones_under(prefix)

        async def list_zone(number: int) -> None:
            levels[number] = await list_level(zones[number], prefix)

        await run_all(list_zone, range(len(zones)), len(zones))
        objects: dict[str, ObjectInfo] = {}
        prefixes: set[str] = set()
        for number, zone in enumerate(zones):
            for info in levels[number].objects:
                if self._is_of(zone, info.key):
                    objects.setdefault(info.key, info)
            prefixes.update(below for below in levels[number].prefixes if self._is_of(zone, below))
        return Level(tuple(objects[key] for key in sorted(objects)), tuple(sorted(prefixes)))

    async def list(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        """See `Storage.list`."""
        zones = self._zones_under(prefix)
        async with AsyncExitStack() as stack:
            listings = [
                _Listing(zone, await stack.enter_async_context(aclosing(list_zone(zone, prefix)))) for zone in zones
            ]
            for listing in listings:
                await listing.advance()
            last = None
            while True:
                ahead = [listing for listing in listings if listing.info is not None]
                if not ahead:
                    return
                first = min(ahead, key=lambda listing: listing.key)
                if first.info is not None and first.key != last and self._is_of(first.zone, first.key):
                    last = first.key
                    yield first.info
                await first.advance()

    def _zones_under(self, prefix: str) -> Sequence[Zone]:
        return self.zones if index_of(prefix, self.n_bits) is None else (self.zone_of(prefix),)

    def _is_of(self, zone: Zone, key: str) -> bool:
        index = index_of(key, self.n_bits)
        return index is None or zone.start <= index <= zone.end

    # ---- places -------------------------------------------------------------------------------------------------------------

    async def now(self) -> datetime:
        """See `Storage.now`: by the clock of the first zone's primary, or of the next that answers."""
        failure: StorageError | None = None
        for zone in self.zones:
            with anyio.move_on_after(zone.place_timeout if zone is not self.zones[-1] else None):
                try:
                    return await zone.primary.now()
                except StorageError as error:
                    failure = failure or error
        raise failure or StorageTimeoutError("no primary tells the time.")

    async def list_leftovers(self) -> AsyncIterator[Leftover]:
        """See `Storage.list_leftovers`: of one key all places' as one, which began when the latest of them did."""
        for zone in self.zones:
            found: dict[str, builtins.list[tuple[int, Leftover]]] = {}
            for number, place in enumerate(zone.places):
                async for leftover in place.list_leftovers():
                    found.setdefault(leftover.key, []).append((number, leftover))
            for key, leftovers in found.items():
                tokens = [[number, one.token] for number, one in leftovers]
                token = json.dumps([zone.name, tokens])
                yield Leftover(key, token, max(one.began for _, one in leftovers))

    async def discard(self, leftover: Leftover) -> None:
        """See `Storage.discard`: at all places where it is."""
        name, tokens = json.loads(leftover.token)
        zone = next(zone for zone in self.zones if zone.name == name)
        held = {zone.places[number]: replace(leftover, token=token) for number, token in tokens}
        failures = await zone.everywhere(list(held), lambda place: place.discard(held[place]))
        for _, error in failures:
            raise error

    async def check_conditional_writes(self, key: str) -> None:
        """See `Storage.check_conditional_writes`: at every place; of what is no descriptor, where it is put."""
        if key == DESCRIPTOR_KEY:
            await self.descriptors.check_conditional_writes()
        else:
            await self.zone_of(key).primary.check_conditional_writes(key)

    def alternatives(self, key: str) -> Sequence[Storage]:
        """See `Storage.alternatives`: each place as it is, the primary first."""
        if key == DESCRIPTOR_KEY:
            return [place for zone in self.zones for place in zone.places]
        return self.zone_of(key).places

    def mend(self, key: str) -> None:
        """See `Storage.mend`: where `read_repair` is on."""
        if self._mender is not None and key != DESCRIPTOR_KEY:
            self._mender.note(key)

    async def mended(self) -> None:
        """Wait until all that was noted as damaged has been looked at."""
        if self._mender is not None:
            await self._mender.settled()

    def states(self) -> Sequence[PlaceState]:
        """See `Storage.states`: of all places."""
        return [place.state for zone in self.zones for place in zone.places]

    async def aclose(self) -> None:
        """Stop mending, and close all places."""
        with anyio.CancelScope(shield=True):
            if self._mender is not None:
                await self._mender.aclose()
            async with AsyncExitStack() as stack:
                for zone in self.zones:
                    stack.push_async_callback(zone.aclose)


class _Listing:
    """A zone's listing, one object ahead."""

    def __init__(self, zone: Zone, infos: AsyncIterator[ObjectInfo]) -> None:
        self.zone = zone
        self.info: ObjectInfo | None = None
        self._infos = infos

    @property
    def key(self) -> str:
        return self.info.key if self.info is not None else ""

    async def advance(self) -> None:
        self.info = await anext(self._infos, None)
