"""What the service offers, in OpenAPI 3.1: the declarations that the routes are made of, and the document that shows them.

Patterns are as strict as the service, where a regular expression can be; what it cannot say (whether a day is in the calendar) is
answered by 400.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from des.http.access import OPEN_PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]

_UNAVAILABLE: Final = {
    "502": "The storage refused access to this service.",
    "503": "Overloaded, starting or ending, or the storage is unreachable.",
    "504": "The storage did not answer in time.",
}
_BAD_REQUEST: Final = {"400": "The request cannot be understood.", "431": "The request's header is too long."}
_DAMAGED: Final = {"500": "What is stored is damaged."}
_ACCESS: Final = {
    "401": "With access control: no key, or one that is unknown, wrong or expired.",
    "403": "With access control: the key does not allow this, or the signed URL was altered or has expired.",
    "429": "With access control: the key is past its rate.",
}
_NO_METHOD: Final = {"405": "The resource does not answer to this method."}


def _version() -> str:
    try:
        return version("data-easy-store")
    except PackageNotFoundError:  # run from its source alone
        return "0"


VERSION: Final = _version()  # read from files, so not while serving


@dataclass(frozen=True, slots=True)
class Operation:
    """One path of the service.

    Attributes:
        path: with its parameters in braces.
        methods: GET stands for HEAD as well.
        name: of the operation, in lower camel case.
        summary: one line.
        answers: what a success looks like, by status.
        problems: what else may come, by status.
        parameters: as OpenAPI has them.
        content: the request's content, as OpenAPI has it.
    """

    path: str
    methods: Sequence[str]
    name: str
    summary: str
    answers: Mapping[str, Json]
    problems: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[Json] = ()
    content: Json | None = None

    def document(self, method: str) -> Json:
        """Return the operation as OpenAPI has it."""
        access = {} if self.path in OPEN_PATHS else _ACCESS
        problems = {status: _problem(text) for status, text in {**_NO_METHOD, **access, **self.problems}.items()}
        found: Json = {
            "operationId": self.name if method != "head" else f"{self.name}Head",
            "summary": self.summary,
            "responses": {**self.answers, **dict(sorted(problems.items()))},
        }
        if self.parameters:
            found["parameters"] = list(self.parameters)
        if self.content:
            found["requestBody"] = self.content
        return found


def _problem(text: str) -> Json:
    return {
        "description": text,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _parameter(where: str, name: str, description: str, schema: Json, *, required: bool = False) -> Json:
    return {"name": name, "in": where, "description": description, "required": required, "schema": schema}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, optional: Sequence[str] = ()) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT: Final = {"type": "string"}
_UID: Final = {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": r"^[^\u0000-\u001f]+$"}
_INSTANT: Final = {
    "type": "string",
    "minLength": 10,
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))?$",
    "examples": ["2024-01-31T12:00:00Z", "2024-01-31"],
}
_DAY: Final = {"type": "string", "pattern": "^[0-9]{4}-?[0-9]{2}-?[0-9]{2}$", "examples": ["20240131"]}
_DATE: Final = {"type": "string", "pattern": "^[0-9]{8}$"}
_NEXT: Final = {"type": ["string", "null"], "description": "The cursor to go on after; null at the end."}
_LIMIT: Final = _parameter(
    "query",
    "limit",
    "Entries of a page, at most.",
    {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000},
)

_CREATED_AT: Final = "A time with its zone, or a date: its UTC day is part of the file's name."
_DOWNLOAD: Final = _parameter(
    "query",
    "download",
    "Answer with Content-Disposition: attachment, under this name.",
    {"type": "string", "maxLength": 255},
)
_CONDITIONS: Final = [
    _parameter("header", name, f"RFC 9110 section {section}.", _TEXT)
    for name, section in (
        ("Range", "14.2"),
        ("If-Match", "13.1.1"),
        ("If-None-Match", "13.1.2"),
        ("If-Modified-Since", "13.1.3"),
        ("If-Unmodified-Since", "13.1.4"),
        ("If-Range", "13.1.5"),
        ("Accept-Encoding", "12.5.3"),
    )
]
_CONTENT: Final[Json] = {"*/*": {}}
_FILE_ANSWERS: Final[Mapping[str, Json]] = {
    "200": {"description": "The file, or with Accept-Encoding its stored zstd frame.", "content": _CONTENT},
    "206": {"description": "The part of the file that Range asks for.", "content": _CONTENT},
    "304": {"description": "Not modified."},
}
_FILE_PROBLEMS: Final = {
    **_BAD_REQUEST,
    "404": "Proven: there is no such file.",
    "410": "Proven: the file was deleted.",
    "412": "A condition of the request is not met.",
    "416": "No byte of the file lies in the range.",
    **_DAMAGED,
    **_UNAVAILABLE,
}

FILE: Final = Operation(
    "/files/{uid}",
    ("GET", "HEAD"),
    "getFile",
    "A file. Slashes belong to its uid.",
    _FILE_ANSWERS,
    _FILE_PROBLEMS,
    [
        _parameter("path", "uid", "The file's uid, percent-encoded once.", _UID, required=True),
        _parameter("query", "created_at", _CREATED_AT, _INSTANT, required=True),
        _DOWNLOAD,
        *_CONDITIONS,
    ],
)
FILES: Final = Operation(
    "/files",
    ("GET", "HEAD"),
    "getFileOrListFiles",
    "With uid and created_at a file; with date instead the files of a day.",
    {
        **_FILE_ANSWERS,
        "200": {
            "description": "The file; or a page of the day's files, in the order of their hashed uids.",
            "content": {**_CONTENT, "application/json": {}},
        },
    },
    _FILE_PROBLEMS,
    [
        _parameter("query", "uid", "The file's uid.", _UID),
        _parameter("query", "created_at", _CREATED_AT, _INSTANT),
        _DOWNLOAD,
        _parameter("query", "date", "The UTC day to list.", _DAY),
        _parameter("query", "after", "A cursor: `next` of the page before.", {"type": "string"}),
        _LIMIT,
        *_CONDITIONS,
    ],
)
SHARDS: Final = Operation(
    "/shards/{date}",
    ("GET", "HEAD"),
    "listShards",
    "The shards of a day, as their heads count them.",
    {"200": _json("A page of shards in the order of their indices.", _ref("ShardPage"))},
    {**_BAD_REQUEST, **_DAMAGED, **_UNAVAILABLE},
    [
        _parameter("path", "date", "The UTC day.", _DAY, required=True),
        _parameter(
            "query",
            "after",
            "A cursor: `next` of the page before.",
            {"type": "string", "pattern": "^[0-9A-F]{1,4}$"},
        ),
        _LIMIT,
    ],
)
BATCH: Final = Operation(
    "/batch",
    ("POST",),
    "getBatch",
    "Many files as one tar, in the order asked for; its last member `_des_report.ndjson` says what became of each item.",
    {
        "200": {
            "description": "A tar (PAX). A member's exact uid is in its record `DES.uid`; an item that failed has no member.",
            "content": {"application/x-tar": {}},
        }
    },
    {
        **_BAD_REQUEST,
        "408": "The content did not come in time.",
        "413": "Too many items, or too many bytes.",
        **_DAMAGED,
        **_UNAVAILABLE,
    },
    content={
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "maxItems": 1000,
                    "items": _object({"uid": {"type": ["string", "integer"]}, "created_at": _TEXT}),
                }
            }
        },
    },
)
_PLACES_BY_ZONE: Final = {
    "type": "object",
    "additionalProperties": {"type": "object", "additionalProperties": {"enum": ["ok", "failing"]}},
}
HEALTH: Final = Operation(
    "/health",
    ("GET", "HEAD"),
    "health",
    "Whether the process answers.",
    {"200": _json("It does.", _object({"status": {"const": "ok"}}))},
    {"431": _BAD_REQUEST["431"]},
)
READY: Final = Operation(
    "/ready",
    ("GET", "HEAD"),
    "ready",
    "Whether files can be served.",
    {
        "200": _json(
            "They can, perhaps not from every place.",
            _object({"status": {"enum": ["ok", "degraded"]}, "zones": _PLACES_BY_ZONE}),
        )
    },
    {"431": _BAD_REQUEST["431"], **_DAMAGED, **_UNAVAILABLE},
)
METRICS: Final = Operation(
    "/metrics",
    ("GET", "HEAD"),
    "metrics",
    "Counters for Prometheus.",
    {"200": {"description": "Text in Prometheus' exposition format.", "content": {"text/plain": {}}}},
    {"431": _BAD_REQUEST["431"]},
)
OPENAPI: Final = Operation(
    "/openapi.json",
    ("GET", "HEAD"),
    "openapi",
    "This document.",
    {"200": _json("OpenAPI 3.1.", {"type": "object"})},
    {"431": _BAD_REQUEST["431"]},
)
_DELETE_ANSWERS: Final = {"204": {"description": "Deleted; readers go on serving it for up to `DES_INDEX_TTL`."}}
_DELETE_PROBLEMS: Final = {
    **_BAD_REQUEST,
    **_DAMAGED,
    **_UNAVAILABLE,
    "404": "Proven: there is no such file.",
    "409": "Other writers kept changing the same file.",
    "410": "It had been deleted before.",
}
DELETE_FILE: Final = Operation(
    "/files/{uid}",
    ("DELETE",),
    "deleteFile",
    "Delete a file, with a key that may.",
    _DELETE_ANSWERS,
    _DELETE_PROBLEMS,
    FILE.parameters[:2],
)
DELETE_FILE_BY_QUERY: Final = Operation(
    "/files",
    ("DELETE",),
    "deleteFileByQuery",
    "Delete a file, in the spelling that survives proxies which rewrite paths.",
    _DELETE_ANSWERS,
    _DELETE_PROBLEMS,
    [
        _parameter("query", "uid", "The file's uid.", _UID, required=True),
        _parameter("query", "created_at", _CREATED_AT, _INSTANT, required=True),
    ],
)

OPERATIONS: Final = (FILE, FILES, SHARDS, BATCH, HEALTH, READY, METRICS, OPENAPI)
# Only where access control is on.
DELETING: Final = (DELETE_FILE, DELETE_FILE_BY_QUERY)

_SCHEMAS: Final[Json] = {
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri-reference"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _TEXT,
            "instance": {"type": "string", "format": "uri"},
        }
    ),
    "FileInfo": _object(
        {
            "uid": _UID,
            "created_at": {"type": "string", "format": "date-time"},
            "raw_size": _COUNT,
            "stored_size": _COUNT,
            "codec": {"enum": ["none", "zstd", "lz4", "zstd-dict"]},
            "content_type": _TEXT,
            "metadata": {"type": ["object", "null"]},
            "etag": _TEXT,
            "content_hash": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "shard": _TEXT,
            "segment": _TEXT,
            "offset": _COUNT,
        }
    ),
    "ShardInfo": _object(
        {
            "shard": _TEXT,
            "files": _COUNT,
            "deleted": _COUNT,
            "raw_bytes": _COUNT,
            "stored_bytes": _COUNT,
            "segments": _COUNT,
        }
    ),
    "FilePage": _object({"date": _DATE, "files": {"type": "array", "items": _ref("FileInfo")}, "next": _NEXT}),
    "ShardPage": _object({"date": _DATE, "shards": {"type": "array", "items": _ref("ShardInfo")}, "next": _NEXT}),
}


def document(*, deleting: bool = False) -> Json:
    """Return the OpenAPI document; `deleting` where files can be deleted."""
    paths: Json = {}
    for operation in (*OPERATIONS, *(DELETING if deleting else ())):
        described = {method.lower(): operation.document(method.lower()) for method in operation.methods}
        paths.setdefault(operation.path, {}).update(described)
    return {
        "openapi": "3.1.0",
        "info": {"title": "DES: Data Easy Store", "version": VERSION},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
