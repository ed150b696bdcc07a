"""The instruments, declared once, and the storage wrapper that feeds them.

Rules:

1. Counting is off until `activate`: a program that only reads files pays neither for it nor for importing
   prometheus-client. The service and `--metrics-file` switch it on. Until then every function here does nothing.
2. Labels are bounded: words of `des.errors.Status`, the storage's verbs, the places of the settings. Never a uid.
3. One name, one owner: whoever counts calls a function of this module; the name of the instrument stands only here.
4. Several worker processes count into files of prometheus-client's multiprocess mode, so that one scrape sees all of them.
   That mode is decided by the environment when prometheus-client is first imported; here it is only recognised.
5. Storage is metered below the retries, so that every attempt counts.
6. A service counts some ten times a request, and an instrument takes its time to count. While `gathering`, counts are added up
   and handed to the instruments `GATHER_SECONDS` later, so that a busy service pays once for many requests. A scrape may lack what
   other workers counted since; its own worker settles first.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Final, Literal, Protocol

from des.errors import DESError, ObjectNotFoundError, PreconditionFailedError
from des.storage.wrapper import Call, StorageWrapper, Tally, Verb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from prometheus_client import Counter, Gauge, Histogram

    from des.errors import Status
    from des.storage.protocol import ObjectInfo, Purpose, Storage
    from des.storage.zone_observer import HedgeOutcome, MendStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

GATHER_SECONDS = 0.05
_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Instrument:
    """An instrument as it is declared.

    Attributes:
        name: what a scrape shows, without the suffixes of a histogram's series.
        kind: counters only rise; a gauge is summed over the living workers.
        help: one line.
        labels: their names.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


RETRIEVALS = Instrument("des_retrievals_total", "counter", "Retrievals of one file by outcome", ("backend", "status"))
RETRIEVAL_SECONDS = Instrument(
    "des_retrieval_seconds", "histogram", "Seconds until a file was there to be handed out", ("backend",)
)
RANGE_CALLS = Instrument("des_s3_range_calls_total", "counter", "Range reads by what they are for", ("backend", "type"))
STORAGE_REQUESTS = Instrument(
    "des_storage_requests_total", "counter", "Storage requests by outcome", ("place", "verb", "status")
)
STORAGE_BYTES = Instrument(
    "des_storage_bytes_total", "counter", "Bytes to and from the storage", ("place", "direction")
)
STORAGE_RETRIES = Instrument(
    "des_storage_retries_total", "counter", "Storage requests that were not the first attempt", ("place", "verb")
)
CACHE_HITS = Instrument("des_cache_hits_total", "counter", "Cache lookups that found something")
CACHE_MISSES = Instrument("des_cache_misses_total", "counter", "Cache lookups that found nothing")
CACHE_EVICTIONS = Instrument("des_cache_evictions_total", "counter", "Values pushed out of the cache")
CACHE_BYTES = Instrument("des_cache_bytes", "gauge", "Bytes in the read caches")
IN_FLIGHT = Instrument("des_http_requests_in_flight", "gauge", "HTTP requests being answered")
SHED = Instrument("des_http_requests_shed_total", "counter", "HTTP requests refused by the limit they met", ("limit",))
BYTES_OUT = Instrument("des_http_bytes_out_total", "counter", "Bytes of HTTP bodies handed to the server")
BUILD_INFO = Instrument(
    "des_build_info", "gauge", "Processes that serve, by the version of their program", ("version",)
)
PACK_FILES = Instrument("des_pack_files_total", "counter", "Files of manifests by outcome", ("status",))
PACK_BYTES = Instrument("des_pack_bytes_total", "counter", "Bytes read from sources and stored", ("direction",))
PACK_SECONDS = Instrument("des_pack_seconds_total", "counter", "Seconds spent packing")
PACK_SUCCESS = Instrument(
    "des_pack_last_success_timestamp_seconds", "gauge", "When a run last packed all its files, in seconds since 1970"
)
MAINTENANCE_COUNTS = Instrument(
    "des_maintenance_counts_total",
    "counter",
    "What a maintenance command came to, as its JSON counts it",
    ("verb", "what"),
)
MAINTENANCE_SECONDS = Instrument(
    "des_maintenance_seconds_total", "counter", "Seconds spent in a maintenance command", ("verb",)
)
MAINTENANCE_SUCCESS = Instrument(
    "des_maintenance_last_success_timestamp_seconds",
    "gauge",
    "When a maintenance command last ended with status 0, in seconds since 1970",
    ("verb",),
)
MAINTENANCE = (MAINTENANCE_COUNTS, MAINTENANCE_SECONDS, MAINTENANCE_SUCCESS)

HEDGES = Instrument(
    "des_hedges_total", "counter", "Reads sent to a second place because the first was slow", ("place", "outcome")
)
FAILOVERS = Instrument("des_failovers_total", "counter", "Reads answered by a place that was not the first", ("place",))
MENDED = Instrument("des_mended_total", "counter", "Objects looked at after damage, by place", ("place", "status"))
PLACE_UP = Instrument(
    "des_place_up", "gauge", "Workers that ask a place of a zone, and do not leave it alone", ("place",)
)

INSTRUMENTS = (
    RETRIEVALS,
    RETRIEVAL_SECONDS,
    RANGE_CALLS,
    STORAGE_REQUESTS,
    STORAGE_BYTES,
    STORAGE_RETRIES,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_EVICTIONS,
    CACHE_BYTES,
    IN_FLIGHT,
    SHED,
    BYTES_OUT,
    BUILD_INFO,
    PACK_FILES,
    PACK_BYTES,
    PACK_SECONDS,
    PACK_SUCCESS,
    HEDGES,
    FAILOVERS,
    MENDED,
    PLACE_UP,
    *MAINTENANCE,
)


class _Registry:
    """The live instruments of this process, none until it is activated; children are looked up once and kept."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter | Gauge] = {}
        self._gauges: dict[str, Gauge] = {}
        self._times: dict[str, Histogram] = {}
        self._count_children: dict[tuple[str, tuple[str, ...]], Counter | Gauge] = {}
        self._time_children: dict[tuple[str, tuple[str, ...]], Histogram] = {}
        self._gathered: dict[tuple[str, tuple[str, ...]], float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    @property
    def is_active(self) -> bool:
        return bool(self._counts)

    def activate(self) -> None:
        if self._counts:
            return
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415 - 0.1 s that only those who count pay

        for one in INSTRUMENTS:
            if one.kind == "counter":
                self._counts[one.name] = Counter(one.name, one.help, one.labels)
            elif one.kind == "gauge":
                gauge = Gauge(one.name, one.help, one.labels, multiprocess_mode="livesum")
                self._counts[one.name] = self._gauges[one.name] = gauge
            else:
                self._times[one.name] = Histogram(one.name, one.help, one.labels, buckets=_LATENCY_BUCKETS)

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        if not self._counts:
            return
        self.add_to((instrument.name, labels), amount)

    def add_to(self, key: tuple[str, tuple[str, ...]], amount: float) -> None:
        if self._loop is None or self._thread != get_ident():
            self._count(key, amount)
            return
        gathered = self._gathered
        if not gathered:
            self._loop.call_later(GATHER_SECONDS, self.hand_over)
        gathered[key] = gathered.get(key, 0) + amount

    def _count(self, key: tuple[str, tuple[str, ...]], amount: float) -> None:
        child = self._count_children.get(key)
        if child is None:
            name, labels = key
            family = self._counts[name]
            child = self._count_children[key] = family.labels(*labels) if labels else family
        child.inc(amount)

    def hand_over(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for key, amount in gathered.items():
            self._count(key, amount)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        if self._loop is not None:  # another service of this process gathers; this one counts one by one
            yield
            return
        self._loop, self._thread = asyncio.get_running_loop(), get_ident()
        try:
            yield
        finally:
            self._loop = None
            self.hand_over()

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        gauge = self._gauges.get(instrument.name)
        if gauge is not None:
            (gauge.labels(*labels) if labels else gauge).set(value)

    def observe(self, instrument: Instrument, seconds: float, *labels: str) -> None:
        if not self._times:
            return
        key = (instrument.name, labels)
        child = self._time_children.get(key)
        if child is None:
            child = self._time_children[key] = self._times[instrument.name].labels(*labels)
        child.observe(seconds)


_registry = _Registry()
_IN_FLIGHT_KEY: Final = (IN_FLIGHT.name, ())
_BYTES_OUT_KEY: Final = (BYTES_OUT.name, ())


def activate() -> None:
    """Start counting in this process. May be called twice."""
    _registry.activate()


@contextmanager
def gathering() -> Iterator[None]:
    """Count in the running event loop with less effort, see rule 6, until the context ends."""
    with _registry.gathering():
        yield


def settle() -> None:
    """Hand over what was gathered; in the event loop that gathers."""
    _registry.hand_over()


def exposition() -> bytes:
    """Return all instruments in Prometheus' text format, of all workers; reads files where there are several."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, values  # noqa: PLC0415 - as in `activate`
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

    if values.ValueClass is values.MutexValue:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves it untyped
    return generate_latest(registry)


def share_between_processes(directory: str) -> None:
    """Let the processes that are started from now on count together, in files of an empty directory.

    Args:
        directory: theirs alone; it goes when they are gone.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory


def process_ended(pid: int) -> None:
    """Forget the gauges of a process that counted together with others and is no more."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - as in `activate`

    mark_process_dead(pid)  # type: ignore[no-untyped-call]  # the library leaves it untyped


def write_file(path: Path, instruments: Sequence[Instrument] = INSTRUMENTS) -> None:
    """Write instruments to a file, for the textfile collector of a node exporter; replaced as a whole.

    Those of the process and the interpreter are left out: the node exporter has its own of the same names, and would refuse all.

    Raises:
        OSError: it cannot be written.
    """
    from prometheus_client import REGISTRY, write_to_textfile  # noqa: PLC0415 - as in `activate`

    names = [one.name + ending for one in instruments for ending in ("", "_bucket", "_count", "_sum")]
    write_to_textfile(str(path), REGISTRY.restricted_registry(names))


def value_in_file(path: Path, instrument: Instrument, *labels: str) -> float | None:
    """Return what a file that `write_file` wrote says of an instrument with these labels; None where it says nothing."""
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(instrument.labels, labels, strict=True))
    series = f"{instrument.name}{{{pairs}}} " if pairs else f"{instrument.name} "
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(series)), None)
    except (OSError, ValueError, IndexError):
        return None


def retrieval_done(backend: str, status: Status, seconds: float) -> None:
    """Count a retrieval of one file.

    Args:
        backend: the storage's label.
        status: how it ended.
        seconds: until the content, or its first piece, was there.
    """
    _registry.add(RETRIEVALS, 1, backend, status)
    _registry.observe(RETRIEVAL_SECONDS, seconds, backend)


def requests_in_flight(change: int) -> None:
    """Count HTTP requests in (1) and out (-1)."""
    if _registry.is_active:
        _registry.add_to(_IN_FLIGHT_KEY, change)


def request_shed(limit: Literal["requests", "bytes"]) -> None:
    """Count an HTTP request that was refused by a limit."""
    _registry.add(SHED, 1, limit)


def bytes_out(count: int) -> None:
    """Count bytes of an HTTP body."""
    if _registry.is_active:
        _registry.add_to(_BYTES_OUT_KEY, count)


def serving(version: str) -> None:
    """Note that this process serves, and the version of its program."""
    _registry.set(BUILD_INFO, 1, version)


def files_packed(status: str, count: int) -> None:
    """Count files of a manifest by what became of them."""
    _registry.add(PACK_FILES, count, status)


def bytes_packed(read: int, stored: int) -> None:
    """Count bytes read from sources, and bytes stored of them."""
    _registry.add(PACK_BYTES, read, "read")
    _registry.add(PACK_BYTES, stored, "stored")


def packing_took(seconds: float) -> None:
    """Count the time of a pack."""
    _registry.add(PACK_SECONDS, seconds)


def packing_succeeded(at: float) -> None:
    """Note when a pack last packed all its files, in seconds since 1970."""
    _registry.set(PACK_SUCCESS, at)


def maintenance_counted(verb: str, what: str, count: int) -> None:
    """Count what a maintenance command came to."""
    _registry.add(MAINTENANCE_COUNTS, count, verb, what)


def maintenance_took(verb: str, seconds: float) -> None:
    """Count the time of a maintenance command."""
    _registry.add(MAINTENANCE_SECONDS, seconds, verb)


def maintenance_succeeded(verb: str, at: float) -> None:
    """Note when a maintenance command last ended with status 0, in seconds since 1970."""
    _registry.set(MAINTENANCE_SUCCESS, at, verb)


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
        if cache.hits != self._hits:
            _registry.add(CACHE_HITS, cache.hits - self._hits)
            self._hits = cache.hits
        if cache.misses != self._misses:
            _registry.add(CACHE_MISSES, cache.misses - self._misses)
            self._misses = cache.misses
        if cache.evictions != self._evictions:
            _registry.add(CACHE_EVICTIONS, cache.evictions - self._evictions)
            self._evictions = cache.evictions
        if cache.used_bytes != self._used_bytes:
            _registry.add(CACHE_BYTES, cache.used_bytes - self._used_bytes)
            self._used_bytes = cache.used_bytes


def metered(storage: Storage, *, reports_requests: bool = False, backend: str | None = None) -> Storage:
    """Return the storage with its calls counted; the storage itself where nobody counts.

    Args:
        storage: the backend.
        reports_requests: it reports each of its requests by `request_made` itself, retries included.
        backend: the label of its range calls, where it is part of another backend.
    """
    if not _registry.is_active:
        return storage
    return MeteredStorage(storage, reports_requests=reports_requests, backend=backend)


class ZoneMeter:
    """Counts what zones do beside answering; see `des.storage.zone_observer`."""

    def hedged(self, place: str, outcome: HedgeOutcome) -> None:
        """Count a second request."""
        _registry.add(HEDGES, 1, place, outcome)

    def failed_over(self, place: str) -> None:
        """Count an answer of a place that was not the first."""
        _registry.add(FAILOVERS, 1, place)

    def mended(self, place: str, status: MendStatus) -> None:
        """Count an object that was looked at."""
        _registry.add(MENDED, 1, place, status)

    def place_up(self, place: str, *, is_up: bool) -> None:
        """Set whether a place is asked."""
        _registry.set(PLACE_UP, float(is_up), place)


def request_observer(place: str) -> Callable[[RequestRecord], None] | None:
    """Return what counts the requests that a storage reports itself; None where nobody counts."""
    return partial(request_made, place) if _registry.is_active else None


def request_made(place: str, record: RequestRecord) -> None:
    """Count a request that a storage reports itself."""
    _registry.add(STORAGE_REQUESTS, 1, place, record.verb, record.status)
    if record.attempt > 1:
        _registry.add(STORAGE_RETRIES, 1, place, record.verb)
    if record.size:
        _registry.add(STORAGE_BYTES, record.size, place, "read" if record.verb in _READING_VERBS else "written")


class RequestRecord(Protocol):
    """What a storage says of a request: its verb, how it ended, the bytes that moved, and which attempt it was."""

    @property
    def verb(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> Status: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def attempt(self) -> int: ...  # noqa: D102


_READING_VERBS = frozenset({"read_suffix", "read_range", "stream_range"})


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
        self._read_key = (STORAGE_REQUESTS.name, (self.address, "read_range", "ok"))
        self._bytes_key = (STORAGE_BYTES.name, (self.address, "read"))

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Count a call."""
        tally = Tally()
        if call.purpose and call.verb != "piece":
            self._begun(call.purpose)
        try:
            yield tally
        except DESError as error:
            self._ended(call.verb, _outcome(error))
            raise
        if call.verb != "piece":
            self._ended(call.verb)
        if tally.size:
            self._moved("read" if call.purpose else "written", tally.size)

    async def read_range(
        self, key: str, start: int, end: int, *, version: str | None = None, purpose: Purpose = "payload"
    ) -> bytes:
        """Count as `around` does, but without its context: most calls are this one, and most take no longer than that."""
        self._begun(purpose)
        try:
            data = await self.inner.read_range(key, start, end, version=version, purpose=purpose)
        except DESError as error:
            self._ended("read_range", _outcome(error))
            raise
        if self._counts_requests and _registry.is_active:
            _registry.add_to(self._read_key, 1)
            _registry.add_to(self._bytes_key, len(data))
        return data

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Pass a listing on as it comes, and count it at its end."""
        async with self.around(Call("list", prefix)):
            async for info in self.inner.list(prefix):
                yield info

    def _begun(self, purpose: Purpose) -> None:
        _registry.add(RANGE_CALLS, 1, self.backend, purpose)

    def _ended(self, verb: Verb, status: Status = "ok") -> None:
        if self._counts_requests:
            _registry.add(STORAGE_REQUESTS, 1, self.address, verb, status)

    def _moved(self, direction: Literal["read", "written"], count: int) -> None:
        if self._counts_requests:
            _registry.add(STORAGE_BYTES, count, self.address, direction)


def _outcome(error: DESError) -> Status:
    """Name the outcome of a storage call: an absent object is an answer there, and so is a condition that does not hold."""
    if isinstance(error, ObjectNotFoundError):
        return "not_found"
    if isinstance(error, PreconditionFailedError):
        return "conflict"
    return error.status
