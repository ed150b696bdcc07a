"""The zones file: which buckets make one store, and which shard indices each of them holds.

    n_bits: 8
    zones:
      - name: zone-a
        range: { start: 0, end: 127 }          # both included
        s3: { bucket: des-zone-a, prefix: des-a/, region_name: us-east-1, endpoint_url: "https://s3.example.com", profile: a }
        copies:                                # further places of the same range
          - { bucket: des-copy-a }
      - name: zone-b
        range: { start: 128, end: 255 }
        s3: { bucket: des-zone-b }
        write_quorum: majority                 # of this zone
    write_quorum: all                          # all, majority or 1
    allow_gaps: false
    read_repair: false
    hedge: 0.05                                # extra requests per request
    place_timeout: 2.0                         # seconds

It is YAML or JSON, and checked as a whole before anything starts; all that is wrong is said at once. Where a place says no region, endpoint or profile,
the settings' hold (`DES_S3_REGION` and so on); bucket and prefix are the place's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from des.errors import SettingsError
from des.routing import MAX_N_BITS, MIN_N_BITS
from des.storage.locations import Location, collisions
from des.storage.marked_document import Document, PartPath, ProblemsError, read_document, shown, spelled
from des.storage.s3_config import S3Config
from des.storage.zones_schema import (
    FilePart,
    PlacePart,
    RangePart,
    WriteQuorum,
    ZonePart,
    part_of,
    validated,
    without_s3,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from des.settings import Settings


@dataclass(frozen=True, slots=True)
class PlaceConfig:
    """One place of a zone.

    Attributes:
        bucket: name of the bucket.
        prefix: where in the bucket, without slashes at its ends; "" means its root.
        region_name: None means what the settings say; likewise `endpoint_url` and `profile`.
        endpoint_url: of the S3 API.
        profile: of the AWS configuration.
    """

    bucket: str
    prefix: str = ""
    region_name: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None

    def resolved(self, settings: Settings) -> Settings:
        """Return the settings of a store that is this place alone."""
        return settings.model_copy(
            update={
                "backend": "s3",
                "s3_bucket": self.bucket,
                "s3_prefix": self.prefix,
                "s3_region": self.region_name or settings.s3_region,
                "s3_endpoint_url": self.endpoint_url or settings.s3_endpoint_url,
                "s3_profile": self.profile or settings.s3_profile,
            }
        )

    def s3_config(self, settings: Settings) -> S3Config:
        """Return how to speak to it; what the place does not say, the settings do.

        Raises:
            SettingsError: a value of the settings is impossible.
        """
        return S3Config.from_settings(self.resolved(settings))


@dataclass(frozen=True, slots=True)
class ZoneConfig:
    """One zone: a range of shard indices and the places that hold it.

    Attributes:
        name: unique in the file.
        start: first index.
        end: last index, included.
        primary: where heads are compared and swapped.
        copies: the other places.
        write_quorum: how many places, the primary included, must hold a commit before it is acknowledged.
    """

    name: str
    start: int
    end: int
    primary: PlaceConfig
    copies: tuple[PlaceConfig, ...] = ()
    write_quorum: WriteQuorum = "all"

    @property
    def quorum(self) -> int:
        """`write_quorum` as a number of places."""
        count = len(self.places)
        return {"all": count, "majority": count // 2 + 1, 1: 1}[self.write_quorum]

    @property
    def places(self) -> tuple[PlaceConfig, ...]:
        """The primary, then the copies."""
        return (self.primary, *self.copies)


@dataclass(frozen=True, slots=True)
class ZonesConfig:
    """A whole zones file that was found good.

    Attributes:
        path: of the file, for messages.
        n_bits: of the store, for all days.
        zones: in order of their ranges, none overlapping.
        allow_gaps: whether indices may belong to no zone.
        read_repair: whether damage that a reader met is mended from another place.
        hedge: how many extra requests may be sent per request, 0 to 1.
        place_timeout: seconds for one attempt at one place while there are others.
    """

    path: Path
    n_bits: int
    zones: tuple[ZoneConfig, ...]
    allow_gaps: bool = False
    read_repair: bool = False
    hedge: float = 0.05
    place_timeout: float = 2.0

    def check_apart(self, settings: Settings) -> None:
        """Refuse places that are one only because of what the settings say where the file says nothing, such as the endpoint.

        Raises:
            SettingsError: two places are one, or a value of the settings is impossible.
        """
        places = [
            (f"{place.s3_config(settings).address} of zone {zone.name}", place.resolved(settings))
            for zone in self.zones
            for place in zone.places
        ]
        located = [(name, Location.of(one.s3_endpoint_url, one.s3_bucket or "", one.s3_prefix)) for name, one in places]
        for name, other in collisions(located):
            raise SettingsError(
                f"{self.path}: {name} lies in {other}, since DES_S3_ENDPOINT_URL holds where a place names no endpoint; give each place a"
                " bucket or prefix of its own."
            )


def load_zones(path: Path) -> ZonesConfig:
    """Read and check a zones file. Blocks.

    Raises:
        SettingsError: it cannot be read or is not right; all problems are named, each with its place in the file and the cure.
    """
    document = read_document(path)
    file = validated(document)
    _check_ranges(document)
    _check_names(document)
    _check_places(document)
    if file is None or document.problems:
        raise ProblemsError(path, document.problems)
    return _config(path, file)


def zones_of(settings: Settings) -> ZonesConfig:
    """Read and check the zones file that settings name. Blocks.

    Raises:
        SettingsError: there is none; it is not right, see `load_zones`; or its places are not apart, see `check_apart`.
    """
    if settings.zones_config is None:
        raise SettingsError("DES_BACKEND is multi_s3, so DES_ZONES_CONFIG must name the zones file.")
    config = load_zones(settings.zones_config)
    config.check_apart(settings)
    return config


def with_its_n_bits(settings: Settings, n_bits: int | None = None) -> Settings:
    """Return settings of a store in zones that say the n_bits of its file. Blocks.

    Args:
        settings: name the file.
        n_bits: asked for beside the settings; None where it is not.

    Raises:
        SettingsError: another n_bits is configured, or the file is not right, see `zones_of`.
    """
    config = zones_of(settings)
    configured = settings.n_bits if n_bits is None else n_bits
    if configured not in {None, config.n_bits}:
        raise SettingsError(
            f"n_bits is configured as {configured}, but {config.path} says {config.n_bits}; leave it unset, or mend the file."
        )
    return settings.model_copy(update={"n_bits": config.n_bits})


def _config(path: Path, file: FilePart) -> ZonesConfig:
    zones = sorted((_zone_config(zone, file) for zone in file.zones), key=lambda zone: zone.start)
    return ZonesConfig(
        path,
        file.n_bits,
        tuple(zones),
        file.allow_gaps,
        file.read_repair,
        file.hedge,
        file.place_timeout,
    )


def _zone_config(zone: ZonePart, file: FilePart) -> ZoneConfig:
    return ZoneConfig(
        zone.name,
        zone.range.start,
        zone.range.end,
        _place_config(zone.s3),
        tuple(_place_config(copy) for copy in zone.copies),
        zone.write_quorum or file.write_quorum,
    )


def _place_config(place: PlacePart) -> PlaceConfig:
    return PlaceConfig(place.bucket, place.prefix, place.region_name, place.endpoint_url, place.profile)


def _raw_zones(document: Document) -> Iterator[tuple[PartPath, dict[str, Any]]]:
    zones = document.value.get("zones") if isinstance(document.value, dict) else None
    for position, zone in enumerate(zones if isinstance(zones, list) else ()):
        if isinstance(zone, dict):
            yield ("zones", position), zone


def _check_ranges(document: Document) -> None:
    n_bits = document.value.get("n_bits") if isinstance(document.value, dict) else None
    last = (1 << n_bits) - 1 if type(n_bits) is int and MIN_N_BITS <= n_bits <= MAX_N_BITS else None
    ranges: list[tuple[RangePart, PartPath]] = []
    for path, zone in _raw_zones(document):
        one = part_of(RangePart, zone.get("range"))
        if one is None:
            continue
        if one.start > one.end:
            document.note((*path, "range"), f"start {one.start} is after end {one.end}; exchange them.")
            continue
        if last is not None and one.end > last:
            document.note(
                (*path, "range"),
                f"{one.start} to {one.end} does not lie within 0 to {last}, the indices that n_bits {n_bits} has.",
            )
        ranges.append((one, (*path, "range")))
    ranges.sort(key=lambda item: (item[0].start, item[0].end))
    _check_overlaps(document, ranges)
    # Where a range is not known, what looks like a gap need not be one.
    if (
        last is not None
        and ranges
        and len(ranges) == len(document.value["zones"])
        and document.value.get("allow_gaps") is not True
    ):
        _check_gaps(document, [one for one, _ in ranges], last)


def _check_overlaps(document: Document, ranges: list[tuple[RangePart, PartPath]]) -> None:
    furthest: tuple[RangePart, PartPath] | None = None
    for one, path in ranges:
        if furthest is not None and one.start <= furthest[0].end:
            shared = f"{one.start} to {min(one.end, furthest[0].end)}"
            document.note(path, f"it shares {shared} with {spelled(furthest[1])}; let every index be in one zone.")
        if furthest is None or one.end > furthest[0].end:
            furthest = one, path


def _check_gaps(document: Document, ranges: list[RangePart], last: int) -> None:
    covered = -1
    gaps = []
    for start, end in [*((one.start, one.end) for one in ranges), (last + 1, last + 1)]:
        if start > covered + 1:
            gaps.append(f"{covered + 1} to {start - 1}")
        covered = max(covered, end)
    if gaps:
        document.note(
            ("zones",), f"no zone holds the indices {', '.join(gaps)}; extend a range, or write allow_gaps: true."
        )


def _check_names(document: Document) -> None:
    first: dict[str, PartPath] = {}
    for path, zone in _raw_zones(document):
        name = zone.get("name")
        if isinstance(name, str) and first.setdefault(name, path) != path:
            document.note((*path, "name"), f"{shown(name)} is the name of {spelled(first[name])} too; choose another.")


def _check_places(document: Document) -> None:
    located: list[tuple[PartPath, Location]] = []
    for path, zone in _raw_zones(document):
        copies = zone.get("copies")
        raw = [((*path, "s3"), zone.get("s3"))]
        raw += [
            ((*path, "copies", number), one) for number, one in enumerate(copies if isinstance(copies, list) else ())
        ]
        for where, value in raw:
            place = part_of(PlacePart, without_s3(value) if where[-1] != "s3" else value)
            if place is not None:
                located.append((where, Location.of(place.endpoint_url, place.bucket, place.prefix)))
    for where, other in collisions(located):
        document.note(where, f"it lies in {spelled(other)}; give each place a bucket or prefix of its own.")
