"""What a zones file may say, part by part: names, types and bounds. Whether the parts go together is for `zones_config` to say."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from des.routing import MAX_N_BITS, MIN_N_BITS
from des.storage.marked_document import shown
from des.storage.s3_config import is_endpoint_url

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from des.storage.marked_document import Document, PartPath

WriteQuorum = Literal["all", "majority", 1]
_Model = TypeVar("_Model", bound=BaseModel)
_IN_ZONE = 2  # longer paths below `zones` lead into a zone


def _bucket(text: str) -> str:
    if not text or "/" in text or "@" in text:
        raise ValueError("it is no bucket's name; write bucket: NAME, and what follows a slash as prefix")
    return text


def _endpoint_url(text: str) -> str:
    if not is_endpoint_url(text):
        raise ValueError("write it as https://host:port, without credentials, query and fragment")
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


class PlacePart(_Part):
    """A place, without what a copy may have around it."""

    bucket: Annotated[str, Strict(), AfterValidator(_bucket)]
    prefix: Annotated[str, Strict(), AfterValidator(lambda text: text.strip("/"))] = ""
    region_name: _Text | None = None
    endpoint_url: Annotated[str, Strict(), AfterValidator(_endpoint_url)] | None = None
    profile: _Text | None = None


def without_s3(value: object) -> object:
    """Return a copy that is written as `s3: {…}`, as the primary is, without that."""
    return value["s3"] if isinstance(value, dict) and list(value) == ["s3"] else value


_Copy = Annotated[PlacePart, BeforeValidator(without_s3)]


class RangePart(_Part):
    """A range of indices, both ends included."""

    start: _Whole
    end: _Whole


class ZonePart(_Part):
    """A zone."""

    name: _Text
    range: RangePart
    s3: PlacePart
    copies: Annotated[list[_Copy], Strict()] = Field(default_factory=list)
    write_quorum: _Quorum | None = None


class FilePart(_Part):
    """The whole file."""

    n_bits: Annotated[int, Strict(), Field(ge=MIN_N_BITS, le=MAX_N_BITS)]
    zones: Annotated[list[ZonePart], Strict(), Field(min_length=1)]
    write_quorum: _Quorum = "all"
    allow_gaps: _Flag = False
    read_repair: _Flag = False
    hedge: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.05
    place_timeout: Annotated[float, Strict(), Field(gt=0, le=3600)] = 2.0


def validated(document: Document) -> FilePart | None:
    """Return what the file says, part by part; None, with all problems noted, where a part is not as it should be."""
    try:
        return FilePart.model_validate(document.value)
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
        return f"it is {shown(value)}; {error['ctx']['error']}."
    if kind == "model_type":
        return f"it is {shown(value)}; write keys and values here."
    if kind == "string_type":
        return f"it is {shown(value)}; write a text, in quotes."
    reason = error["msg"].removeprefix("Input should ").removesuffix(" instance")
    return f"it is {shown(value)}; it should {reason}."


def _no_such_key(where: PartPath) -> str:
    known = list(_keys_of(where[:-1]).model_fields)
    near = difflib.get_close_matches(str(where[-1]), known, n=1)
    cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
    return f"there is no such key; {cure}"


def _keys_of(where: PartPath) -> type[BaseModel]:
    if not where:
        return FilePart
    parts: dict[str | int, type[BaseModel]] = {"range": RangePart, "s3": PlacePart, "copies": PlacePart}
    return parts.get(where[2], ZonePart) if len(where) > _IN_ZONE else ZonePart


def part_of(model: type[_Model], value: object) -> _Model | None:
    """Return a part that is right in itself, whatever is wrong elsewhere."""
    try:
        return model.model_validate(value)
    except ValidationError:
        return None
