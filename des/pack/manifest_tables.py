"""Manifests as tables: CSV and Parquet. Bytes in, pieces of rows that follow each other out: what calling a piece takes is left to others.

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
from dataclasses import dataclass
from functools import partial
from itertools import islice
from shutil import copyfileobj
from typing import IO, TYPE_CHECKING, Any

from des.errors import ManifestError
from des.pack.manifest import MAX_ROW_BYTES, READ_BYTES, TOO_LONG, Piece, UnreadableRow
from des.pack.manifest_json import parse_json

if TYPE_CHECKING:
    from _csv import Reader as _Reader
    from collections.abc import Iterable, Iterator, Sequence

COLUMNS = ("uid", "created_at", "source_path", "size_bytes", "content_type", "metadata")
REQUIRED_COLUMNS = ("uid", "created_at", "source_path")

_BATCH_ROWS = 1_000
_BATCHES_A_PIECE = 10
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
        self._ahead = io.BytesIO()  # what was read of the stream, but not passed on

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._read_line()
        self.row_bytes += len(line)
        if self.row_bytes >= MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._read_line()
            raise _LongLineError
        if not line:
            raise StopIteration
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(codecs.BOM_UTF8)
        return _text(line)

    def _read_line(self) -> bytes:
        line = self._ahead.readline(MAX_ROW_BYTES)
        if not line.endswith(b"\n"):
            line += self._stream.readline(MAX_ROW_BYTES - len(line))
        return line

    def plain(self) -> bytes:
        """Return many lines at once if each of them is a row, for there is no quote in them, and none is too long; b"" if they are to be read one by one."""
        if self._ahead.tell() < len(self._ahead.getbuffer()):
            return b""
        lines = self._stream.read(READ_BYTES)
        if not lines.endswith(b"\n"):
            lines += self._stream.readline(MAX_ROW_BYTES - len(lines))
        is_plain = b'"' not in lines and (len(lines) < MAX_ROW_BYTES)
        self._ahead = io.BytesIO(b"" if is_plain else lines)
        return lines if is_plain else b""


def _text(line: bytes) -> str:
    """Return the text of lines. What is no UTF-8 becomes lone surrogates, which no field of a row takes."""
    return line.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class _Header:
    """How many fields a row has, and where those are that matter."""

    width: int
    places: list[tuple[str, int]]


def csv_rows(stream: io.BufferedReader, name: str, required: Sequence[str] = REQUIRED_COLUMNS) -> Iterator[Piece]:
    """Yield the rows of a CSV file, in pieces.

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
        names = next((fields for fields in reader if fields), None)
    except (csv.Error, _LongLineError) as error:
        raise ManifestError(f"the manifest {name} has no header line that is CSV.") from error
    if names is None:
        raise ManifestError(f"the manifest {name} is empty; CSV needs a header line such as {','.join(COLUMNS)}.")
    names = [column.strip() for column in names]
    _check_columns(names, name, required)
    header = _Header(len(names), [(column, names.index(column)) for column in COLUMNS if column in names])
    passed = 0  # lines that the reader did not see
    while True:
        while plain := lines.plain():
            yield partial(_csv_values_of_lines, plain, header, reader.line_num + passed)
            passed += plain.count(b"\n")
        rows = list(islice(_csv_fields(reader, passed, lines), _BATCH_ROWS))
        if not rows:
            return
        yield partial(_csv_values, rows, header)


def _csv_fields(reader: _Reader, passed: int, lines: _Lines | None = None) -> Iterator[list[str] | UnreadableRow]:
    """Yield the fields of each row; what is none fails alone. Before the reader's first line there were `passed`."""
    while True:
        first_line = passed + reader.line_num + 1
        if lines is not None:
            lines.row_bytes = 0
        try:
            yield next(reader)
        except StopIteration:
            return
        except (csv.Error, _LongLineError) as error:
            yield UnreadableRow(_csv_complaint(error, first_line, passed + reader.line_num))


def _csv_values_of_lines(lines: bytes, header: _Header, passed: int) -> list[object]:
    return _csv_values(_csv_fields(csv.reader(io.StringIO(_text(lines), newline="\n"), strict=True), passed), header)


def _csv_values(rows: Iterable[list[str] | UnreadableRow], header: _Header) -> list[object]:
    values: list[object] = []
    for fields in rows:
        if isinstance(fields, UnreadableRow):
            values.append(fields)
        elif len(fields) == header.width:
            values.append(_csv_value(fields, header.places))
        elif fields:
            values.append(UnreadableRow(f"the row has {len(fields)} fields, but the header has {header.width}."))
    return values


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


def parquet_rows(stream: io.BufferedReader, name: str, required: Sequence[str] = REQUIRED_COLUMNS) -> Iterator[Piece]:
    """Yield the rows of a Parquet file, in pieces. Arguments as for `csv_rows`.

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
    with _seekable(stream) as file, _parquet_trouble(name):
        parquet = pyarrow.parquet.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
        header = list(parquet.schema_arrow.names)
        _check_columns(header, name, required)
        columns = [column for column in COLUMNS if column in header]
        waiting: list[Any] = []
        size = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            waiting.append(batch)
            size += batch.nbytes
            if size >= READ_BYTES or len(waiting) >= _BATCHES_A_PIECE:
                yield partial(_parquet_values, waiting, name)
                waiting, size = [], 0
        yield partial(_parquet_values, waiting, name)


@contextmanager
def _parquet_trouble(name: str) -> Iterator[None]:
    """Translate what reading Parquet may raise."""
    import pyarrow  # noqa: ICN001, PLC0415 - as above

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ManifestError(f"the manifest {name} is not valid Parquet: {why}.") from error


def _parquet_values(batches: Sequence[Any], name: str) -> list[object]:
    import pyarrow  # noqa: ICN001, PLC0415 - as above

    values: list[object] = []
    with _parquet_trouble(name):
        for batch in batches:
            lists = [_parquet_column(pyarrow, column) for column in batch.columns]
            names = batch.schema.names
            values += [_with_metadata(dict(zip(names, row, strict=True))) for row in zip(*lists, strict=True)]
    return values


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
