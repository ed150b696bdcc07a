"""The instruments, declared once, and the functions that count; `des.metering` measures storages and caches with them.

Rules:

1. Counting is off until `activate`: a program that only reads files pays neither for it nor for importing
   prometheus-client. The service and `--metrics-file` switch it on. Until then every function here does nothing.
2. Labels are bounded: words of `des.errors.Status`, the storage's verbs, the places of the settings. Never a uid.
3. One name, one owner: whoever counts calls a function of this module, or adds to a series of it; the name of the instrument stands only here.
4. Several worker processes count into files of prometheus-client's multiprocess mode, so that one scrape sees all of them.
   That mode is decided by the environment when prometheus-client is first imported; here it is only recognised.
5. A service counts some ten times a request, and an instrument takes its time to count. While `gathering`, counts are added up
   and handed to the instruments `GATHER_SECONDS` later, so that a busy service pays once for many requests; times are handed over
   one by one, but all in a row, which takes half as long. A scrape may lack what
   other workers counted since; its own worker settles first.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from prometheus_client import Counter, Gauge, Histogram

    from des.errors import Status

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


class Series:
    """One series of a counter or gauge: whoever counts it often keeps it, which spares looking it up.

    Any thread may add to it.
    """

    __slots__ = ("_child", "_gathered", "_is_gathered", "_labels", "_name")

    def __init__(self, name: str, labels: tuple[str, ...]) -> None:
        """Begin at 0."""
        self._name, self._labels = name, labels
        self._child: Counter | Gauge | None = None
        self._gathered: float = 0
        self._is_gathered = False

    def add(self, amount: float = 1) -> None:
        """Count, where anybody does."""
        if _registry.gathering_thread == get_ident():
            if not self._is_gathered:
                self._is_gathered = True
                _registry.gathered(self)
            self._gathered += amount
        elif _registry.is_active:
            self._count(amount)

    def hand_over(self) -> None:
        """Count what was gathered; in the thread that gathers."""
        self._is_gathered = False
        amount, self._gathered = self._gathered, 0
        self._count(amount)

    def _count(self, amount: float) -> None:
        if self._child is None:
            family = _registry.counts[self._name]
            self._child = family.labels(*self._labels) if self._labels else family
        self._child.inc(amount)


class _Timings:
    """One series of a histogram."""

    __slots__ = ("_child", "_gathered", "_labels", "_name")

    def __init__(self, name: str, labels: tuple[str, ...]) -> None:
        self._name, self._labels = name, labels
        self._child: Histogram | None = None
        self._gathered: list[float] = []

    def observe(self, seconds: float) -> None:
        if _registry.gathering_thread == get_ident():
            if not self._gathered:
                _registry.gathered(self)
            self._gathered.append(seconds)
        elif _registry.is_active:
            self._observe((seconds,))

    def hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._observe(gathered)

    def _observe(self, times: Iterable[float]) -> None:
        if self._child is None:
            self._child = _registry.times[self._name].labels(*self._labels)
        for seconds in times:
            self._child.observe(seconds)


class _Registry:
    """The live instruments of this process, none until it is activated; series are looked up once and kept."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter | Gauge] = {}
        self.times: dict[str, Histogram] = {}
        self.is_active = False
        self.gathering_thread = 0
        self._gauges: dict[str, Gauge] = {}
        self._series: dict[tuple[str, tuple[str, ...]], Series] = {}
        self._timings: dict[tuple[str, tuple[str, ...]], _Timings] = {}
        self._gathered: list[Series | _Timings] = []
        self._reporters: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def activate(self) -> None:
        if self.is_active:
            return
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415 - 0.1 s that only those who count pay

        for one in INSTRUMENTS:
            if one.kind == "counter":
                self.counts[one.name] = Counter(one.name, one.help, one.labels)
            elif one.kind == "gauge":
                gauge = Gauge(one.name, one.help, one.labels, multiprocess_mode="livesum")
                self.counts[one.name] = self._gauges[one.name] = gauge
            else:
                self.times[one.name] = Histogram(one.name, one.help, one.labels, buckets=_LATENCY_BUCKETS)
        self.is_active = True

    def series(self, instrument: Instrument, *labels: str) -> Series:
        key = (instrument.name, labels)
        found = self._series.get(key)
        return found or self._series.setdefault(key, Series(*key))

    def timings(self, instrument: Instrument, *labels: str) -> _Timings:
        key = (instrument.name, labels)
        found = self._timings.get(key)
        return found or self._timings.setdefault(key, _Timings(*key))

    def gathered(self, series: Series | _Timings) -> None:
        """Hear of a series that has something to hand over."""
        if not self._gathered and self._loop is not None:
            self._loop.call_later(GATHER_SECONDS, self.hand_over)
        self._gathered.append(series)

    def hand_over(self) -> None:
        for report in self._reporters:
            report()
        gathered, self._gathered = self._gathered, []
        for series in gathered:
            series.hand_over()

    @contextmanager
    def gathering(self, report: Callable[[], None]) -> Iterator[None]:
        leads = self._loop is None  # else another service of this process gathers, and this one counts one by one
        self._reporters.append(report)
        if leads:
            self._loop, self.gathering_thread = asyncio.get_running_loop(), get_ident()
        try:
            yield
        finally:
            report()
            self._reporters.remove(report)
            if leads:
                self._loop, self.gathering_thread = None, 0
                self.hand_over()

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        gauge = self._gauges.get(instrument.name)
        if gauge is not None:
            (gauge.labels(*labels) if labels else gauge).set(value)


_registry = _Registry()

requests_in_flight = _registry.series(IN_FLIGHT)
bytes_out = _registry.series(BYTES_OUT)


def activate() -> None:
    """Start counting in this process. May be called twice."""
    _registry.activate()


def is_active() -> bool:
    """Tell whether anybody counts."""
    return _registry.is_active


def gathering(report: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
    """Count in the running event loop with less effort, see rule 5, until the context ends.

    Args:
        report: called before what was gathered is handed over, and in the end: counts what is better looked at now and then.
    """
    return _registry.gathering(report)


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


class Retrievals:
    """Counts retrievals of one file each from a backend, which is the storage's label."""

    __slots__ = ("_backend", "_good", "_times")

    def __init__(self, backend: str) -> None:
        """Count those of a backend."""
        self._backend = backend
        self._good = _registry.series(RETRIEVALS, backend, "ok")
        self._times = _registry.timings(RETRIEVAL_SECONDS, backend)

    def done(self, status: Status, seconds: float) -> None:
        """Count one.

        Args:
            status: how it ended.
            seconds: until the content, or its first piece, was there.
        """
        series = self._good if status == "ok" else _registry.series(RETRIEVALS, self._backend, status)
        series.add()
        self._times.observe(seconds)


def request_shed(limit: Literal["requests", "bytes"]) -> None:
    """Count an HTTP request that was refused by a limit."""
    _registry.series(SHED, limit).add()


def serving(version: str) -> None:
    """Note that this process serves, and the version of its program."""
    _registry.set(BUILD_INFO, 1, version)


def files_packed(status: str, count: int) -> None:
    """Count files of a manifest by what became of them."""
    _registry.series(PACK_FILES, status).add(count)


def bytes_packed(read: int, stored: int) -> None:
    """Count bytes read from sources, and bytes stored of them."""
    _registry.series(PACK_BYTES, "read").add(read)
    _registry.series(PACK_BYTES, "stored").add(stored)


def packing_took(seconds: float) -> None:
    """Count the time of a pack."""
    _registry.series(PACK_SECONDS).add(seconds)


def packing_succeeded(at: float) -> None:
    """Note when a pack last packed all its files, in seconds since 1970."""
    _registry.set(PACK_SUCCESS, at)


def maintenance_counted(verb: str, what: str, count: int) -> None:
    """Count what a maintenance command came to."""
    _registry.series(MAINTENANCE_COUNTS, verb, what).add(count)


def maintenance_took(verb: str, seconds: float) -> None:
    """Count the time of a maintenance command."""
    _registry.series(MAINTENANCE_SECONDS, verb).add(seconds)


def maintenance_succeeded(verb: str, at: float) -> None:
    """Note when a maintenance command last ended with status 0, in seconds since 1970."""
    _registry.set(MAINTENANCE_SUCCESS, at, verb)


def range_calls(backend: str, purpose: str) -> Series:
    """Return the series of range reads, each counted as it begins."""
    return _registry.series(RANGE_CALLS, backend, purpose)


def storage_requests(place: str, verb: str, status: Status) -> Series:
    """Return the series of requests to a storage, each counted as it ends."""
    return _registry.series(STORAGE_REQUESTS, place, verb, status)


def storage_asked_again(place: str, verb: str) -> None:
    """Count a request to a storage that was not the first attempt."""
    _registry.series(STORAGE_RETRIES, place, verb).add()


def storage_bytes(place: str, direction: Literal["read", "written"]) -> Series:
    """Return the series of bytes to or from a storage."""
    return _registry.series(STORAGE_BYTES, place, direction)


def hedged(place: str, outcome: str) -> None:
    """Count a read that was sent to a place because another was slow."""
    _registry.series(HEDGES, place, outcome).add()


def failed_over(place: str) -> None:
    """Count an answer of a place that was not the first."""
    _registry.series(FAILOVERS, place).add()


def mended(place: str, status: str) -> None:
    """Count an object that was looked at after damage."""
    _registry.series(MENDED, place, status).add()


def place_up(place: str, *, is_up: bool) -> None:
    """Note whether a place is asked."""
    _registry.set(PLACE_UP, float(is_up), place)


def cache_changed(hits: int, misses: int, evictions: int, used_bytes: int) -> None:
    """Count what became of a cache since it was last looked at; it may hold fewer bytes than then."""
    if hits:
        _registry.series(CACHE_HITS).add(hits)
    if misses:
        _registry.series(CACHE_MISSES).add(misses)
    if evictions:
        _registry.series(CACHE_EVICTIONS).add(evictions)
    if used_bytes:
        _registry.series(CACHE_BYTES).add(used_bytes)
