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

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from des.errors import SettingsError
from des.routing import MAX_N_BITS, MIN_N_BITS
from des.storage.locations import Location, collisions
from des.storage.marked_document import Document, PartPath, ProblemsError, read_document, spelled
from des.storage.s3_config import S3Config, is_endpoint_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from des.settings import Settings

WriteQuorum = Literal["all", "majority", 1]
_Model = TypeVar("_Model", bound=BaseModel)
_MAX_SHOWN = 60
_IN_ZONE = 2  # longer paths below `zones` lead into a zone


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
    model = _model(document)
    _check_ranges(document)
    _check_names(document)
    _check_places(document)
    if model is None or document.problems:
        raise ProblemsError(path, document.problems)
    return model.config(path)


def _bucket(text: str) -> str:
    if not text or "/" in text:
        raise ValueError("it is no bucket's name; write bucket: NAME, and what follows a slash as prefix")
    return text


def _endpoint_url(text: str) -> str:
    if not is_endpoint_url(text):
        raise ValueError("write it as https://host:port, without query and fragment")
    return text


def _no_flag(value: object) -> object:
    if isinstance(value, bool):  # which Python takes for 1
        raise ValueError("write all, majority or 1")  # noqa: TRY004 - pydantic's kind of error
    return value


_Quorum = Annotated[WriteQuorum, BeforeValidator(_no_flag)]
_Text = Annotated[str, Strict(), Field(min_length=1)]
_Flag = Annotated[bool, Strict()]
_Whole = Annotated[int, Strict(), Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Place(_Part):
    bucket: Annotated[str, Strict(), AfterValidator(_bucket)]
    prefix: Annotated[str, Strict(), AfterValidator(lambda text: text.strip("/"))] = ""
    region_name: _Text | None = None
    endpoint_url: Annotated[str, Strict(), AfterValidator(_endpoint_url)] | None = None
    profile: _Text | None = None

    def config(self) -> PlaceConfig:
        return PlaceConfig(self.bucket, self.prefix, self.region_name, self.endpoint_url, self.profile)


def _without_s3(value: object) -> object:
    """Return a copy that is written as `s3: {…}`, as the primary is, without that."""
    return value["s3"] if isinstance(value, dict) and list(value) == ["s3"] else value


_Copy = Annotated[_Place, BeforeValidator(_without_s3)]


class _Range(_Part):
    start: _Whole
    end: _Whole


class _Zone(_Part):
    name: _Text
    range: _Range
    s3: _Place
    copies: Annotated[list[_Copy], Strict()] = Field(default_factory=list)
    write_quorum: _Quorum | None = None

    def config(self, write_quorum: WriteQuorum) -> ZoneConfig:
        return ZoneConfig(
            self.name,
            self.range.start,
            self.range.end,
            self.s3.config(),
            tuple(copy.config() for copy in self.copies),
            self.write_quorum or write_quorum,
        )


class _File(_Part):
    n_bits: Annotated[int, Strict(), Field(ge=MIN_N_BITS, le=MAX_N_BITS)]
    zones: Annotated[list[_Zone], Strict(), Field(min_length=1)]
    write_quorum: _Quorum = "all"
    allow_gaps: _Flag = False
    read_repair: _Flag = False
    hedge: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.05
    place_timeout: Annotated[float, Strict(), Field(gt=0, le=3600)] = 2.0

    def config(self, path: Path) -> ZonesConfig:
        zones = sorted((zone.config(self.write_quorum) for zone in self.zones), key=lambda zone: zone.start)
        return ZonesConfig(
            path,
            self.n_bits,
            tuple(zones),
            self.allow_gaps,
            self.read_repair,
            self.hedge,
            self.place_timeout,
        )


def _model(document: Document) -> _File | None:
    """Return what the file says, part by part; None, with all problems noted, where a part is not as it should be."""
    try:
        return _File.model_validate(document.value)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            document.note(one["loc"], _sentence(one))
        return None


def _sentence(error: ErrorDetails) -> str:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "it is missing; add it."
    if kind == "extra_forbidden":
        return _no_such_key(error["loc"])
    if kind == "value_error":
        return f"it is {_shown(value)}; {error['ctx']['error']}."
    if kind == "model_type":
        return f"it is {_shown(value)}; write keys and values here."
    if kind == "string_type":
        return f"it is {_shown(value)}; write a text, in quotes."
    reason = error["msg"].removeprefix("Input should ").removesuffix(" instance")
    return f"it is {_shown(value)}; it should {reason}."


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _no_such_key(where: PartPath) -> str:
    known = list(_keys_of(where[:-1]).model_fields)
    near = difflib.get_close_matches(str(where[-1]), known, n=1)
    cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
    return f"there is no such key; {cure}"


def _keys_of(where: PartPath) -> type[BaseModel]:
    if not where:
        return _File
    parts: dict[str | int, type[BaseModel]] = {"range": _Range, "s3": _Place, "copies": _Place}
    return parts.get(where[2], _Zone) if len(where) > _IN_ZONE else _Zone


def _part(model: type[_Model], value: object) -> _Model | None:
    """Return a part that is right in itself, whatever is wrong elsewhere."""
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


def _raw_zones(document: Document) -> Iterator[tuple[PartPath, dict[str, Any]]]:
    zones = document.value.get("zones") if isinstance(document.value, dict) else None
    for position, zone in enumerate(zones if isinstance(zones, list) else ()):
        if isinstance(zone, dict):
            yield ("zones", position), zone


def _check_ranges(document: Document) -> None:
    n_bits = document.value.get("n_bits") if isinstance(document.value, dict) else None
    last = (1 << n_bits) - 1 if type(n_bits) is int and MIN_N_BITS <= n_bits <= MAX_N_BITS else None
    ranges: list[tuple[_Range, PartPath]] = []
    for path, zone in _raw_zones(document):
        one = _part(_Range, zone.get("range"))
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


def _check_overlaps(document: Document, ranges: list[tuple[_Range, PartPath]]) -> None:
    furthest: tuple[_Range, PartPath] | None = None
    for one, path in ranges:
        if furthest is not None and one.start <= furthest[0].end:
            shared = f"{one.start} to {min(one.end, furthest[0].end)}"
            document.note(path, f"it shares {shared} with {spelled(furthest[1])}; let every index be in one zone.")
        if furthest is None or one.end > furthest[0].end:
            furthest = one, path


def _check_gaps(document: Document, ranges: list[_Range], last: int) -> None:
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
            document.note((*path, "name"), f"{_shown(name)} is the name of {spelled(first[name])} too; choose another.")


def _check_places(document: Document) -> None:
    located: list[tuple[PartPath, Location]] = []
    for path, zone in _raw_zones(document):
        copies = zone.get("copies")
        raw = [((*path, "s3"), zone.get("s3"))]
        raw += [
            ((*path, "copies", number), one) for number, one in enumerate(copies if isinstance(copies, list) else ())
        ]
        for where, value in raw:
            place = _part(_Place, _without_s3(value) if where[-1] != "s3" else value)
            if place is not None:
                located.append((where, Location.of(place.endpoint_url, place.bucket, place.prefix)))
    for where, other in collisions(located):
        document.note(where, f"it lies in {spelled(other)}; give each place a bucket or prefix of its own.")
