"""Open files: one that cannot be closed under a reader's feet, and a small cache of them.

Rules:

1. A `Descriptor` closes its number when its last reference goes. A worker thread that a cancelled task left behind still
   holds one, so that the number is never closed, and never handed to another file, while that thread reads from it.
2. What is read through one descriptor is one content: objects are replaced by rename, never changed in place.
3. The *version* of a local object is its size and a hash of its last 64 bytes, taken from the descriptor that is read.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from pathlib import Path

VERSION_BYTES = 64


def version_tag(size: int, tail: bytes) -> str:
    """Return the version of a content of `size` bytes that ends in `tail` (its last 64 bytes, or all of fewer)."""
    return f"{size}-{xxhash.xxh3_64_hexdigest(tail)}"


class Descriptor:
    """A regular file open for reading. All reads are positioned, so that any number of threads may share it.

    Attributes:
        number: the file descriptor; -1 once closed.
        size: bytes.
        modified: when the file was written.
    """

    __slots__ = ("modified", "number", "size")

    def __init__(self, path: Path) -> None:
        """Open a file. Blocks.

        Args:
            path: where it is.

        Raises:
            OSError: it cannot be opened; FileNotFoundError also where something else than a file has this name.
        """
        self.number = -1  # what `close` finds where opening fails
        self.number = os.open(path, os.O_RDONLY)
        status = os.fstat(self.number)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.size = status.st_size
        self.modified = datetime.fromtimestamp(status.st_mtime, UTC)

    def read(self, start: int, end: int) -> bytes:
        """Read `[start, end)`, cut at the end of the file. Blocks."""
        wanted = min(end, self.size) - start
        if wanted <= 0:
            return b""
        data = os.pread(self.number, wanted, start)
        while len(data) < wanted:  # one system call moves at most 2 GiB
            more = os.pread(self.number, wanted - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def read_nowait(self, start: int, end: int, scratch: memoryview) -> bytes | None:
        """Read `[start, end)`, cut at the end of the file, without ever waiting for a disk.

        Args:
            start: first byte.
            end: one past the last byte.
            scratch: as long as the range at least, and nobody else's meanwhile. Reading into the same memory again and again
                spares the page faults of fresh memory, which cost ten times as much as reading 256 KiB.

        Returns:
            The bytes, or None where the page cache does not hold them all, or the file system cannot tell.
        """
        wanted = min(end, self.size) - start
        if wanted <= 0:
            return b""
        buffer = scratch[:wanted]
        try:
            got = os.preadv(self.number, (buffer,), start, os.RWF_NOWAIT)
        except OSError:  # whatever it is, the blocking read that follows does it or says it
            return None
        return bytes(buffer) if got == wanted else None

    def version(self) -> str:
        """Return the version of what this descriptor reads. Blocks."""
        return version_tag(self.size, self.read(max(0, self.size - VERSION_BYTES), self.size))

    def close(self) -> None:
        """Close at once: for the only holder."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    __del__ = close


class OwnedFile(io.FileIO):
    """A file object with a position, over a descriptor that it owns: rule 1 holds for its readers too."""

    def __init__(self, descriptor: Descriptor) -> None:
        """Take over a descriptor that nobody else uses."""
        super().__init__(descriptor.number, "rb", closefd=False)
        self._descriptor = descriptor


class DescriptorCache:
    """The open files of immutable objects, bounded in number and in age. For one event loop.

    The age bounds for how long a deleted object can be read and its blocks stay taken.
    """

    def __init__(self, *, limit: int = 128, max_age: float = 60.0) -> None:
        """Start empty.

        Args:
            limit: how many files are kept open.
            max_age: seconds after which a file is opened anew.
        """
        self._limit = limit
        self._max_age = max_age
        self._open: OrderedDict[str, tuple[float, Descriptor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: str) -> Descriptor | None:
        """Return the open file of an object, None where there is none that is young enough."""
        found = self._open.get(key)
        if found is None:
            return None
        expires, descriptor = found
        if time.monotonic() >= expires:
            del self._open[key]
            return None
        self._open.move_to_end(key)
        return descriptor

    def add(self, key: str, descriptor: Descriptor) -> None:
        """Keep an open file, in place of those that are too old and of the least recently used."""
        now = time.monotonic()
        for stale in [name for name, (expires, _) in self._open.items() if now >= expires]:
            del self._open[stale]
        self._open[key] = (now + self._max_age, descriptor)
        self._open.move_to_end(key)
        while len(self._open) > self._limit:
            self._open.popitem(last=False)

    def discard(self, key: str) -> None:
        """Let go of the open file of an object, if there is one."""
        self._open.pop(key, None)

    def clear(self) -> None:
        """Let go of all open files."""
        self._open.clear()
