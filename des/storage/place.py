"""One place of a zone: the storage there, as all places of the zone are spoken of.

A *version* is made of the content, so that it means the same at every place: the size, and a hash of the last 64 bytes, which differ at every commit
of a head. For each version the place remembers what the storage itself calls it, because conditions are put to the storage in its own words; what was
forgotten is found out by reading the last 64 bytes. Listings tell none. A version tells commits apart, and is no checksum: damage elsewhere in an object leaves it as it is.

Every call also tells the place's breaker how the place fares: "no such object" and "at another version" are good answers, a call that was cancelled
tells nothing.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageError, StorageUnavailableError
from des.storage.bounded_map import BoundedMap
from des.storage.breaker import Breaker
from des.storage.latency import LatencyQuantile
from des.storage.protocol import IfVersion, Level, PlaceState, Suffix
from des.storage.wrapper import Call, StorageWrapper, Tally
from des.storage.zone_observer import NobodyObserves

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.storage.protocol import ObjectInfo, Purpose, PutMode, Storage
    from des.storage.zone_observer import ZoneObserver

STAMP_BYTES = 64
_KEPT_VERSIONS = 16_384
_READS = 3


def content_version(end: bytes, size: int) -> str:
    """Return the version of a content.

    Args:
        end: its last bytes: 64 or more, or all of it.
        size: bytes of the whole.
    """
    return f"{size}-{sha256(end[-STAMP_BYTES:]).hexdigest()[:32]}"


class Place(StorageWrapper):
    """A place.

    Attributes:
        zone: name of the zone it belongs to.
        is_primary: whether heads are compared and swapped here.
        breaker: whether it is worth asking.
        latency: how long range reads take here.
        holds_store: whether its descriptor was seen: without it, that something is not here means nothing.
    """

    def __init__(
        self,
        inner: Storage,
        zone: str,
        *,
        is_primary: bool,
        address: str | None = None,
        breaker: Breaker | None = None,
        observer: ZoneObserver | None = None,
    ) -> None:
        """Speak of a storage as of a place.

        Args:
            inner: an open storage; closed with the place.
            zone: name of the zone.
            is_primary: see the class.
            address: for people and labels; the storage's own where None.
            breaker: one of its own where None.
            observer: told when the place is left alone, and when it is asked again.
        """
        super().__init__(inner)
        self.address = address or inner.address
        self.zone = zone
        self.is_primary = is_primary
        self.breaker = breaker or Breaker()
        self.latency = LatencyQuantile()
        self.holds_store = False
        self._observer = observer or NobodyObserves()
        self._was_well = True
        self._observer.place_up(self.address, is_up=True)
        self._inner_versions: BoundedMap[tuple[str, str], str] = BoundedMap(_KEPT_VERSIONS)

    def __repr__(self) -> str:
        """Return the place for people."""
        return f"{self.address} of zone {self.zone}"

    @property
    def state(self) -> PlaceState:
        """How it fares."""
        return PlaceState(self.zone, self.address, self.is_primary, not self.breaker.is_open)

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Tell the breaker how a call ended."""
        del call
        try:
            yield Tally()
        except BaseException as error:
            self._failed(error)
            raise
        self._answered()

    def was_late(self) -> None:
        """Take note that the place did not answer within the time it was given."""
        self.breaker.failed()
        self._tell()

    def _answered(self) -> None:
        self.breaker.succeeded()
        self._tell()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, ObjectNotFoundError | PreconditionFailedError):
            self._answered()
        elif isinstance(error, StorageError):
            self.was_late()
        else:
            self.breaker.abandoned()

    def _tell(self) -> None:
        is_well = not self.breaker.is_open
        if is_well is not self._was_well:
            self._was_well = is_well
            self._observer.place_up(self.address, is_up=is_well)

    async def read_suffix(
        self, key: str, length: int, *, unless: str | None = None, purpose: Purpose = "footer"
    ) -> Suffix | None:
        """See `Storage.read_suffix`."""
        known = None if unless is None else self._inner_versions.get((key, unless))
        async with self.around(Call("read_suffix", key)):
            found = await self.inner.read_suffix(key, max(length, STAMP_BYTES), unless=known, purpose=purpose)
        if found is None:
            return None
        version = self._learn(key, found.data, found.total_size, found.version)
        if version == unless:
            return None
        return Suffix(found.data[-length:], found.total_size, version)

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        """See `Storage.read_range`."""
        if version is None:
            return await self._read_range(key, start, end, None, purpose)
        known = self._inner_versions.get((key, version))
        if known is not None:
            try:
                return await self._read_range(key, start, end, known, purpose)
            except PreconditionFailedError:
                pass  # the same content may have been written again since
        return await self._read_range(key, start, end, await self._inner_version(key, version), purpose)

    async def _read_range(self, key: str, start: int, end: int, inner_version: str | None, purpose: Purpose) -> bytes:
        # Without `around`, whose context takes longer than all else here: most calls are this one.
        began = time.monotonic()
        try:
            data = await self.inner.read_range(key, start, end, version=inner_version, purpose=purpose)
        except BaseException as error:
            self._failed(error)
            raise
        self._answered()
        self.latency.add(time.monotonic() - began)
        return data

    @asynccontextmanager
    async def stream_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Storage.stream_range`."""
        known = None if version is None else await self._inner_version(key, version)
        async with super().stream_range(key, start, end, version=known, purpose=purpose) as pieces:
            yield pieces

    async def head(self, key: str) -> ObjectInfo:
        """See `Storage.head`. Costs one read more than `probe`."""
        for _ in range(_READS):
            info = await self.probe(key)
            suffix = await self.read_suffix(key, STAMP_BYTES)
            if suffix is not None and self._inner_versions.get((key, suffix.version)) == info.version:
                return replace(info, version=suffix.version)
        raise StorageUnavailableError(f"{key} at {self} is replaced faster than it can be read; try again.")

    async def probe(self, key: str) -> ObjectInfo:
        """Do as `head`; the version is the storage's own, of which nobody else knows what it means."""
        return await super().head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Storage.list`; passed on as it comes."""
        async with self.around(Call("list", prefix)):
            async for info in self.inner.list(prefix):
                yield replace(info, version="")

    async def list_level(self, prefix: str) -> Level:
        """See `Storage.list_level`."""
        level = await super().list_level(prefix)
        return Level(tuple(replace(info, version="") for info in level.objects), level.prefixes)

    async def put(self, key: str, data: bytes, mode: PutMode) -> str:
        """See `Storage.put`."""
        if isinstance(mode, IfVersion):
            known = self._inner_versions.get((key, mode.version))
            try:
                mode = IfVersion(known or await self._inner_version(key, mode.version))
            except ObjectNotFoundError as error:
                raise PreconditionFailedError(f"{key} at {self} is not at the version asked for.") from error
        return self._learn(key, data, len(data), await super().put(key, data, mode))

    async def _inner_version(self, key: str, version: str) -> str:
        suffix = await self.read_suffix(key, STAMP_BYTES)
        known = self._inner_versions.get((key, version))
        if suffix is None or suffix.version != version or known is None:
            raise PreconditionFailedError(f"{key} at {self} is not at the version asked for.")
        return known

    def _learn(self, key: str, end: bytes, size: int, inner_version: str) -> str:
        version = content_version(end, size)
        self._inner_versions.put((key, version), inner_version)
        return version
