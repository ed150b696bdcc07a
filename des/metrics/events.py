"""What is counted: a function for each event, or the series itself where it is counted often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from des.metrics.counting import Series, Timings, series, set_gauge
from des.metrics.instruments import (
    BUILD_INFO,
    BYTES_OUT,
    CACHE_BYTES,
    CACHE_EVICTIONS,
    CACHE_HITS,
    CACHE_MISSES,
    FAILOVERS,
    HEDGES,
    IN_FLIGHT,
    MAINTENANCE_COUNTS,
    MAINTENANCE_SECONDS,
    MAINTENANCE_SUCCESS,
    MENDED,
    PACK_BYTES,
    PACK_FILES,
    PACK_SECONDS,
    PACK_SUCCESS,
    PLACE_UP,
    RANGE_CALLS,
    RETRIEVAL_SECONDS,
    RETRIEVALS,
    SHED,
    STORAGE_BYTES,
    STORAGE_REQUESTS,
    STORAGE_RETRIES,
)

if TYPE_CHECKING:
    from des.errors import Status

requests_in_flight = series(IN_FLIGHT)
bytes_out = series(BYTES_OUT)


class Retrievals:
    """Counts retrievals of one file each from a backend, which is the storage's label."""

    __slots__ = ("_backend", "_good", "_times")

    def __init__(self, backend: str) -> None:
        """Count those of a backend."""
        self._backend = backend
        self._good = series(RETRIEVALS, backend, "ok")
        self._times = Timings(RETRIEVAL_SECONDS, backend)

    def done(self, status: Status, seconds: float) -> None:
        """Count one.

        Args:
            status: how it ended.
            seconds: until the content, or its first piece, was there.
        """
        ended = self._good if status == "ok" else series(RETRIEVALS, self._backend, status)
        ended.add()
        self._times.observe(seconds)


def request_shed(limit: Literal["requests", "bytes"]) -> None:
    """Count an HTTP request that was refused by a limit."""
    series(SHED, limit).add()


def serving(version: str) -> None:
    """Note that this process serves, and the version of its program."""
    set_gauge(BUILD_INFO, 1, version)


def files_packed(status: str, count: int) -> None:
    """Count files of a manifest by what became of them."""
    series(PACK_FILES, status).add(count)


def bytes_packed(read: int, stored: int) -> None:
    """Count bytes read from sources, and bytes stored of them."""
    series(PACK_BYTES, "read").add(read)
    series(PACK_BYTES, "stored").add(stored)


def packing_took(seconds: float) -> None:
    """Count the time of a pack."""
    series(PACK_SECONDS).add(seconds)


def packing_succeeded(at: float) -> None:
    """Note when a pack last packed all its files, in seconds since 1970."""
    set_gauge(PACK_SUCCESS, at)


def maintenance_counted(verb: str, what: str, count: int) -> None:
    """Count what a maintenance command came to."""
    series(MAINTENANCE_COUNTS, verb, what).add(count)


def maintenance_took(verb: str, seconds: float) -> None:
    """Count the time of a maintenance command."""
    series(MAINTENANCE_SECONDS, verb).add(seconds)


def maintenance_succeeded(verb: str, at: float) -> None:
    """Note when a maintenance command last ended with status 0, in seconds since 1970."""
    set_gauge(MAINTENANCE_SUCCESS, at, verb)


def range_calls(backend: str, purpose: str) -> Series:
    """Return the series of range reads, each counted as it begins."""
    return series(RANGE_CALLS, backend, purpose)


def storage_requests(place: str, verb: str, status: Status) -> Series:
    """Return the series of requests to a storage, each counted as it ends."""
    return series(STORAGE_REQUESTS, place, verb, status)


def storage_asked_again(place: str, verb: str) -> None:
    """Count a request to a storage that was not the first attempt."""
    series(STORAGE_RETRIES, place, verb).add()


def storage_bytes(place: str, direction: Literal["read", "written"]) -> Series:
    """Return the series of bytes to or from a storage."""
    return series(STORAGE_BYTES, place, direction)


def hedged(place: str, outcome: str) -> None:
    """Count a read that was sent to a place because another was slow."""
    series(HEDGES, place, outcome).add()


def failed_over(place: str) -> None:
    """Count an answer of a place that was not the first."""
    series(FAILOVERS, place).add()


def mended(place: str, status: str) -> None:
    """Count an object that was looked at after damage."""
    series(MENDED, place, status).add()


def place_up(place: str, *, is_up: bool) -> None:
    """Note whether a place is asked."""
    set_gauge(PLACE_UP, float(is_up), place)


def cache_changed(hits: int, misses: int, evictions: int, used_bytes: int) -> None:
    """Count what became of a cache since it was last looked at; it may hold fewer bytes than then."""
    if hits:
        series(CACHE_HITS).add(hits)
    if misses:
        series(CACHE_MISSES).add(misses)
    if evictions:
        series(CACHE_EVICTIONS).add(evictions)
    if used_bytes:
        series(CACHE_BYTES).add(used_bytes)
