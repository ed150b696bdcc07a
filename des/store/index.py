"""The index: from a file_id to its entry, by the descriptor, heads and pages, with as few reads as proof allows.

Rules of this file:

1. A cached fact is bound to the version it describes. Pages are read only at their head's version; a mismatch reads the head again.
2. "Not found" is proof: a verified head that was asked for no earlier than `negative_ttl` before the call, or its absence under a readable
   descriptor. Trouble of the storage is never "not found".
3. However many tasks want the same head or page, one request fetches it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError, PreconditionFailedError
from des.routing import shard_index
from des.shard.layout import Entry, Identity
from des.storage.descriptor import Descriptor, require_descriptor
from des.store.cache import ByteLRU, SingleFlight
from des.store.heads import LoadedHead, load_head, read_page

if TYPE_CHECKING:
    from des.settings import Settings
    from des.storage.protocol import Storage


@dataclass(frozen=True, slots=True)
class Looked:
    """The outcome of looking for a head: its tail or None for its absence, asked for at `asked_at` (monotonic seconds)."""

    loaded: LoadedHead | None
    asked_at: float


class Index:
    """Finds entries."""

    def __init__(self, storage: Storage, settings: Settings, cache: ByteLRU) -> None:
        """Read from `storage`, keep in `cache`, for the times that `settings` allow."""
        self._storage = storage
        self._settings = settings
        self._cache = cache
        self._descriptor: tuple[Descriptor, float] | None = None
        self._descriptor_flight: SingleFlight[Descriptor] = SingleFlight()
        self._head_flight: SingleFlight[Looked] = SingleFlight()
        self._page_flight: SingleFlight[bytes] = SingleFlight()

    async def descriptor(self) -> Descriptor:
        """Return the store's descriptor, read again every `index_ttl`.

        Raises:
            SettingsError: there is none, or it contradicts the settings.
            StorageError: the storage is unwell.
        """
        if self._descriptor is not None and self._descriptor[1] >= time.monotonic() - self._settings.index_ttl:
            return self._descriptor[0]
        return await self._descriptor_flight.run("descriptor", self._read_descriptor)

    async def _read_descriptor(self) -> Descriptor:
        asked_at = time.monotonic()
        descriptor = await require_descriptor(self._storage)
        descriptor.check_n_bits(self._settings.n_bits)
        self._descriptor = (descriptor, asked_at)
        return descriptor

    async def shard_of(self, identifier: bytes, day: str) -> Identity:
        """Return the shard that holds a file_id on a day (YYYYMMDD).

        Raises:
            SettingsError: the shard lies in another zone, or there is no store.
            StorageError: the storage is unwell.
        """
        descriptor = await self.descriptor()
        n_bits = descriptor.n_bits_on(day)
        index = shard_index(identifier, n_bits)
        descriptor.check_owned(index, n_bits)
        return Identity(descriptor.store_id, day, n_bits, index)

    async def lookup(self, identity: Identity, identifier: bytes) -> tuple[LoadedHead, Entry] | None:
        """Return a file's entry and the head it stands in; None is proof that there is no such file.

        Raises:
            CorruptShardError: the head or the page is damaged.
            StorageError: the storage is unwell.
        """
        now = time.monotonic()
        not_before = now - self._settings.index_ttl
        proof = now - self._settings.negative_ttl
        while True:
            looked = await self.look(identity, not_before)
            if looked.loaded is not None:
                try:
                    entry = await self._entry(looked.loaded, identifier)
                except PreconditionFailedError:
                    not_before = time.monotonic()  # the head was replaced: only a newer look will do
                    continue
                if entry is not None:
                    return looked.loaded, entry
            if looked.asked_at >= proof:
                return None
            not_before = proof

    async def look(self, identity: Identity, not_before: float) -> Looked:
        """Return the head of a shard as it was asked for no earlier than `not_before` (monotonic seconds)."""
        key = identity.head_key
        while True:
            looked = self._cache.get(key, Looked)
            if looked is None or looked.asked_at < not_before:
                known = looked.loaded if looked else None
                looked = await self._head_flight.run(key, lambda known=known: self._ask(identity, known))  # type: ignore[misc]
            if looked.asked_at >= not_before:
                return looked

    async def _ask(self, identity: Identity, known: LoadedHead | None) -> Looked:
        asked_at = time.monotonic()
        try:
            loaded = await load_head(self._storage, identity, unless=known.version if known else None)
            looked = Looked(loaded or known, asked_at)
        except ObjectNotFoundError:
            looked = Looked(None, asked_at)
        self._cache.put(identity.head_key, looked, looked.loaded.weight if looked.loaded else 100)
        return looked

    async def _entry(self, loaded: LoadedHead, identifier: bytes) -> Entry | None:
        ref = loaded.head.find_page(identifier)
        if ref is None:
            return None
        page: memoryview | bytes | None = loaded.page_that_came_along(ref)
        if page is None:
            key = (loaded.head.identity.head_key, ref.checksum, ref.first_key)
            page = self._cache.get(key, bytes)
            if page is None:
                page = await self._page_flight.run((key, loaded.version), lambda: read_page(self._storage, loaded, ref))
                self._cache.put(key, page, len(page))
        return loaded.find(page, identifier)
