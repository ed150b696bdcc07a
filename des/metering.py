"""What measures storages and caches, and has `des.metrics` count it.

Storage is metered below the retries, so that every attempt counts. Where nobody counts nothing is wrapped.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, get_args

from des import metrics
from des.errors import DESError, ObjectNotFoundError, PreconditionFailedError
from des.storage.protocol import Purpose
from des.storage.wrapper import Call, StorageWrapper, Tally, Verb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from des.errors import Status
    from des.storage.protocol import ObjectInfo, Storage
    from des.storage.s3_requests import Observer, RequestRecord
    from des.storage.zone_observer import HedgeOutcome, MendStatus

_READING_VERBS = frozenset({"read_suffix", "read_range", "stream_range"})


def metered(storage: Storage, *, reports_requests: bool = False, backend: str | None = None) -> Storage:
    """Return the storage with its calls counted; the storage itself where nobody counts.

    Args:
        storage: the backend.
        reports_requests: it reports each of its requests itself, retries included, to its `request_observer`.
        backend: the label of its range calls, where it is part of another backend.
    """
    if not metrics.is_active():
        return storage
    return MeteredStorage(storage, reports_requests=reports_requests, backend=backend)


class MeteredStorage(StorageWrapper):
    """Counts what passes through to a storage.

    A range call is counted as it begins, a request as it ends; one that was cancelled has no outcome and is none. The pieces of
    a stream count as bytes only.
    """

    def __init__(self, inner: Storage, *, reports_requests: bool = False, backend: str | None = None) -> None:
        """Count the calls on `inner`; see `metered`."""
        super().__init__(inner)
        self.backend = backend or inner.backend
        self._counts_requests = not reports_requests
        self._range_calls = {purpose: metrics.range_calls(self.backend, purpose) for purpose in get_args(Purpose)}
        self._reads = metrics.storage_requests(self.address, "read_range", "ok")
        self._bytes_read = metrics.storage_bytes(self.address, "read")

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Count a call."""
        tally = Tally()
        if call.purpose and call.verb != "piece":
            self._range_calls[call.purpose].add()
        try:
            yield tally
        except DESError as error:
            self._ended(call.verb, _outcome(error))
            raise
        if call.verb != "piece":
            self._ended(call.verb)
        if tally.size and self._counts_requests:
            metrics.storage_bytes(self.address, "read" if call.purpose else "written").add(tally.size)

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        """Count as `around` does, but without its context: most calls are this one, and most take no longer than that."""
        self._range_calls[purpose].add()
        try:
            data = await self.inner.read_range(key, start, end, version=version, purpose=purpose)
        except DESError as error:
            self._ended("read_range", _outcome(error))
            raise
        if self._counts_requests:
            self._reads.add()
            self._bytes_read.add(len(data))
        return data

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Pass a listing on as it comes, and count it at its end."""
        async with self.around(Call("list", prefix)):
            async for info in self.inner.list(prefix):
                yield info

    def _ended(self, verb: Verb, status: Status = "ok") -> None:
        if self._counts_requests:
            metrics.storage_requests(self.address, verb, status).add()


def _outcome(error: DESError) -> Status:
    """Name the outcome of a storage call: an absent object is an answer there, and so is a condition that does not hold."""
    if isinstance(error, ObjectNotFoundError):
        return "not_found"
    if isinstance(error, PreconditionFailedError):
        return "conflict"
    return error.status


def request_observer(place: str) -> Observer | None:
    """Return what counts the requests that a storage reports itself; None where nobody counts."""
    return partial(request_made, place) if metrics.is_active() else None


def request_made(place: str, record: RequestRecord) -> None:
    """Count a request that a storage reports itself."""
    metrics.storage_requests(place, record.verb, record.status).add()
    if record.attempt > 1:
        metrics.storage_asked_again(place, record.verb)
    if record.size:
        metrics.storage_bytes(place, "read" if record.verb in _READING_VERBS else "written").add(record.size)


class ZoneMeter:
    """Counts what zones do beside answering; see `des.storage.zone_observer`."""

    def hedged(self, place: str, outcome: HedgeOutcome) -> None:
        """Count a second request."""
        metrics.hedged(place, outcome)

    def failed_over(self, place: str) -> None:
        """Count an answer of a place that was not the first."""
        metrics.failed_over(place)

    def mended(self, place: str, status: MendStatus) -> None:
        """Count an object that was looked at."""
        metrics.mended(place, status)

    def place_up(self, place: str, *, is_up: bool) -> None:
        """Note whether a place is asked."""
        metrics.place_up(place, is_up=is_up)


class CacheCounts(Protocol):
    """What a cache counts of itself, in plain numbers."""

    used_bytes: int
    hits: int
    misses: int
    evictions: int


class CacheMeter:
    """Carries a cache's own counts over to the instruments, as often as it is asked to."""

    __slots__ = ("_cache", "_evictions", "_hits", "_misses", "_used_bytes")

    def __init__(self, cache: CacheCounts) -> None:
        """Begin at the cache's counts of now as if nothing had been reported."""
        self._cache = cache
        self._hits = self._misses = self._evictions = self._used_bytes = 0

    def report(self) -> None:
        """Report what changed since the last report."""
        cache = self._cache
        metrics.cache_changed(
            cache.hits - self._hits,
            cache.misses - self._misses,
            cache.evictions - self._evictions,
            cache.used_bytes - self._used_bytes,
        )
        self._hits, self._misses = cache.hits, cache.misses
        self._evictions, self._used_bytes = cache.evictions, cache.used_bytes
