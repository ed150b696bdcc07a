"""Packing a tar archive, plain, gzip or zstd: every regular file in it is a row of its own.

    uid          the member's name, without a leading `./`; of an archive that DES made, the exact uid that its PAX record `DES.uid` carries
    created_at   the member's time of change, or one given for all

Rules:

1. An archive is read once, from front to back, so it may come through a pipe. Rows are packed shard by shard, so contents lie in the spool until then:
   that takes as much disk as they have bytes. A member that would not fit is refused before any of it is written.
2. Links, devices, directories with content, sparse files, absolute names and names with `..` are refused by name; nothing is ever extracted under a
   name of the archive's choosing. Directories are passed over.
3. Whatever the headers say, no more is held in memory than one piece: headers of a member (extended ones, maps of sparse files) that take more than
   `MAX_HEADER_BYTES` together are refused.
4. An archive that breaks off, or holds garbage between members, is refused as a whole: the library would take it for the end.
"""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from des.errors import ManifestError
from des.pack.inputs import STDIN, standard_input
from des.pack.manifest_streams import naming_of, reading, unpacked
from des.pack.tree import refused, rfc_3339
from des.store.archive import UID_KEYWORD

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    from des.pack.inputs import Part
    from des.pack.manifest import Piece
    from des.pack.spool import Spool

_PIECE_BYTES = 256 << 10
MAX_HEADER_BYTES = 1 << 20
# The plain headers around extended ones, and the padding behind these.
_OWN_HEADERS_BYTES = 64 * tarfile.BLOCKSIZE
_BATCH_ROWS = 5_000
_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive to be packed, `-` for standard input; `created_at` is for all its files, or None."""

    name: str
    created_at: str | None = None

    def parts(self) -> Iterator[Part]:
        """See `Input`."""
        yield self

    def identity(self) -> str:
        """See `Part`."""
        raise ManifestError(
            f"the archive {self.name} is unpacked for one run only; --state needs manifests or a directory."
        )

    def pieces(self, spool: Spool) -> Iterator[Piece]:
        """Unpack into the spool, and yield a row for each file, many at once.

        Raises:
            ManifestError: it is no tar archive to its very end, or does not fit on the disk.
        """
        batch: list[object] = []
        with reading(self.name, "archive"), _opened(self.name) as file:
            stream = _Forward(unpacked(file, naming_of(self.name).packing, sniff=True))
            try:
                with tarfile.TarFile(
                    fileobj=cast("IO[bytes]", stream), encoding="utf-8", errors="surrogateescape"
                ) as tar:
                    while (member := _next(tar, stream)) is not None:
                        tar.members.clear()  # type: ignore[attr-defined]  # would grow by each member; not in the stubs
                        row = self._row(stream, member, spool)
                        if row is not None:
                            batch.append(row)
                        if len(batch) >= _BATCH_ROWS:
                            yield partial(list, batch)
                            batch = []
                stream.check_end()
            except RecursionError as error:
                raise ManifestError(f"the archive {self.name} is damaged: a member has too many headers.") from error
            except (tarfile.TarError, ValueError, OverflowError) as error:
                raise ManifestError(f"the archive {self.name} is damaged: {str(error).rstrip('.')}.") from error
        yield partial(list, batch)

    def _row(self, stream: _Forward, member: tarfile.TarInfo, spool: Spool) -> object | None:
        exact = member.pax_headers.get(UID_KEYWORD)
        uid = member.name.removeprefix("./") if exact is None else exact
        if member.isdir():
            return None
        if member.type in _TYPES:
            return refused(uid, None, f"it is {_TYPES[member.type]}.")
        if not member.isreg() or member.issparse():
            return refused(uid, None, "it is not a regular file.")
        if exact is None and (uid.startswith("/") or ".." in uid.split("/")):
            return refused(uid, None, "its name is absolute, or has .. in it.")
        if member.size < 0:
            raise tarfile.ReadError("a member has less than no content")
        stream.seek(member.offset_data)
        with spool.create(member.size) as out:
            left = member.size
            while left:
                piece = stream.read_content(min(_PIECE_BYTES, left))
                if not piece:
                    raise tarfile.ReadError("it breaks off")
                out.write(piece)
                left -= len(piece)
        return {
            "uid": uid,
            "created_at": self.created_at or _time_of(member),
            "source_path": out.name,
            "size_bytes": member.size,
        }


def _next(tar: tarfile.TarFile, stream: _Forward) -> tarfile.TarInfo | None:
    stream.header_bytes = 0
    return tar.next()


def _time_of(member: tarfile.TarInfo) -> str | None:
    try:
        return rfc_3339(round(member.mtime * 1_000_000))
    except (OverflowError, ValueError):  # infinity, or no number
        return None


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    with standard_input() if name == STDIN else Path(name).open("rb") as file:
        yield file


class _Forward:
    """A stream as the library reads it, from front to back.

    Attributes:
        header_bytes: what the library has read of the headers of one member.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        self.header_bytes = 0
        self._stream = stream
        self._position = 0
        self._last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"it has a header of {size:,} bytes")
        self.header_bytes += size
        if self.header_bytes > MAX_HEADER_BYTES + _OWN_HEADERS_BYTES:
            raise tarfile.ReadError(f"a member has headers of more than {MAX_HEADER_BYTES:,} bytes")
        return self.read_content(size)

    def read_content(self, size: int) -> bytes:
        self._last = self._stream.read(size)
        self._position += len(self._last)
        return self._last

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a header points backwards")
        while self._position < position:
            if not self.read_content(min(_PIECE_BYTES, position - self._position)):
                raise tarfile.ReadError("it breaks off")

    def check_end(self) -> None:
        """Refuse an archive that does not end as POSIX says (pax, "ustar Interchange Format"): in blocks of zeros, and nothing else.

        Raises:
            tarfile.ReadError: it ends otherwise.
        """
        if len(self._last) != tarfile.BLOCKSIZE or any(self._last):
            raise tarfile.ReadError(
                f"there is no header where one should be, at byte {self._position - len(self._last):,}"
            )
        while self.read_content(_PIECE_BYTES):
            if self._last.count(0) != len(self._last):
                raise tarfile.ReadError(
                    "there is something behind its end; if it is several archives in one, give them one by one"
                )
