"""The instruments, declared once: the only place where their names stand.

Labels are bounded: words of `des.errors.Status`, the storage's verbs, the places of the settings. Never a uid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
