"""Manifests as tables: CSV and Parquet. Bytes in, the raw value of each row out, in lists of rows that follow each other.

- CSV is RFC 4180 in UTF-8 with a header line; an empty field is not given, `metadata` holds JSON. A bad row fails alone, as an `UnreadableRow`.
- Parquet has columns named as the fields; times with a zone and dates may be such, and `metadata` a struct or JSON text. It is read in any order, so
  what cannot be (a pipe, something compressed) is first copied to a temporary file.
- A row takes at most `MAX_ROW_BYTES`; columns that are no fields are passed over.
"""

from __future__ import annotations

import codecs
import csv
import io
import tempfile
from contextlib import contextmanager, suppress
from shutil import copyfileobj
from typing import IO, TYPE_CHECKING, Any

from des.errors import ManifestError
from des.pack.manifest import MAX_ROW_BYTES, READ_BYTES, TOO_LONG, UnreadableRow
from des.pack.manifest_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COLUMNS = ("uid", "created_at", "source_path", "size_bytes", "content_type", "metadata")
REQUIRED_COLUMNS = ("uid", "created_at", "source_path")

_BATCH_ROWS = 1_000
_SIZE_DIGITS = 20

# ---- CSV ----------------------------------------------------------------------------------------------------------------------------


class _LongLineError(Exception):
    """A line, or a row of several lines, is too long."""


class _Lines:
    """Iterates over lines, no more at once than a row may have; goes on behind a row that is too long."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.row_bytes = 0
        self._stream = stream
        self._is_first = True

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW_BYTES)
        self.row_bytes += len(line)
        if self.row_bytes >= MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(MAX_ROW_BYTES)
            raise _LongLineError
        if not line:
            raise StopIteration
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(codecs.BOM_UTF8)
        # What is no UTF-8 becomes lone surrogates, which no field of a row takes.
        return line.decode("utf-8", "surrogateescape")


def csv_rows(
    stream: io.BufferedReader, name: str, required: Sequence[str] = REQUIRED_COLUMNS
) -> Iterator[list[object]]:
    """Yield the rows of a CSV file.

    Args:
        stream: the manifest, unpacked.
        name: for messages.
        required: the columns it must have.

    Raises:
        ManifestError: it has no header line, or one that lacks a column or has one twice.
    """
    lines = _Lines(stream)
    reader = csv.reader(lines, strict=True)
    try:
        header = next((fields for fields in reader if fields), None)
    except (csv.Error, _LongLineError) as error:
        raise ManifestError(f"the manifest {name} has no header line that is CSV.") from error
    if header is None:
        raise ManifestError(f"the manifest {name} is empty; CSV needs a header line such as {','.join(COLUMNS)}.")
    header = [column.strip() for column in header]
    _check_columns(header, name, required)
    places = [(column, header.index(column)) for column in COLUMNS if column in header]
    values: list[object] = []
    first_line = reader.line_num + 1
    while True:
        lines.row_bytes = 0
        try:
            fields = next(reader)
        except StopIteration:
            break
        except (csv.Error, _LongLineError) as error:
            values.append(UnreadableRow(_csv_complaint(error, first_line, reader.line_num)))
        else:
            if len(fields) == len(header):
                values.append(_csv_value(fields, places))
            elif fields:
                values.append(UnreadableRow(f"the row has {len(fields)} fields, but the header has {len(header)}."))
        first_line = reader.line_num + 1
        if len(values) >= _BATCH_ROWS:
            yield values
            values = []
    yield values


def _csv_complaint(error: Exception, first_line: int, last_line: int) -> str:
    if isinstance(error, _LongLineError):
        return TOO_LONG.error
    where = f"line {last_line}" if last_line <= first_line else f"lines {first_line} to {last_line}"
    return f"the row is not valid CSV: {str(error).rstrip('.')} ({where})."


def _csv_value(fields: list[str], places: list[tuple[str, int]]) -> object:
    value: dict[str, object] = {column: fields[place] for column, place in places if fields[place]}
    size = value.get("size_bytes")
    if isinstance(size, str) and size.isascii() and size.isdigit() and len(size) <= _SIZE_DIGITS:
        value["size_bytes"] = int(size)
    return _with_metadata(value)


def _check_columns(header: list[str], name: str, required: Sequence[str]) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise ManifestError(f"the manifest {name} has no column {' and no column '.join(missing)}.")
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice is not None:
        raise ManifestError(f"the manifest {name} has the column {twice[:64]!r} twice.")


def _with_metadata(value: dict[str, object]) -> object:
    """Parse metadata that is text."""
    text = value.get("metadata")
    if isinstance(text, str):
        # What is no JSON stays text, which metadata must not be: the row is refused, and shows it.
        with suppress(ValueError, RecursionError):
            value["metadata"] = parse_json(text)
    return value


# ---- Parquet ------------------------------------------------------------------------------------------------------------------------


def parquet_rows(
    stream: io.BufferedReader, name: str, required: Sequence[str] = REQUIRED_COLUMNS
) -> Iterator[list[object]]:
    """Yield the rows of a Parquet file. Arguments as for `csv_rows`.

    Raises:
        ManifestError: it is damaged, lacks a column, or the library that reads it is not installed.
    """
    try:
        import pyarrow  # noqa: ICN001, PLC0415 - an extra, and slow to load
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ManifestError(
            f"the manifest {name} is Parquet, which needs pyarrow: pip install 'data-easy-store[parquet]'."
        ) from error
    with _seekable(stream) as file:
        try:
            parquet = pyarrow.parquet.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
            header = list(parquet.schema_arrow.names)
            _check_columns(header, name, required)
            columns = [column for column in COLUMNS if column in header]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                lists = [_parquet_column(pyarrow, column) for column in batch.columns]
                names = batch.schema.names
                yield [_with_metadata(dict(zip(names, row, strict=True))) for row in zip(*lists, strict=True)]
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise ManifestError(f"the manifest {name} is not valid Parquet: {why}.") from error


def _parquet_column(pyarrow: Any, column: Any) -> list[object]:  # noqa: ANN401 - the library has no types
    kind = column.type
    if pyarrow.types.is_timestamp(kind):  # as Python keeps times: UTC, microseconds
        column = column.cast(pyarrow.timestamp("us", tz="UTC" if kind.tz else None), safe=False)
    values: list[object] = column.to_pylist()
    return values


@contextmanager
def _seekable(stream: io.BufferedReader) -> Iterator[IO[bytes]]:
    """Open the stream itself where it can be read in any order, which Parquet needs; else a copy on disk."""
    if isinstance(stream.raw, io.FileIO) and stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        copyfileobj(stream, copy, READ_BYTES)
        copy.seek(0)
        yield copy
