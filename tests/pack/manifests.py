"""Manifests in tests: the same rows in every format and compression, and what reading one comes to."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from des.pack.inputs import Manifests
from des.pack.manifest import BadRow, ManifestRow, RowChecker
from des.pack.spool import Spool
from des.storage.descriptor import Descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.pack.inputs import Input

FORMATS = ("json", "jsonl", "ndjson", "csv", "parquet")
PACKINGS = ("", ".gz", ".zst")
COLUMNS = ("uid", "created_at", "source_path", "size_bytes", "content_type", "metadata")


def encoded(rows: Sequence[dict[str, Any]], form: str) -> bytes:
    """Return rows in a format."""
    if form == "json":
        return json.dumps(rows).encode()
    if form in {"jsonl", "ndjson"}:
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(_flat(row) for row in rows)
        return text.getvalue().encode()
    columns = {name: [_flat(row).get(name) for row in rows] for name in COLUMNS}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"metadata": json.dumps(row["metadata"])} if row.get("metadata") is not None else row


def packed(data: bytes, packing: str) -> bytes:
    """Return data compressed, in two members or frames."""
    half = len(data) // 2
    if packing == ".gz":
        return gzip.compress(data[:half]) + gzip.compress(data[half:])
    if packing == ".zst":
        return zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    return data


def read(given: Path | str | Input, *, only_json: bool = False) -> list[ManifestRow | BadRow]:
    """Read an input to its end, in this thread; the rows in order, numbered on."""
    one = Manifests(str(given), only_json) if isinstance(given, str | Path) else given
    checker = RowChecker(Descriptor.new(1))
    rows: list[ManifestRow | BadRow] = []
    with Spool() as spool:
        for part in one.parts():
            for piece in part.pieces(spool):
                checked = checker.check_all(len(rows) + 1, piece())
                rows += sorted([*checked.good, *checked.bad], key=lambda row: row.number)
    return rows
