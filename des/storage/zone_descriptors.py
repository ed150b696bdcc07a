"""The descriptors of a store in zones: one at every place, all with the same store id, n_bits and its zone's index range.

Rules:

1. What is read is one descriptor made of all: the common id, the whole range. Each place that can be asked is checked against the zones file and
   against the others; one that contradicts them is named, with the cure. A place that cannot be asked is checked when it can be: every object names its
   store and shard, so that no wrong one is ever taken.
2. A zone needs one place with a descriptor. Where a zone that can be asked has none, there is no store yet, and whoever writes makes what is missing.
3. The primary of the first zone decides the id: the descriptor is created there if absent and read back, then at all others with the same id. A copy
   that cannot be asked gets its own later.
4. It is never made at a place that has shards already: they may be another store's. A copy that is added to a store that has shards gets its own last,
   when all was brought up to it: a place without descriptor holds no store, and its word on what is not there counts for nothing. A primary without one,
   although its copies have theirs, has lost its content.
5. n_bits of a store in zones is one for all days, because the ranges are written in it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio

from des.errors import (
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.storage.descriptor import (
    DESCRIPTOR_KEY,
    Descriptor,
    Epoch,
    IndexRange,
    create_descriptor,
    has_shards,
    read_descriptor,
)
from des.storage.place import content_version
from des.storage.protocol import IfAbsent, Suffix
from des.tasks import open_tasks, run_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from des.storage.place import Place
    from des.storage.protocol import PutMode
    from des.storage.zone import Zone

_FIRST_DAY = "00010101"


class _Answers:
    """What the places said.

    Attributes:
        descriptors: each place's; None for "there is none". Who was not asked, or did not answer in time, is missing.
        errors: of those that failed.
    """

    def __init__(self) -> None:
        self.descriptors: dict[Place, Descriptor | None] = {}
        self.errors: dict[Place, StorageError] = {}

    async def ask_zone(self, zone: Zone) -> None:
        """Ask the places that are worth it, and the others where none of those knows a descriptor."""
        well = [place for place in zone.places if place.breaker.allows()]
        if not await self._ask(zone, well):
            await self._ask(zone, [place for place in zone.places if place not in well])

    async def _ask(self, zone: Zone, places: Sequence[Place]) -> bool:
        """Ask places at once, and tell whether any has a descriptor. One that is late is waited for only while there is no other answer."""
        found = anyio.Event()

        async def give_up() -> None:
            await anyio.sleep(zone.place_timeout)
            await found.wait()
            for place in places:
                if place not in self.descriptors and place not in self.errors:
                    place.was_late()
            beside.cancel_scope.cancel()

        async with open_tasks() as beside:
            beside.start_soon(give_up)
            async with anyio.create_task_group() as asking:
                for place in places:
                    asking.start_soon(self._ask_place, place, found)
        return found.is_set()

    async def _ask_place(self, place: Place, found: anyio.Event) -> None:
        try:
            self.descriptors[place] = await read_descriptor(place)
        except StorageError as error:
            self.errors[place] = error
        except SettingsError as error:
            raise SettingsError(f"{place}: {error}") from error
        place.holds_store = self.descriptors.get(place) is not None
        if place.holds_store:
            found.set()


class Descriptors:
    """The descriptors of all places of all zones."""

    def __init__(self, zones: Sequence[Zone], n_bits: int, name: str) -> None:
        """Speak for the places of `zones`.

        Args:
            zones: in the order of their ranges.
            n_bits: of the zones file.
            name: of the zones file, for messages.
        """
        self._zones = zones
        self._n_bits = n_bits
        self._name = name

    # ---- reading ------------------------------------------------------------------------------------------------------------

    async def read_suffix(self, length: int, unless: str | None) -> Suffix | None:
        """See `Storage.read_suffix`.

        Raises:
            ObjectNotFoundError: there is no store, or one that is not complete yet.
            SettingsError: a place contradicts the zones file or the other places.
            StorageUnavailableError: no place can be read.
        """
        whole = await self.read()
        data = whole.encode(revision=whole.store_id.hex())
        version = content_version(data, len(data))
        return None if version == unless else Suffix(data[-length:], len(data), version)

    async def read(self) -> Descriptor:
        """Return the descriptor of the whole store; errors as for `read_suffix`."""
        answers = await self._ask()
        found = [(zone, place, answers.descriptors.get(place)) for zone in self._zones for place in zone.places]
        present = [(zone, place, descriptor) for zone, place, descriptor in found if descriptor is not None]
        for zone in self._zones:
            self._check_whether_there(zone, answers.descriptors)
        if not present:
            told = "; ".join(f"{place}: {error}" for place, error in answers.errors.items())
            raise StorageUnavailableError(f"no place of {self._name} has a {DESCRIPTOR_KEY} that can be read ({told}).")
        for zone, place, descriptor in present:
            self._check(zone, place, descriptor, present[0][2].store_id, present[0][1])
        return Descriptor(present[0][2].store_id, self._epochs, IndexRange(self._n_bits, 0, (1 << self._n_bits) - 1))

    async def _ask(self) -> _Answers:
        answers = _Answers()
        await run_all(answers.ask_zone, self._zones, len(self._zones))
        return answers

    def _check_whether_there(self, zone: Zone, descriptors: Mapping[Place, Descriptor | None]) -> None:
        said = [place for place in zone.places if place in descriptors]
        with_one = [place for place in said if descriptors[place] is not None]
        if len(said) == len(zone.places) and not with_one:
            raise ObjectNotFoundError(f"there is no {DESCRIPTOR_KEY} at any place of zone {zone.name}.")
        if with_one and zone.primary in said and zone.primary not in with_one:
            raise SettingsError(
                f"the primary {zone.primary} has no {DESCRIPTOR_KEY}, but its copy {with_one[0].address} has: it has lost its content, or is another"
                f" place than it was; bring it back, or make the copy the primary in {self._name}."
            )

    @property
    def _epochs(self) -> tuple[Epoch, ...]:
        return (Epoch(_FIRST_DAY, self._n_bits),)

    def _check(self, zone: Zone, place: Place, descriptor: Descriptor, store_id: bytes, reference: Place) -> None:
        if descriptor.store_id != store_id:
            raise SettingsError(
                f"{place} belongs to another store than {reference} (store id {descriptor.store_id.hex()}, not {store_id.hex()}); give it an empty"
                f" bucket or prefix of its own in {self._name}."
            )
        if descriptor.epochs != self._epochs:
            bits = sorted({epoch.n_bits for epoch in descriptor.epochs})
            raise SettingsError(
                f"{place} has n_bits {', '.join(map(str, bits))}, but {self._name} says {self._n_bits} for all days; correct n_bits there, or name"
                " another place."
            )
        held = descriptor.index_range
        if (held.n_bits, held.start, held.end) != (self._n_bits, zone.start, zone.end):
            raise SettingsError(
                f"{place} holds the indices {held.start} to {held.end} (n_bits {held.n_bits}), but {self._name} says {zone.start} to {zone.end}; correct"
                " the range there, or name another place."
            )

    # ---- making -------------------------------------------------------------------------------------------------------------

    async def put(self, data: bytes, mode: PutMode) -> str:
        """See `Storage.put`: creates the store.

        Raises:
            PreconditionFailedError: it is there.
            SettingsError: this is no creation, or a place cannot be part of this store.
            StorageError: a primary cannot be reached.
        """
        if not isinstance(mode, IfAbsent):
            raise SettingsError(
                f"{DESCRIPTOR_KEY} of a store in zones is not changed: n_bits and ranges stand in {self._name}, the same for all days."
            )
        given = Descriptor.decode(data)
        given.check_n_bits(self._n_bits)
        made = await self.complete(given.store_id)
        if made.store_id != given.store_id:
            raise PreconditionFailedError(f"{DESCRIPTOR_KEY} exists already at {self._zones[0].primary}.")
        return content_version(encoded := made.encode(revision=made.store_id.hex()), len(encoded))

    async def complete(self, store_id: bytes | None = None) -> Descriptor:
        """Make sure that every place has its descriptor.

        Args:
            store_id: of a store that is to be made where the first primary has none; None: there must be one.

        Returns:
            The descriptor of the whole store.

        Raises:
            ObjectNotFoundError: there is no store, and none is to be made.
            SettingsError: a place cannot be part of this store.
            StorageError: a primary cannot be reached.
        """
        first = self._zones[0]
        found = await read_descriptor(first.primary)
        if found is None:
            store_id = store_id or await self._id_elsewhere()
            found = await self._make_at(first, first.primary, store_id)
        for zone in self._zones:
            await self.make(zone, zone.primary, found.store_id)
            is_new = not await has_shards(zone.primary)
            failures = await zone.everywhere(
                zone.copies, partial(self._make_at_copy, zone, found.store_id, is_new=is_new)
            )
            for _, error in failures:
                if not isinstance(error, StorageUnavailableError | StorageTimeoutError):
                    raise error
        return Descriptor(found.store_id, self._epochs, IndexRange(self._n_bits, 0, (1 << self._n_bits) - 1))

    async def _id_elsewhere(self) -> bytes:
        answers = await self._ask()
        for descriptor in answers.descriptors.values():
            if descriptor is not None:
                return descriptor.store_id
        raise ObjectNotFoundError(f"there is no {DESCRIPTOR_KEY} at any place of {self._name}.")

    async def _make_at_copy(self, zone: Zone, store_id: bytes, copy: Place, *, is_new: bool) -> None:
        if not await self.check(zone, copy, store_id) and is_new:
            await self.make(zone, copy, store_id)

    async def check(self, zone: Zone, place: Place, store_id: bytes) -> bool:
        """Tell whether a place has its descriptor.

        Raises:
            SettingsError: it has another one.
            StorageError: the place cannot be reached.
        """
        found = await read_descriptor(place)
        if found is not None:
            self._check(zone, place, found, store_id, self._zones[0].primary)
        return found is not None

    async def make(self, zone: Zone, place: Place, store_id: bytes, *, is_brought_up: bool = False) -> None:
        """Make sure that a place has the descriptor of this store.

        Args:
            zone: the zone.
            place: one of its places.
            store_id: of the store.
            is_brought_up: all shards of the primary were brought to this copy, so it may have shards.

        Raises:
            SettingsError: it has another one, or shards without one.
            StorageError: the place cannot be reached.
        """
        found = await read_descriptor(place)
        if found is None:
            found = await self._make_at(zone, place, store_id, is_brought_up=is_brought_up)
        self._check(zone, place, found, store_id, self._zones[0].primary)

    async def _make_at(self, zone: Zone, place: Place, store_id: bytes, *, is_brought_up: bool = False) -> Descriptor:
        fresh = Descriptor(store_id, self._epochs, IndexRange(self._n_bits, zone.start, zone.end))
        lost = f"{place} has shards but no {DESCRIPTOR_KEY}; restore it with `des init --zones {self._name} --adopt`, or name an empty place there."
        return await create_descriptor(place, fresh, lost=None if is_brought_up else lost)

    async def check_conditional_writes(self) -> None:
        """See `Storage.check_conditional_writes`: at every place. A copy that cannot be reached may be missing as far as `write_quorum` goes.

        Raises:
            SettingsError: a place cannot do conditional writes, or contradicts the zones file.
            StorageError: a primary, or more copies than may be missing, cannot be reached.
        """
        await self.complete()
        for zone in self._zones:
            failures = await zone.everywhere(zone.places, self._check_place)
            for place, error in failures:
                if place.is_primary or not isinstance(error, StorageError):
                    raise error
            held = len(zone.places) - len(failures)
            if held < zone.quorum:
                told = "; ".join(f"{place}: {error}" for place, error in failures)
                raise StorageUnavailableError(
                    f"only {held} of the {zone.quorum} places of zone {zone.name} that write_quorum asks for can be written ({told}); nothing was written."
                ) from failures[0][1]

    @staticmethod
    async def _check_place(place: Place) -> None:
        try:
            await place.check_conditional_writes(DESCRIPTOR_KEY)
        except ObjectNotFoundError as error:
            raise StorageUnavailableError("it was not brought up yet; run `des zones sync`.") from error
