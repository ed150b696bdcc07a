"""The index: from a file_id to its entry, by the descriptor, heads and pages, with as few reads as proof allows.

Rules of this file:

1. A cached fact is bound to the version it describes. Pages are read only at their head's version; a mismatch reads the head again,
   at once the first time and then with growing pauses: a store that never keeps to a version is not asked in a circle.
2. "Not found" is proof: a verified head that was asked for no earlier than `negative_ttl` before the call, or its absence, and then under a
   descriptor that was asked for no earlier either: where a whole store is out of reach, its heads look absent too. Trouble of the storage
   is never "not found". Neither is a copy's word where the primary cannot be asked: what such a head has may be served, what it lacks or has as
   deleted may be there since, and what is older than a head that was seen here is not taken at all.
3. However many tasks want the same head or page, one request fetches it.
4. Times are `time.monotonic` seconds. A call says as of when it asks, so that its answer does not age while it works.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import anyio

from des.errors import CorruptShardError, ObjectNotFoundError, PreconditionFailedError
from des.routing import shard_index
from des.shard.layout import Entry, Identity
from des.storage.descriptor import Descriptor, require_descriptor
from des.store.cache import ByteLRU, SingleFlight
from des.store.heads import LoadedHead, load_head, read_page, replace_page, unproven

if TYPE_CHECKING:
    from des.settings import Settings
    from des.shard.reading import PageRef
    from des.storage.protocol import Storage

# Days and shards whose place is kept: it is asked for at every read, and computing it takes longer than the rest of finding it.
_KEPT_PLACES = 4096
# Seconds before a head is read once more because its pages were not at its version.
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Looked:
    """The outcome of looking for a head: its tail or None for its absence, asked for at `asked_at`."""

    loaded: LoadedHead | None
    asked_at: float


class Index:
    """Finds entries."""

    def __init__(self, storage: Storage, settings: Settings, cache: ByteLRU) -> None:
        """Read from `storage`, keep in `cache`, for the times that `settings` allow."""
        self._storage = storage
        self._settings = settings
        self._cache = cache
        self._places: Places | None = None
        self._described_at = 0.0
        self._descriptor_flight: SingleFlight[None] = SingleFlight()
        self._head_flight: SingleFlight[Looked] = SingleFlight()
        self._page_flight: SingleFlight[bytes] = SingleFlight()

    async def descriptor(self) -> Descriptor:
        """Return the store's descriptor, read again every `index_ttl`.

        Raises:
            SettingsError: there is none, or it contradicts the settings.
            StorageError: the storage is unwell.
        """
        return (await self.places(time.monotonic())).descriptor

    async def places(self, as_of: float) -> Places:
        """Return where files lie, by a descriptor no older than `index_ttl` then. Errors as for `descriptor`."""
        return await self._described(as_of - self._settings.index_ttl)

    async def _described(self, not_before: float) -> Places:
        while self._places is None or self._described_at < not_before:
            await self._descriptor_flight.run("descriptor", self._read_descriptor)
        return self._places

    async def _read_descriptor(self) -> None:
        asked_at = time.monotonic()
        descriptor = await require_descriptor(self._storage)
        descriptor.check_n_bits(self._settings.n_bits)
        if self._places is None or self._places.descriptor != descriptor:
            self._places = Places(descriptor)
        self._described_at = asked_at

    def known(self, identifier: bytes, day: str, as_of: float) -> tuple[LoadedHead, Entry] | None:
        """Return what `lookup` would where the caches suffice for it. Neither None proves anything, nor that a file is deleted.

        Raises:
            SettingsError, CorruptShardError: as for `lookup`.
        """
        not_before = as_of - self._settings.index_ttl
        places = self._places
        if places is None or self._described_at < not_before:
            return None
        looked = self._cache.peek(places.shard_of(identifier, day), Looked)
        if looked is None or looked.asked_at < not_before or looked.loaded is None:
            return None
        loaded = looked.loaded
        ref = loaded.find_page(identifier)
        if ref is None:
            return None
        try:
            page = loaded.page_that_came_along(ref) or self._cache.peek(_page_key(loaded, ref), bytes)
        except CorruptShardError:
            return None  # another place may have it whole
        entry = loaded.find(page, identifier) if page else None
        return (loaded, entry) if entry else None

    async def lookup(self, identifier: bytes, day: str, as_of: float) -> tuple[LoadedHead, Entry] | None:
        """Return a file's entry and the head it stands in; None is proof that there is no such file.

        Args:
            identifier: the file_id.
            day: YYYYMMDD.
            as_of: when the caller was asked; facts may be older than this by their TTLs.

        Raises:
            SettingsError: the shard lies in another zone, or there is no store.
            CorruptShardError: the head or the page is damaged.
            StorageUnavailableError: the primary cannot be asked, and the copy that answered may lag behind.
            StorageError: the storage is unwell.
        """
        not_before = as_of - self._settings.index_ttl
        proof = as_of - self._settings.negative_ttl
        pause = 0.0
        while True:
            identity = (await self.places(as_of)).shard_of(identifier, day)
            looked = await self.look(identity, not_before)
            if looked.loaded is not None:
                try:
                    entry = await self._entry(looked.loaded, identifier)
                except PreconditionFailedError:
                    if pause:
                        await anyio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                    pause = min(_LONGEST_PAUSE, pause * 2 or _FIRST_PAUSE)
                    not_before = time.monotonic()  # the head was replaced: only a newer look will do
                    continue
                except ObjectNotFoundError as error:
                    not_before = time.monotonic()
                    await self.require_newer(looked.loaded, not_before, error)
                    continue
                if entry is not None and (looked.loaded.is_proof or not entry.deleted):
                    return looked.loaded, entry
                if looked.asked_at >= proof:
                    looked.loaded.require_proof()
                    return None
            elif looked.asked_at >= proof and (await self._described(proof)).shard_of(identifier, day) == identity:
                return None
            not_before = max(not_before, proof)

    async def look(self, identity: Identity, not_before: float) -> Looked:
        """Return the head of a shard as it was asked for no earlier than `not_before`."""
        while True:
            looked = self._cache.get(identity, Looked)
            if looked is None or looked.asked_at < not_before:
                known = looked.loaded if looked else None
                looked = await self._head_flight.run(identity, partial(self._ask, identity, known))
            if looked.asked_at >= not_before:
                return looked

    async def look_for_all(self, identity: Identity, not_before: float) -> Looked:
        """Do as `look` for whoever wants to know all that is in a shard.

        Raises:
            StorageUnavailableError: the primary cannot be asked, and the copy that answered may lag behind.
            CorruptShardError, StorageError: as for `lookup`.
        """
        looked = await self.look(identity, not_before)
        if looked.loaded is not None:
            looked.loaded.require_proof()
        return looked

    async def require_newer(self, loaded: LoadedHead, not_before: float, cause: ObjectNotFoundError) -> None:
        """Make sure that a head that points at an object that is gone is no longer the head.

        Raises:
            CorruptShardError: it is.
            StorageUnavailableError: the primary cannot be asked, and the copy that answered may lag behind.
            StorageError: the storage is unwell.
        """
        identity = loaded.head.identity
        looked = await self.look(identity, not_before)
        if looked.loaded is not None and looked.loaded.version == loaded.version:
            looked.loaded.require_proof()
            raise CorruptShardError(f"{identity.head_key}: it points at an object that is gone. {cause}") from cause

    async def _ask(self, identity: Identity, known: LoadedHead | None) -> Looked:
        asked_at = time.monotonic()
        try:
            loaded = await load_head(self._storage, identity, unless=known.version if known else None)
            looked = Looked(_newer(loaded, known), asked_at)
        except ObjectNotFoundError:
            looked = Looked(None, asked_at)
        self._cache.put(identity, looked, looked.loaded.weight if looked.loaded else 0)
        return looked

    async def _entry(self, loaded: LoadedHead, identifier: bytes) -> Entry | None:
        ref = loaded.find_page(identifier)
        if ref is None:
            return None
        page: memoryview | bytes | None
        try:
            page = loaded.page_that_came_along(ref)
        except CorruptShardError as damage:
            replaced = partial(replace_page, self._storage, loaded, ref, damage)
            page = await self._page_flight.run((_page_key(loaded, ref), loaded.version), replaced)
        if page is None:
            key = _page_key(loaded, ref)
            page = self._cache.get(key, bytes)
            if page is None:
                page = await self._page_flight.run(
                    (key, loaded.version), partial(read_page, self._storage, loaded, ref)
                )
                self._cache.put(key, page, len(page))
        return loaded.find(page, identifier)


def _newer(loaded: LoadedHead | None, known: LoadedHead | None) -> LoadedHead | None:
    """Return what counts of a head that was asked for, None where it is still the known one on proof, and the one known before.

    Raises:
        StorageUnavailableError: it is a copy's that may lag behind, and what was known before is newer or of another lineage.
    """
    if loaded is None:
        return replace(known, is_proof=True) if known is not None and not known.is_proof else known
    if known is not None and not loaded.is_proof:
        seen, said = known.head.tables, loaded.head.tables
        if said.lineage != seen.lineage or said.generation < seen.generation:
            raise unproven(loaded.head.identity)
    return loaded


def _page_key(loaded: LoadedHead, ref: PageRef) -> tuple[Identity, int, bytes]:
    """Return what a page is kept by: its content and not its version, so that a commit leaves most of them in the cache."""
    return loaded.head.identity, ref.checksum, ref.first_key


class Places:
    """Where files lie under one descriptor.

    Attributes:
        descriptor: the store's.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        """Compute by `descriptor`."""
        self.descriptor = descriptor
        self._n_bits_on = lru_cache(_KEPT_PLACES)(descriptor.n_bits_on)
        self._identity = lru_cache(_KEPT_PLACES)(partial(_owned_shard, descriptor))

    def shard_of(self, identifier: bytes, day: str) -> Identity:
        """Return the shard that holds a file_id on a day (YYYYMMDD).

        Raises:
            SettingsError: the shard lies in another zone.
        """
        n_bits = self._n_bits_on(day)
        return self._identity(day, n_bits, shard_index(identifier, n_bits))


def _owned_shard(descriptor: Descriptor, day: str, n_bits: int, index: int) -> Identity:
    descriptor.check_owned(index, n_bits)
    return Identity(descriptor.store_id, day, n_bits, index)
