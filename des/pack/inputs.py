"""What a run is told to pack: manifests by name, each a source of raw rows.

    manifest.jsonl.zst         a file; its name says format and compression, its first bytes where the name says nothing
    manifests/                 a directory: every file below it that is named as a manifest, in order of their paths
    'manifests/*.csv'          a pattern (** for any number of directories), in order too
    -                          standard input
    s3://bucket/key            an object; s3://bucket/prefix/ every object below it that is named as a manifest

Manifests are read one after another, never held: objects of S3 are first copied to a temporary file, one at a time. All of this runs in a worker
thread, which asks the event loop where it needs it.
"""

from __future__ import annotations

import glob
import io
import os
import select
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple
from urllib.parse import urlsplit

import anyio.from_thread
import anyio.to_thread

from des.errors import ManifestError, ObjectNotFoundError
from des.pack.manifest_json import json_array, json_lines
from des.pack.manifest_streams import naming_of, reading, sniffed_format, unpacked
from des.pack.manifest_tables import REQUIRED_COLUMNS, csv_rows, parquet_rows
from des.storage.opening import opened_storage, resolve_target

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import IO

    from _typeshed import WriteableBuffer

    from des.pack.manifest import Piece
    from des.pack.manifest_streams import Format
    from des.pack.spool import Spool
    from des.settings import Settings

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

STDIN = "-"
_S3 = "s3://"
_PATTERN = frozenset("*?[")
_POLL_MILLISECONDS = 200

_JSON_READERS: dict[Format, Callable[[io.BufferedReader, str], Iterator[Piece]]] = {
    "json": json_array,
    "jsonl": json_lines,
}
_TABLE_READERS: dict[Format, Callable[[io.BufferedReader, str, Sequence[str]], Iterator[Piece]]] = {
    "csv": csv_rows,
    "parquet": parquet_rows,
}


class Part(Protocol):
    """One source of rows: a manifest, a directory, an archive.

    Attributes:
        name: for people.
    """

    @property
    def name(self) -> str:
        """See the class."""

    def identity(self) -> str:
        """Return what tells whether it is the same one, unchanged, in a later run; runs in a worker thread.

        Raises:
            ManifestError: it is not there, or a later run could not have it again.
        """

    def pieces(self, spool: Spool) -> Iterator[Piece]:
        """Yield raw rows, many at once; runs in a worker thread.

        Args:
            spool: for what must lie on disk until it is packed.

        Raises:
            ManifestError: it cannot be read to its end.
        """


class Input(Protocol):
    """What was given on the command line; it may come to several parts."""

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order; runs in a worker thread.

        Raises:
            ManifestError: there are none, or they cannot be looked up.
        """


@dataclass(frozen=True, slots=True)
class Manifests:
    """A manifest, or several under one name, as described above.

    Attributes:
        name: as it was given.
        only_json: the content is JSON, an array or lines, whatever the name says.
        settings: of the endpoint that has the objects; None where no name begins with s3://.
        columns: what a table must have.
    """

    name: str
    only_json: bool = False
    settings: Settings | None = None
    columns: Sequence[str] = REQUIRED_COLUMNS

    def parts(self) -> Iterator[Part]:
        """See `Input`."""
        if self.name == STDIN:
            yield _StandardInput(self.only_json, self.columns)
        elif self.name.startswith(_S3):
            for key in self._keys():
                yield _S3Object(key, self.only_json, self.columns, self.settings)
        else:
            for path in self._paths():
                yield _File(path, self.only_json, self.columns)

    def _paths(self) -> list[Path]:
        path = Path(self.name)
        if os.path.isdir(path):  # noqa: PTH112 - False for a path that may not be looked at, too
            found = sorted(one for one in path.rglob("*") if _is_named_as_manifest(one.name) and one.is_file())
            if not found:
                raise ManifestError(
                    f"there is no manifest below {self.name}: no file named .json, .jsonl, .ndjson, .csv or .parquet."
                )
            return found
        if _PATTERN.isdisjoint(self.name) or os.path.exists(path):  # noqa: PTH110 - as above
            return [path]
        matches = sorted(Path(one) for one in glob.glob(self.name, recursive=True))  # noqa: PTH207 - takes absolute patterns
        if not matches:
            raise ManifestError(f"no manifest matches {self.name}.")
        return [one for one in matches if not one.is_dir()]

    def _keys(self) -> list[str]:
        if not self.name.endswith("/") and urlsplit(self.name).path.strip("/"):
            return [self.name]
        keys = _ask_s3(_list_objects, self.name, self.settings)
        found = [key for key in keys if _is_named_as_manifest(key)]
        if not found:
            raise ManifestError(
                f"there is no manifest below {self.name}: no object named .json, .jsonl, .ndjson, .csv or .parquet."
            )
        return found


def _is_named_as_manifest(name: str) -> bool:
    return naming_of(name).format is not None


# ---- the parts ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    only_json: bool
    columns: Sequence[str]

    @property
    def name(self) -> str:
        return str(self.path)

    def identity(self) -> str:
        with reading(self.name):
            status = self.path.stat()
            return f"{self.path.resolve()} {self.only_json} {status.st_size} {status.st_mtime_ns}"

    def pieces(self, spool: Spool) -> Iterator[Piece]:  # noqa: ARG002 - sources lie where the rows say
        with reading(self.name), self.path.open("rb") as file:
            yield from _pieces_of(file, self.name, only_json=self.only_json, columns=self.columns)


@dataclass(frozen=True, slots=True)
class _StandardInput:
    only_json: bool
    columns: Sequence[str]

    @property
    def name(self) -> str:
        return STDIN

    def identity(self) -> str:
        raise ManifestError("standard input (-) cannot be read a second time; --state needs manifests that stay.")

    def pieces(self, spool: Spool) -> Iterator[Piece]:  # noqa: ARG002 - as above
        with reading(self.name), closing(standard_input()) as file:
            yield from _pieces_of(file, self.name, only_json=self.only_json, columns=self.columns)


@dataclass(frozen=True, slots=True)
class _S3Object:
    address: str
    only_json: bool
    columns: Sequence[str]
    settings: Settings | None

    @property
    def name(self) -> str:
        return self.address

    def identity(self) -> str:
        return f"{self.address} {self.only_json} {_ask_s3(_version_of, self.address, self.settings)}"

    def pieces(self, spool: Spool) -> Iterator[Piece]:  # noqa: ARG002 - as above
        with reading(self.name), tempfile.TemporaryFile() as copy:
            _ask_s3(_copy_object, self.address, self.settings, copy)
            copy.seek(0)
            with open(copy.fileno(), "rb", closefd=False) as file:
                yield from _pieces_of(file, self.name, only_json=self.only_json, columns=self.columns)


def _pieces_of(file: IO[bytes], name: str, *, only_json: bool, columns: Sequence[str]) -> Iterator[Piece]:
    naming = naming_of(name)
    stream = unpacked(file, naming.packing, sniff=naming.format is None)
    form = naming.format
    if form is None or (only_json and form not in _JSON_READERS):
        form = sniffed_format(stream) or ("json" if only_json else "jsonl")
        if only_json and form != "jsonl":
            form = "json"
    return _JSON_READERS[form](stream, name) if form in _JSON_READERS else _TABLE_READERS[form](stream, name, columns)


class _Terminable(io.RawIOBase):
    """A descriptor that may stay silent for long: the run can be stopped meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._poll.poll(_POLL_MILLISECONDS):
            anyio.from_thread.check_cancelled()
        return os.readv(self._descriptor, [buffer])


def standard_input() -> io.BufferedReader:
    """Open standard input; closing it leaves the descriptor open.

    Raises:
        ManifestError: it is closed.
    """
    try:
        return io.BufferedReader(_Terminable(sys.stdin.fileno()), 256 << 10)
    except (AttributeError, OSError, ValueError) as error:
        raise ManifestError("standard input is closed.") from error


# ---- S3, in the event loop ------------------------------------------------------------------------------------------------------------


def _ask_s3(function: Callable[[*Arguments], Coroutine[object, object, Result]], *arguments: *Arguments) -> Result:
    import des.storage.s3  # noqa: F401, PLC0415 - slow to load: in this thread, and not in the loop

    return anyio.from_thread.run(function, *arguments)


async def _copy_object(address: str, settings: Settings | None, copy: IO[bytes]) -> None:
    place, _, key = address.rpartition("/")
    async with opened_storage(resolve_target(place, settings)) as storage:
        try:
            info = await storage.head(key)
            async with storage.stream_range(key, 0, info.size, version=info.version, purpose="payload") as pieces:
                async for piece in pieces:
                    await anyio.to_thread.run_sync(copy.write, piece)
        except ObjectNotFoundError as error:
            raise ManifestError(f"there is no object {address}.") from error


async def _version_of(address: str, settings: Settings | None) -> str:
    place, _, key = address.rpartition("/")
    async with opened_storage(resolve_target(place, settings)) as storage:
        try:
            return (await storage.head(key)).version
        except ObjectNotFoundError as error:
            raise ManifestError(f"there is no object {address}.") from error


async def _list_objects(address: str, settings: Settings | None) -> list[str]:
    place = address.rstrip("/")
    async with opened_storage(resolve_target(place, settings)) as storage:
        return [f"{place}/{info.key}" async for info in storage.list("")]
