"""The bytes of a manifest: plain, gzip or zstd, told by the name, or by their beginning where the name says nothing.

Rules:

1. Memory is bounded whatever the bytes are: input is taken in pieces, and a piece unpacks to a bounded size.
2. Compressed bytes that break off are an error, never an end: several members or frames one after another are one manifest.
"""

from __future__ import annotations

import gzip
import io
import zlib
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, cast

import zstandard

from des.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

Format = Literal["json", "jsonl", "csv", "parquet"]
Packing = Literal["gz", "zst"]

FORMATS: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
PACKINGS: dict[str, Packing] = {".gz": "gz", ".zst": "zst"}

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PARQUET_MAGIC = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 256 << 10
# A frame may ask for a window as large as the zstd command's own limit: 128 MiB.
MAX_WINDOW_BYTES = 1 << 27
# Four bytes can stand for a block of 128 KiB (RFC 8878, section 3.1.1.2), so such a piece unpacks to 32 MiB at most.
_PIECE_BYTES = 1 << 10


class Naming(NamedTuple):
    """What a name says of a manifest; None: nothing."""

    format: Format | None
    packing: Packing | None


def naming_of(name: str) -> Naming:
    """Return what the endings of a name say."""
    path = PurePosixPath(name)
    packing = PACKINGS.get(path.suffix.lower())
    if packing is not None:
        path = path.with_suffix("")
    return Naming(FORMATS.get(path.suffix.lower()), packing)


@contextmanager
def reading(name: str, what: str = "manifest") -> Iterator[None]:
    """Translate what reading a manifest may raise.

    Raises:
        ManifestError: it cannot be read, or not to its end.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ManifestError(f"the {what} {name} cannot be read: {why.splitlines()[0].rstrip('.')}.") from error


def unpacked(file: IO[bytes], packing: Packing | None, *, sniff: bool) -> io.BufferedReader:
    """Return the bytes of a file, unpacked.

    Args:
        file: open for reading; need not be seekable.
        packing: as its name says.
        sniff: where the name says nothing, look at the beginning.
    """
    stream = _buffered(file)
    if packing is None and sniff:
        beginning = stream.peek(len(_ZSTD_MAGIC))
        packing = "gz" if beginning.startswith(_GZIP_MAGIC) else "zst" if beginning.startswith(_ZSTD_MAGIC) else None
    if packing == "gz":
        return io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=stream, mode="rb")), _BUFFER_BYTES)
    if packing == "zst":
        return io.BufferedReader(_ZstdReader(stream), _BUFFER_BYTES)
    return stream


def sniffed_format(stream: io.BufferedReader) -> Format | None:
    """Tell the format from the first bytes that are no space, None where there are none; they stay in the stream."""
    beginning = stream.peek(_BUFFER_BYTES)
    if beginning.startswith(_PARQUET_MAGIC):
        return "parquet"
    beginning = beginning.removeprefix(_BOM).lstrip()
    if beginning.startswith(b"["):
        return "json"
    if not beginning:
        return None
    return "jsonl" if beginning.startswith(b"{") else "csv"


def _buffered(file: IO[bytes]) -> io.BufferedReader:
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file), _BUFFER_BYTES)


class _ZstdReader(io.RawIOBase):
    """Unpacks frames one after another. The library's own reader takes a frame that breaks off for the end."""

    def __init__(self, packed: io.BufferedReader) -> None:
        self._packed = packed
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        while not self._output:
            if not self._input:
                self._input = self._packed.read(_PIECE_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the zstd stream breaks off before its end")
                return 0
            self._unpack()
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _unpack(self) -> None:
        frame = self._frame or self._context.decompressobj()
        self._output = memoryview(frame.decompress(self._input))
        self._input = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
