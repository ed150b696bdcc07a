"""Sources: the files a manifest names, read whole when small, piece by piece when large.

A source that must not lead out of a directory was looked at when the rows were taken in, and has no symbolic link on its way since then. It is opened
step by step from that directory, following no link: one that has been put there meanwhile leads nowhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import aiofiles
import anyio.to_thread
from anyio import CancelScope

from des.shard.chunking import CHUNK_BYTES, LARGE_BYTES
from des.shard.layout import MAX_FILE_BYTES, NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from des.errors import Status
    from des.pack.plan import PlannedRow

# A large source is read in pieces of whole chunks; one thread hop then serves several of them.
PIECE_BYTES = 4 * CHUNK_BYTES
# O_PATH, where there is such a thing: to pass through a directory it need not be readable.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class SourceError(Exception):
    """A source cannot be packed; the sentence says why. One file's trouble, reported by row.

    Attributes:
        status: the word it is reported under.
    """

    def __init__(self, sentence: str, status: Status = "invalid") -> None:
        """See the class."""
        super().__init__(sentence)
        self.status = status


def read_small(row: PlannedRow) -> bytes | int:
    """Read a source in the calling thread.

    Returns:
        Its content, or, for one larger than 1 MiB, its size in bytes.

    Raises:
        SourceError: missing, unreadable, no regular file, or not of the size it should have.
    """
    try:
        descriptor = _open(row.root, row.source_path, os.O_RDONLY)
    except OSError as error:
        raise SourceError(f"the source cannot be opened: {_why(row, error)}.") from error
    except ValueError as error:
        raise SourceError(f"the source's path cannot be used: {error}.") from error
    try:
        size = _checked_size(row, os.fstat(descriptor))
        if size > LARGE_BYTES:
            return size
        content = os.read(descriptor, size + 1)
        while len(content) < size:
            more = os.read(descriptor, size + 1 - len(content))
            if not more:
                break
            content += more
    except OSError as error:
        raise SourceError(f"the source cannot be read: {error.strerror}.") from error
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise SourceError(f"the source changed while it was read (it had {size} bytes).")
    return content


def _open(root: str | None, path: str, flags: int) -> int:
    # Non-blocking, because opening a named pipe would wait for its writer; it means nothing for a regular file.
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if root is None:
        return os.open(path, flags)
    *directories, name = filter(None, path.removeprefix(root).split("/"))
    at = os.open(root, _DIRECTORY)
    try:
        for one in directories:
            below = os.open(one, _DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


def _why(row: PlannedRow, error: OSError) -> str:
    if row.root is not None and error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return "a symbolic link has taken its place, or that of a directory on its way"
    return error.strerror or str(error)


def _checked_size(row: PlannedRow, status: os.stat_result) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise SourceError("the source is a directory.")
    if not stat.S_ISREG(status.st_mode):
        raise SourceError("the source is not a regular file.")
    check_size(row, status.st_size)
    return status.st_size


def check_size(row: PlannedRow, size: int) -> None:
    """Compare a source's size in bytes with what its row says and the format takes.

    Raises:
        SourceError: it is another one, or too large.
    """
    if row.size_bytes is not None and row.size_bytes != size:
        raise SourceError(f"the source has {size} bytes, but size_bytes says {row.size_bytes}.")
    if size > MAX_FILE_BYTES:
        raise SourceError(f"the source has {size} bytes; a file may have at most {MAX_FILE_BYTES}.")


async def read_large(row: PlannedRow, size: int) -> AsyncGenerator[bytes, None]:
    """Read a large source in pieces of whole chunks. Whoever does not read it to its end closes the generator.

    Raises:
        SourceError: it cannot be read, or does not have `size` bytes any more.
    """
    left = size
    try:
        # Shielded, because a file whose opening or closing is left to a thread is nobody's.
        with CancelScope(shield=True):
            file = await aiofiles.open(row.source_path, "rb", opener=partial(_open, row.root))
        try:
            while left:
                piece = await file.read(min(PIECE_BYTES, left))
                if len(piece) != min(PIECE_BYTES, left):
                    raise SourceError(f"the source became shorter while it was read (it had {size} bytes).")
                left -= len(piece)
                yield piece
            if await file.read(1):
                raise SourceError(f"the source became longer while it was read (it had {size} bytes).")
        finally:
            with CancelScope(shield=True):
                await file.close()
    except OSError as error:
        raise SourceError(f"the source cannot be read: {_why(row, error)}.") from error


async def hash_large(pieces: AsyncGenerator[bytes, None]) -> bytes:
    """Return SHA-256[:16] of a large source that is read to its end here, as by `read_large`.

    Raises:
        SourceError: as its reader does.
    """
    digest = hashlib.sha256()
    async with aclosing(pieces):
        async for piece in pieces:
            await anyio.to_thread.run_sync(digest.update, piece)
    return digest.digest()[:NAME_BYTES]
